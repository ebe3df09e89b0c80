"""What a run tells people: progress, ``metrics.jsonl`` and TensorBoard, all from rank 0; steps to
look at; a trace of some steps.

Progress is a bar on a terminal, and elsewhere a line every `LINE_SECONDS`. Of steps whose gradients
were not finite, and of those whose loss leapt, the rows are written down, so that one can look at
them (``data_prep/inspect_shards.py``). Traces are for TensorBoard, Perfetto or chrome://tracing.
"""

import errno
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gem_ds import distributed
from gem_ds.checkpoints.run_record import METRICS
from gem_ds.files import replacing
from gem_ds.hardware import GPUS

LINE_SECONDS = 30.0  # between lines of progress, where no terminal shows a bar
TIMED = (2, 5)  # steps of a start after which, and until when, they are timed: first ones are slow


class Metrics:
    """Writer of one run's metrics. On ranks other than 0 every call does nothing."""

    def __init__(self, run: Path, first_step: int, steps: int, enabled: bool) -> None:
        """Lines of steps from `first_step` on, left by a run that went further, are dropped. Those
        of an earlier start from step 0 are kept in another file."""
        self._enabled = enabled
        if not enabled:
            return
        path = run / METRICS
        said = _prepare(path, first_step)
        self._file = path.open("ab", buffering=0)
        self._failed: set[str] = set()
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self._steps, self._taken = steps, 0
        self._seconds: list[float] = []  # of the steps that are timed
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=first_step, desc="train", unit="step", disable=not terminal
        )
        self._next_line = None if terminal else 0.0
        for line in said:
            self.say(line)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step everywhere. A full disk costs them, not the run."""
        if not self._enabled:
            return
        try:
            self._append(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            self._lost(METRICS, step, error)
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self._lost("TensorBoard", step, error)
        self._show(step, shown(values))
        self._time(step, values["speed/loop_seconds"])

    def _show(self, step: int, texts: dict[str, str]) -> None:
        self._bar.set_postfix(texts, refresh=False)
        self._bar.update()
        now, done = time.monotonic(), step + 1
        if self._next_line is not None and (now >= self._next_line or done == self._steps):
            self._next_line = now + LINE_SECONDS
            said = ", ".join(f"{name}={text}" for name, text in texts.items())
            print(f"step {done}/{self._steps}: {said}", file=sys.stderr, flush=True)

    def _time(self, step: int, seconds: float) -> None:
        """Say once, after the first steps, how long the others take."""
        self._taken += 1
        first, last = TIMED
        if first < self._taken <= last:
            self._seconds.append(seconds)
        left = self._steps - step - 1
        if self._taken == last and left:
            each = statistics.median(self._seconds)
            self.say(f"{each:.3g} s a step: about {hours(left * each)} for the {left:,} to come")

    def _append(self, line: str) -> None:
        """A line, or nothing of it."""
        before, data = self._file.tell(), line.encode()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(before)
            self._file.seek(before)
            raise

    def _lost(self, what: str, step: int, error: OSError) -> None:
        if what not in self._failed:
            self._failed.add(what)
            self.say(f"WARNING: {what} lacks step {step} and perhaps later ones ({error.strerror})")

    def say(self, message: str) -> None:
        """A line for people that leaves the progress bar whole."""
        if self._enabled:
            self._bar.write(message)

    def close(self) -> None:
        if self._enabled:
            self._bar.close()
            with suppress(OSError):
                self._board.close()
            self._file.close()


def shown(values: dict[str, float]) -> dict[str, str]:
    """What a person is shown of a step; a loss only where the step computed it."""
    losses = {"ntp": ("loss/ntp", "data/targets"), "cl": ("loss/contrastive", "data/anchors")}
    found = {name: f"{values[key]:.3f}" for name, (key, n) in losses.items() if values[n]}
    rate, speed = values["schedule/learning_rate"], values["speed/tokens_per_second"]
    return {**found, "lr": f"{rate:.1e}", "tok/s": f"{speed:.0f}"}


def _prepare(path: Path, first_step: int) -> list[str]:
    """Have a file ready for the lines of steps from `first_step` on; what is to be said of that."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if not lines:
        return []
    if not first_step:
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := path.with_stem(f"{path.stem}-{n}")).exists())
        path.rename(aside)
        return [f"{path}, of a start that made no checkpoint, is {aside.name} now"]
    whole = [line for line in lines if line.endswith(b"\n")]  # a killed run may leave half a line
    steps = [_step_of(line) for line in whole]
    kept = [line for line, step in zip(whole, steps, strict=True) if -1 < step < first_step]
    if len(kept) < len(lines):
        with replacing(path) as partial:
            partial.write_bytes(b"".join(kept))
    said = []
    if later := [step for step in steps if step >= first_step]:
        said.append(f"{path} loses its lines of steps {later[0]} to {later[-1]}, taken again now")
    if n_broken := steps.count(-1):
        said.append(f"WARNING: {path} loses {n_broken} lines that are not of metrics")
    return said


