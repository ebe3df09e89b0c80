"""What a run tells people: a progress bar, ``metrics.jsonl`` and TensorBoard, all from rank 0."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gem_ds.hardware import GPUS

FILE = "metrics.jsonl"


class Metrics:
    """Writer of one run's metrics. On ranks other than 0 every call does nothing."""

    def __init__(self, run: Path, first_step: int, steps: int, enabled: bool) -> None:
        """Lines of steps from `first_step` on, left by a run that went further, are dropped."""
        self._enabled = enabled
        if not enabled:
            return
        path = run / FILE
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] < first_step]
            path.write_text("".join(kept))
        self._file = path.open("ab", buffering=0)
        self._failed: set[str] = set()
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, desc="train", unit="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step everywhere. A full disk costs them, not the run."""
        if not self._enabled:
            return
        try:
            self._append(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            self._lost(FILE, step, error)
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self._lost("TensorBoard", step, error)
        shown = {
            "ntp": f"{values['loss/ntp']:.3f}",
            "cl": f"{values['loss/contrastive']:.3f}",
            "lr": f"{values['schedule/learning_rate']:.1e}",
            "tok/s": f"{values['speed/tokens_per_second']:.0f}",
        }
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

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
