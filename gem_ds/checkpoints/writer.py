"""Writing checkpoints while training goes on.

A step waits only until every rank has copied its part of the engine's state into its host's memory.
A thread writes the copy into ``step-N.tmp``, hashes it on the way and syncs it. When all ranks have
said so, which they do in a collective that a step has anyway, rank 0 lists the files in
``gem.json``, gives the folder its name and has ``latest`` name it: until then nothing of it counts.
What cannot be written is taken away again, and the checkpoint before stays. What is to be removed
loses its name first, so that half of it is never taken for a checkpoint.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

from gem_ds import distributed, files
from gem_ds.checkpoints import checkpoint, resharding, run_record

Written = dict[str, list[Any]]  # bytes and sha256 by the path in the checkpoint's folder
State = dict[str, Any]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `last`, and those of every `every`-th step, if any."""

    last: int
    every: int = 0

    def superfluous(self, run: Path, step: int) -> list[Path]:
        """The checkpoints to remove when that of `step` is there, incomplete ones too.

        Those of later steps, left by a run that was set back, are not touched.
        """
        earlier, whole = (
            [path for path in paths if checkpoint.step_of(path) <= step]
            for paths in (checkpoint.folders(run), checkpoint.found(run))
        )
        return [
            path
            for path in earlier
            if path not in whole[-self.last :]
            and (not self.every or checkpoint.step_of(path) % self.every)
        ]


