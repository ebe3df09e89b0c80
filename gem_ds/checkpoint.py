"""Checkpoints of a run: writing them whole, finding them, and reading their weights.

A checkpoint is written as ``step-N.tmp`` by every rank and renamed when it is complete, so a folder
named ``step-N`` is one that can be trusted. It holds DeepSpeed's files, the Transformers
configuration under ``model/`` and ``gem.json``: what a run must agree with to continue.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from gem_ds import dist, files
from gem_ds.errors import InputError

STATE = "gem.json"
_PREFIX = "lm."  # of the language model's parameters in `model.GemModel`
ROWS = "summary_rows.weight"  # the summary tokens' own there, where the base is frozen


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def found(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    names = folder_of(run).glob("step-*")
    return sorted(p for p in names if p.suffix != ".tmp" and (p / STATE).is_file())


def find(run: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the newest. Raises `InputError` where there is none."""
    checkpoints = found(run)
    if not checkpoints:
        raise InputError(f"no checkpoint in {folder_of(run)}; is {run} the --output of a run?")
    if step is None:
        return checkpoints[-1]
    for path in checkpoints:
        if path.name == _name(step):
            return path
    steps = ", ".join(str(int(p.name.removeprefix("step-"))) for p in checkpoints)
    raise InputError(f"no checkpoint of step {step} in {folder_of(run)}; there are {steps}")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The ``gem.json`` of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint / STATE} cannot be read ({error}); use another") from error
    return state


def save(
    engine: Any,
    run: Path,
    state: dict[str, Any],
    save_config: Callable[[Path], None],
    keep_last: int,
) -> Path:
    """Write the checkpoint of ``state["step"]`` and remove all but the newest `keep_last`.

    All ranks call. Until the rename nothing of it counts, and no older checkpoint is touched.
    """
    folder = folder_of(run)
    final = folder / _name(state["step"])
    partial = final.with_suffix(".tmp")
    if dist.rank() == 0:
        for stale in folder.glob("*.tmp"):
            shutil.rmtree(stale)
    dist.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    except (OSError, RuntimeError) as error:  # torch raises either where a disk is full
        raise InputError(
            f"cannot write the checkpoint {partial}: {str(error).splitlines()[0]}; make room and "
            "continue with --resume auto from the checkpoint before, which is untouched"
        ) from error
    dist.barrier()
    if dist.rank() == 0:
        save_config(partial / "model")
        (partial / STATE).write_text(json.dumps(state, indent=1))
        _sync_tree(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        files.sync(folder)
        for old in found(run)[:-keep_last]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load(engine: Any, checkpoint: Path, state: dict[str, Any]) -> int:
    """Put a checkpoint into the engine and return the number of steps done.

    `state` is what the present run would save; where a key other than the step differs, the
    checkpoint is another run's and `InputError` names the key.
    """
    saved = read_state(checkpoint)
    for key, value in state.items():
        if key != "step" and saved.get(key) != value:
            raise InputError(
                f"{checkpoint} was written with {key} = {saved.get(key)!r}, this run has "
                f"{value!r}; continue with the same, or choose another --output"
            )
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if path is None:
        raise InputError(
            f"{checkpoint} cannot be loaded; remove it to continue from the one before"
        )
    return int(saved["step"])


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The language model's weights on the CPU, named as in the Transformers model.

    Of parameters that share memory (tied embeddings) only the first name is given. Trained weights
    are in fp32. Where the base was frozen, its weights are in the dtype of the run, adapters have
    `peft`'s names, and `ROWS` are the summary tokens' rows (k, C).
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        if name.startswith((_PREFIX, ROWS)) and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name.removeprefix(_PREFIX)] = tensor
    return weights


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        files.sync(path)
    files.sync(folder)