def _step_of(line: bytes) -> int:
    """The step of a line; -1 for one that is not of metrics."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return -1
    return step if isinstance(step, int) else -1


def hours(seconds: float) -> str:
    """A duration for people, such as ``6.1 hours`` or ``3 minutes``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def memory_gib(device: torch.device) -> float:
    """This rank's peak memory on its GPU, or its resident memory on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def utilization(rate: float, device: torch.device) -> dict[str, float]:
    """Of operations a second on each rank: in TFLOP/s, and as a share of the GPU's dense bf16 peak
    (MFU) where that is known. Nothing where operations could not be counted."""
    if not rate:
        return {}
    found = {"speed/tflops": rate / 1e12}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        for gpu in GPUS.values():
            if gpu.name in name:
                found["speed/mfu"] = rate / gpu.peak
    return found


FOLDER = "profile"
WARM = 2  # steps before: the first allocate, compile and fill caches


@contextmanager
def profiled(run: Path, n_steps: int, name: str) -> Iterator[Callable[[], None]]:
    """Within it, call what it yields after every step: `n_steps` of them, from the third on, are
    traced into ``profile/`` of the run's folder. With 0 nothing is."""
    if not n_steps:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=WARM - 1, warmup=1, active=n_steps, repeat=1),
        on_trace_ready=tensorboard_trace_handler(str(run / FOLDER), name),
        record_shapes=True,
    ) as profiler:
        yield profiler.step


LOSSES = ("loss/ntp", "loss/contrastive")
LEARNED = 50  # steps before a leap is told from noise
LEAP = 6.0  # standard deviations
_QUICKLY, _SLOWLY = 0.1, 0.02  # weights of a new value: some ten and fifty steps are remembered


class Health:
    """Watches the steps of a run. All ranks see the same values, each its own rows."""

    def __init__(self, run: Path) -> None:
        self._path = run / f"unusual-rank{distributed.rank()}.jsonl"
        self._past: dict[str, _Past] = {}
        self.skipped = 0  # steps in a row that were not applied

    def see(self, step: int, values: dict[str, float], rows: Sequence[int]) -> list[str]:
        """What is unusual about a step, in words; its rows are then in the run's folder."""
        unusual = []
        self.skipped = self.skipped + 1 if values["train/skipped"] else 0
        if self.skipped:
            unusual.append("gradients that are not finite: nothing was changed")
        else:
            unusual += [text for name in LOSSES if (text := self._leap(name, values[name]))]
        if unusual:
            line = {"step": step, "why": unusual, "rows": list(rows)}
            try:
                with self._path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                unusual.append(f"its rows could not be written ({error.strerror})")
        return unusual

    def _leap(self, name: str, value: float) -> str:
        """Compare a value with those before it, and remember it. 0 is a loss that is off."""
        if value == 0:
            return ""
        past = self._past.setdefault(name, _Past(value))
        most = past.most()
        past.add(min(value, most))  # what leaps counts as the most that does not, or hides the next
        return f"{name} leapt to {value:.4f}, above {most:.4f}" if value > most else ""


class _Past:
    """A loss as it was: its level, and how far and widely the next values were from it."""

    def __init__(self, value: float) -> None:
        self._n, self._level, self._drift, self._variance = 0, value, 0.0, 0.0

    def most(self) -> float:
        """The largest value that is no leap."""
        if self._n < LEARNED:
            return math.inf
        return self._level + self._drift + LEAP * math.sqrt(self._variance)

    def add(self, value: float) -> None:
        self._n += 1
        weight = max(_SLOWLY, 1 / self._n)
        apart = value - self._level - self._drift
        self._drift += weight * apart
        self._variance = (1 - weight) * (self._variance + weight * apart**2)
        self._level += max(_QUICKLY, 1 / self._n) * (value - self._level)