class Saver:
    """Writes the checkpoints of an engine into the folder of a run.

    All ranks call everything. `say` gets a line for people for each that is there or failed.
    """

    def __init__(
        self,
        engine: Any,
        run: Path,
        save_config: Callable[[Path], None],
        retention: Retention,
        say: Callable[[str], None],
        background: bool = True,
        there: int = 0,
    ) -> None:
        """Without `background` a save returns when the checkpoint is there. `there` is the step of
        the checkpoint that the run goes on from, if any."""
        self._engine = engine
        self._run = run
        self._folder = checkpoint.folder_of(run)
        self._save_config = save_config
        self._retention = retention
        self._say = say
        self._background = background
        self._copies = _Copies()
        engine.checkpoint_engine = self._copies
        # A script for people, copied on rank 0 while the others wait: a full disk would hang them.
        engine._copy_recovery_script = lambda _: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._writing: tuple[State, Future[Written]] | None = None
        self._publishing: Future[bool] | None = None  # on rank 0
        self._whole = True  # whether the last one is there, or may still be
        self._there = there  # the step of the last one
        if distributed.rank() == 0:
            self._retire(there)

    def save(self, state: State) -> None:
        """Begin to save the engine as the checkpoint of ``state["step"]``, after the one before.

        One that is there already stays: nothing has changed since.
        """
        if self.finish() and state["step"] == self._there:
            return
        partial, self._there = self._partial(state), state["step"]
        if distributed.rank() == 0:
            self._sweep()
        distributed.barrier()
        self._engine.save_checkpoint(str(self._folder), tag=partial.name, save_latest=False)
        self._writing = state, self._thread.submit(self._write, partial, self._copies.taken())
        self._whole = True
        if not self._background:
            self.finish()

    @property
    def written(self) -> bool:
        """Whether this rank has written its part of a checkpoint that is not concluded yet.

        When that is so on all ranks, `conclude` is to be called.
        """
        return self._writing is not None and self._writing[1].done()

    def conclude(self) -> None:
        """Begin to give the checkpoint its name, or take away what could not be written."""
        assert self._writing is not None
        (state, writing), self._writing = self._writing, None
        error = writing.exception()
        if error is not None and not isinstance(error, (OSError, RuntimeError)):
            raise error
        parts = distributed.gather((None if error else writing.result(), _sentence(error)))
        wrong = [f"{text} on rank {rank}" for rank, (_, text) in enumerate(parts) if text]
        self._whole = not wrong
        if distributed.rank() == 0 and wrong:
            self._give_up(state, wrong[0])
        elif distributed.rank() == 0:
            written = {name: entry for part, _ in parts for name, entry in (part or {}).items()}
            self._publishing = self._thread.submit(self._publish, state, written)

    def finish(self) -> bool:
        """Wait for the checkpoint that is being written, if any; whether the last one is there."""
        if self._writing is not None:
            self.conclude()
        if self._whole:
            publishing = self._publishing
            self._whole = distributed.same_on_all(lambda: publishing is None or publishing.result())
        return self._whole

    def close(self) -> None:
        self._thread.shutdown()

    def _partial(self, state: State) -> Path:
        return self._folder / f"{checkpoint.name_of(state['step'])}.tmp"

    def _write(self, partial: Path, taken: list[tuple[Path, Any]]) -> Written:
        """Write this rank's files."""
        partial.mkdir(parents=True, exist_ok=True)
        written = {str(path.relative_to(partial)): _save(content, path) for path, content in taken}
        taken.clear()
        if distributed.rank() == 0:
            self._save_config(partial / "model")
            for path in (partial / "model").iterdir():
                files.sync(path)
                written[str(path.relative_to(partial))] = checkpoint.entry_of(path)
        return written

    def _publish(self, state: State, written: Written) -> bool:
        """Make a complete checkpoint count, and remove those it makes superfluous. On rank 0."""
        partial, latest = self._partial(state), self._folder / checkpoint.LATEST
        final = partial.with_suffix("")
        try:
            checkpoint.write_state(partial, state, written)
            for folder in (partial / "model", partial):
                files.sync(folder)
            if final.exists():  # of a run that was set back
                _set_aside(final)
            if not latest.exists():  # the first: whatever has a name is named here
                _point(latest, final)
            partial.rename(final)
            files.sync(self._folder)
            _point(latest, final)
        except OSError as error:
            self._give_up(state, _sentence(error))
            return False
        with suppress(OSError), (self._run / checkpoint.SAVES).open("a") as saves:
            saves.write(json.dumps({"step": state["step"], "time": time.time()}) + "\n")
        self._retire(state["step"])
        self._say(f"saved {final}")
        return True

    def _retire(self, step: int) -> None:
        """Remove what the checkpoint of a step, if any, makes superfluous, and what is none."""
        for path in self._retention.superfluous(self._run, step):
            with suppress(OSError):
                _set_aside(path)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what is no checkpoint and never will be, left by a run that was killed perhaps."""
        if not checkpoint.folders(self._run):  # it names one that never got its name
            (self._folder / checkpoint.LATEST).unlink(missing_ok=True)
        files.remove_leftovers(self._folder)
        for name in (run_record.METRICS, run_record.FILE):
            files.remove_leftovers(self._run, name)
        for pattern in ("step-*.tmp", f"step-*{resharding.SUFFIX}", "probe-*.tmp"):
            for path in self._folder.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _give_up(self, state: State, why: str) -> None:
        self._sweep()
        self._say(
            f"WARNING: the checkpoint of step {state['step']} could not be written to "
            f"{self._folder} ({why}); make room; the one before is untouched"
        )


class _Copies(TorchCheckpointEngine):  # type: ignore[misc]
    """Takes copies of what DeepSpeed would write, in host memory; reads as DeepSpeed does."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: list[tuple[Path, Any]] = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """The thread makes folders: here an error would leave other ranks waiting."""

    def save(self, state_dict: Any, path: str) -> None:
        self._taken.append((Path(path), copied(state_dict, {})))

    def taken(self) -> list[tuple[Path, Any]]:
        """The files since the last call, and what is to be in them."""
        taken, self._taken = self._taken, []
        return taken


def copied(value: Any, seen: dict[Any, Tensor]) -> Any:
    """Containers with copies of their tensors in host memory; the same tensor is copied once."""
    if isinstance(value, Tensor):
        key = value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
        if key not in seen or not value.numel():
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        made = value.copy()  # of its own class: DeepSpeed's may be ordered, or have attributes
        for name, part in value.items():
            made[name] = copied(part, seen)
        return made
    if type(value) in (list, tuple):
        return type(value)(copied(part, seen) for part in value)
    return value


class _Hashed:
    """A file that hashes what is written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._bytes += len(data)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()

    def entry(self) -> list[Any]:
        return [self._bytes, self._hash.hexdigest()]


def _save(content: Any, path: Path) -> list[Any]:
    with path.open("wb") as file:
        hashed: Any = _Hashed(file)  # all that PyTorch asks of a file
        torch.save(content, hashed)
        file.flush()
        os.fsync(file.fileno())
    entry: list[Any] = hashed.entry()
    return entry


def _set_aside(path: Path) -> None:
    """Take its name from a checkpoint that is to be removed."""
    path.rename(path.with_name(f"{path.name}.removed.tmp"))


def _point(latest: Path, final: Path) -> None:
    with files.replacing(latest) as partial:
        partial.write_text(f"{final.name}\n")


def _sentence(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if error is not None else ""
