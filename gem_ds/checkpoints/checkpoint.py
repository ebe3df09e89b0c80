"""Checkpoints of a run as folders: finding them, trusting them, reading their weights.

``checkpoints/step-N`` holds DeepSpeed's files, the Transformers configuration under ``model/`` and
``gem.json``: what a run must agree with to continue, what wrote it, and the size and sha256 of
every other file. The folder gets its name when it is complete, and ``checkpoints/latest`` names the
one to go on from. ``saves.jsonl`` of the run tells which there have been. How they are written is
in `writer`; how one is read on another number of ranks, of `resharding`.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from gem_ds import distributed, files
from gem_ds.errors import InputError
from gem_ds.model.lazy_tensors import Lazy, renamed

STATE = "gem.json"
LATEST = "latest"
SAVES = "saves.jsonl"  # of a run: a line for each checkpoint that it made
RECORD = "record"  # in the state: what a run need not agree with
_FILES, _DIGEST = "files", "sha256"
_PREFIX = "lm."  # of the language model's parameters in `model.language_model.TrainingModel`
ROWS = "summary_rows.weight"  # the summary tokens' own there, where the base is frozen


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def folders(run: Path) -> list[Path]:
    """The folders with a checkpoint's name, complete or not, oldest first."""
    names = folder_of(run).glob("step-*")
    return sorted(path for path in names if re.fullmatch(r"step-\d{8}", path.name))


def found(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in folders(run) if (path / STATE).is_file()]


def up_to_latest(run: Path) -> list[Path]:
    """The checkpoints up to the one that ``latest`` names, oldest first; none where none was made.

    Raises `InputError` where the folder contradicts itself: ``latest`` names none that is there or
    is missing beside some, or all that have been saved are gone.
    """
    candidates, latest = folders(run), folder_of(run) / LATEST
    name, wrong = _named(latest)
    if any(path.name == name for path in candidates):
        return [path for path in candidates if path.name <= name]
    if candidates:
        there = ", ".join(path.name for path in candidates)
        raise InputError(
            f"{latest} {wrong}, and there are {there}; write the one to go on from into it: "
            f"echo {candidates[-1].name} > {latest}"
        )
    # The first is named before it gets its name: a run that was killed between has none.
    if (latest.with_name(f"{name}.tmp").is_dir()) or not (latest.exists() or _has_saved(run)):
        return []
    why = f"{latest} {wrong}" if latest.exists() else f"{run / SAVES} tells of some"
    raise InputError(
        f"{folder_of(run)} has no checkpoint, but {why}; put them back, or choose another --output "
        "to start from step 0"
    )


def _named(latest: Path) -> tuple[str, str]:
    """The checkpoint that ``latest`` names, or nothing; what is wrong if that is not there."""
    try:
        found = re.fullmatch(r"step-(\d+)", Path(latest.read_text().strip()).name)
    except FileNotFoundError:
        return "", "is missing"
    except (OSError, ValueError) as error:
        return "", f"cannot be read ({error})"
    if found is None:
        return "", "does not name a checkpoint"
    name = name_of(int(found[1]))
    return name, f"names {name}, which is not there"


def _has_saved(run: Path) -> bool:
    path = run / SAVES
    return path.exists() and path.stat().st_size > 0


def find(run: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the latest. Raises `InputError` where there is none."""
    checkpoints = found(run) if step is not None else up_to_latest(run)
    if not checkpoints:
        raise InputError(f"no checkpoint in {folder_of(run)}; is {run} the --output of a run?")
    if step is None:
        return checkpoints[-1]
    for path in checkpoints:
        if path.name == name_of(step):
            return path
    steps = ", ".join(str(step_of(path)) for path in checkpoints)
    raise InputError(f"no checkpoint of step {step} in {folder_of(run)}; there are {steps}")


def write_state(checkpoint: Path, state: dict[str, Any], written: dict[str, Any]) -> None:
    """Write ``gem.json``: a state and what the other files are, by their path in the folder."""
    content = {**state, _FILES: written}
    content[_DIGEST] = _digest(content)
    path = checkpoint / STATE
    path.write_text(json.dumps(content, indent=1))
    files.sync(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The ``gem.json`` of a checkpoint. Raises `InputError` unless it is as it was written."""
    path = checkpoint / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
        if state.pop(_DIGEST) != _digest(state):
            raise ValueError("its content is not what its sha256 is of")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} cannot be trusted ({error!r}); use another") from error
    return state


