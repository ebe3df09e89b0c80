"""Continuing on another number of ranks, or with another ZeRO stage.

DeepSpeed's universal checkpoint holds each parameter and its optimizer state whole. Rank 0 makes it
of the checkpoint to continue from, beside it, and all ranks read their parts. What DeepSpeed's
converter and readers leave open is closed here: a reader of one stage does not find all that the
converter writes of another, gives every group of parameters the settings of the first, and makes
the groups share one counter of steps, which each of them then advances.
"""

import argparse
import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal

from gem_ds import distributed
from gem_ds.checkpoints import checkpoint, zero_reader
from gem_ds.errors import InputError

SUFFIX = ".universal"
# Where ZeRO-3 looks for what is not a parameter's, and where stages 1 and 2 do.
_STATES = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt")
# The optimizer's state in a file of stage 3, and in one of stages 1 and 2.
_OPTIMIZERS = ("optimizer_state_dict", "base_optimizer_state")


def load(engine: Any, path: Path, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Put a checkpoint into an engine, which `own` describes as `saved` does the checkpoint's."""
    keys = ("world_size", "zero_stage")
    changes = [f"{key} {saved[key]} -> {own[key]}" for key in keys if saved[key] != own[key]]
    if not changes:
        checkpoint.load(engine, path)
        return
    if distributed.rank() == 0:
        print(f"converting {path} ({', '.join(changes)})", flush=True)
    groups = engine.optimizer.param_groups
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    workers = max(1, (os.cpu_count() or 1) // 2)
    n_taken = distributed.same_on_all(
        lambda: convert(path, own["zero_stage"], len(groups), workers)
    )
    universal = path.with_suffix(SUFFIX)
    engine._config.load_universal_checkpoint = True
    try:
        checkpoint.load(engine, universal)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = torch.tensor(n_taken, device=state["exp_avg"].device)
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(universal)


def convert(path: Path, stage: int, n_groups: int, workers: int) -> float:
    """Make the universal checkpoint ``step-N.universal`` of ``step-N``; the steps of its optimizer.

    It is for a ZeRO stage and an optimizer of so many groups, which have settings of their own.
    """
    universal = path.with_suffix(SUFFIX)
    shutil.rmtree(universal, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(path),
        output_folder=str(universal),
        num_extract_workers=workers,
        num_merge_workers=workers,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            ds_to_universal.main(arguments)
        (path.parent / "latest_universal").unlink(missing_ok=True)
        return _complete(path, universal, stage, n_groups)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(universal, ignore_errors=True)
        raise InputError(
            f"{path} cannot be converted: {str(error).splitlines()[0]}; it needs as much room "
            "again, for as long as it is read"
        ) from error


def _complete(path: Path, universal: Path, stage: int, n_groups: int) -> float:
    """Write what readers of either stage look for; the steps of the optimizer."""
    found = next(universal / name for name in _STATES if (universal / name).exists())
    states = zero_reader.read(found)
    if stage < 3 and found.name == _STATES[0]:  # of stage 3, tensors are flat
        shapes = {name: shape for group in states["param_shapes"] for name, shape in group.items()}
        for name, shape in shapes.items():
            for file in (universal / "zero" / name).glob("*.pt"):
                torch.save({"param": zero_reader.read(file).view(shape)}, file)
    for name in _STATES:
        torch.save({**states, "module": {}}, universal / name)
    optimizer = zero_reader.read(min(path.glob("*zero_pp_rank_0_*_optim_states.pt")))[
        "optimizer_state_dict"
    ]
    inner = next(optimizer[name] for name in _OPTIMIZERS if name in optimizer)
    n_taken = float(inner["state"][0]["step"])
    needed = {
        "param_groups": [{}] * n_groups,
        _OPTIMIZERS[0]: {"state": {0: {"step": n_taken}}, "param_groups": [{}]},
        "ds_version": deepspeed.__version__,
    }
    torch.save(needed, universal / "zero" / "optimizer_state.pt")
    return n_taken
