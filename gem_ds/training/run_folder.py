"""The folder of a run before its first step: who may write there, where it goes on, whether it has
room.

What is refused is refused before anything in the folder is changed.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gem_ds import distributed
from gem_ds.checkpoints import checkpoint
from gem_ds.errors import InputError
from gem_ds.training.config import TrainConfig
from gem_ds.training.lock import Lock
from gem_ds.training.monitoring import FILE
from gem_ds.training.watchdog import FOLDER, Watchdog

_PROBE = 2**16  # bytes


def enter(config: TrainConfig, stack: ExitStack) -> Watchdog:
    """Make the run's folder, keep other jobs out of it, and begin to give signs of life."""
    folder = Path(config.output)
    locks: list[Lock] = []

    def enter() -> None:
        locks.append(Lock(folder))
        stack.callback(locks[0].release)
        _check(config)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        checkpoint.folder_of(folder).mkdir(exist_ok=True)

    distributed.same_on_all(enter)
    watchdog = Watchdog(
        folder,
        distributed.rank(),
        distributed.world_size(),
        60 * config.timeout_minutes,
        on_tick=locks[0].sign if locks else lambda: None,
    )
    return stack.enter_context(watchdog)


def _check(config: TrainConfig) -> None:
    """Refuse a folder that contradicts itself or, without ``--resume auto``, has checkpoints."""
    folder = Path(config.output)
    for name in (FILE, checkpoint.SAVES, "run.json", "starts.jsonl"):
        if (folder / name).exists() and not (folder / name).is_file():
            raise InputError(f"{folder / name} is no file; remove it, or choose another --output")
    if config.resume == "auto":
        checkpoint.up_to_latest(folder)
        return
    done = checkpoint.folders(folder)
    if done:
        raise InputError(
            f"{folder} already has checkpoints (newest {done[-1].name}); continue with "
            "--resume auto or choose another --output"
        )


def to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, if any. All ranks call."""
    if config.resume == "never":
        return None
    path, warnings = checkpoint.newest_whole(Path(config.output))
    if distributed.rank() == 0:
        for warning in warnings:
            print(f"WARNING: {warning}; the one before is taken", flush=True)
    if path is not None and checkpoint.step_of(path) > config.steps:
        raise InputError(
            f"{path} is of more steps than --steps {config.steps}; give more, or write an earlier "
            f"checkpoint's name into {path.with_name(checkpoint.LATEST)}"
        )
    return path


def told(config: TrainConfig, first_step: int) -> str:
    """Where the run begins, for people."""
    if not first_step:
        return "starting from step 0"
    left = "" if first_step < config.steps else ", its last: nothing is left to do"
    return f"continuing from step {first_step} of {config.output}{left}"


def check_room(config: TrainConfig, engine: Any) -> None:
    """Refuse a disk on which not even one checkpoint has room."""
    folder = checkpoint.folder_of(Path(config.output))
    probe = folder / f"probe-{os.getpid()}.tmp"
    needed = sum(
        getattr(p, "ds_numel", p.numel()) * (p.element_size() + 12 * p.requires_grad)
        for p in engine.module.parameters()
    )
    try:
        probe.write_bytes(bytes(_PROBE))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); make room, or choose another --output"
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    if free < needed:
        raise InputError(
            f"{folder} has room for {free / 2**30:.1f} GiB and a checkpoint takes "
            f"{needed / 2**30:.1f} GiB; make room, or choose another --output"
        )