def entry_of(path: Path) -> list[Any]:
    """What ``gem.json`` says of a file: its bytes and their sha256."""
    return [path.stat().st_size, files.sha256(path)]


def damage(checkpoint: Path, part: int = 0, n_parts: int = 1) -> str:
    """What is wrong with a checkpoint, or nothing. Of n parts of its files one is read."""
    from gem_ds.checkpoints import zero_reader  # loads DeepSpeed, which takes seconds

    try:
        state = read_state(checkpoint)
        written: dict[str, list[Any]] = state[_FILES]
    except (InputError, KeyError) as error:
        return str(error)
    if state["step"] != step_of(checkpoint):
        return f"{checkpoint} is of step {state['step']}"
    for name in sorted(written)[part::n_parts]:
        path = checkpoint / name
        try:
            size, digest = entry_of(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if size != written[name][0]:
            return f"{path} has {size:,} bytes instead of {written[name][0]:,}"
        if digest != written[name][1]:
            return f"{path} is not what was written: its sha256 differs"
        if path.suffix == ".pt" and (strange := zero_reader.foreign(path)):
            return f"{path} would run code ({strange}), as no checkpoint of a run does"
    return ""


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint up to ``latest`` that is undamaged, and what is wrong with later ones.

    All ranks call; each reads its share of the files. Raises `InputError` where all are damaged.
    """
    warnings: list[str] = []
    candidates = distributed.same_on_all(lambda: up_to_latest(run))
    for path in reversed(candidates):
        wrong = damage(path, distributed.rank(), distributed.world_size())
        found_wrong = [text for text in distributed.gather(wrong) if text]
        if not found_wrong:
            return path, warnings
        warnings.append(f"{path} is damaged: {found_wrong[0]}")
    if warnings:
        raise InputError(
            f"no checkpoint of {folder_of(run)} is whole ({'; '.join(warnings)}); restore one from "
            "a copy, or choose another --output"
        )
    return None, []


def check_agrees(checkpoint: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, if a run of `state` may continue from it.

    Where a key other than the step and the record differs, the checkpoint is another run's and
    `InputError` names the key.
    """
    saved = read_state(checkpoint)
    for key, value in state.items():
        if key not in ("step", "rows", RECORD) and saved.get(key) != value:
            raise InputError(
                f"{checkpoint} was written with {key} = {saved.get(key)!r}, this run has "
                f"{value!r}; continue with the same, or choose another --output"
            )
    return saved


def load(engine: Any, checkpoint: Path) -> None:
    """Put a checkpoint into an engine of as many ranks and the same ZeRO stage."""
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if path is None:
        raise InputError(
            f"{checkpoint} cannot be loaded; remove it to continue from the one before"
        )


def load_weights(checkpoint: Path, mapped_bytes: int = 2**28) -> Lazy:
    """The language model's weights on the CPU, named as in the Transformers model.

    Each is read when it is looked up; at most about `mapped_bytes` of the checkpoint's files stay
    mapped. Of parameters that are one (tied embeddings) one name is given. Trained weights are in
    fp32. Where the base was frozen, its weights are in the dtype of the run, adapters have `peft`'s
    names, and `ROWS` are the summary tokens' rows (k, C). Raises `InputError` for a damaged
    checkpoint.
    """
    from gem_ds.checkpoints import zero_reader  # loads DeepSpeed, which takes seconds

    wrong = damage(checkpoint)
    if wrong:
        raise InputError(f"{wrong}; use another checkpoint (--step)")
    tensors = zero_reader.tensors(checkpoint, mapped_bytes)
    names = (name for name in tensors if name.startswith((_PREFIX, ROWS)))
    return renamed(tensors, {name.removeprefix(_PREFIX): name for name in names})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
