"""The heaviest step first: memory that does not suffice shows in the first minute.

Also what to say when it does not.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gem_ds import distributed
from gem_ds.errors import InputError
from gem_ds.model.loss_normalization import step_loss
from gem_ds.training.monitoring import memory_gib
from gem_ds.training.setup import Run

LOOKED_AT = 128  # rows of which the longest are taken
_CPU_OUT_OF_MEMORY = "can't allocate memory"  # of PyTorch's allocator


def rehearse(run: Run) -> None:
    """Compute the longest of the coming rows as a step would, and change nothing.

    For each mixture of losses that the schedule has. The loss is not a number, so DeepSpeed takes
    the step for one that overflowed, and its own way of skipping those leaves all as it was.
    """
    config, engine = run.config, run.engine
    steps = range(run.first_step, config.steps)
    alphas = {run.schedule.alpha_at(step) for step in steps}
    for with_targets, with_views in sorted({(alpha < 1, alpha > 0) for alpha in alphas}):
        batch = run.loader.longest(run.first_step, LOOKED_AT, with_targets, with_views)
        (anchors,) = zip(*distributed.gather_counts([len(batch.anchors)], run.device), strict=True)
        batch = batch.among(anchors).to(run.device)
        with _without_warnings():  # of the overflow, which nobody need look into
            for _ in range(config.accumulation(distributed.world_size())):
                torch.manual_seed(0)
                out = engine(batch)
                loss = step_loss(out.ntp, out.contrastive, out.kl, 0.5, 1.0, 1, 1, 1, 1)
                engine.backward(loss * float("nan"), scale_wrt_gas=False)
                engine.step()
        assert not engine.was_step_applied()


@contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def memory_advice(run: Run, doing: str) -> Iterator[None]:
    """Turns out of memory into an `InputError` that says what to change."""
    held = memory_gib(run.device)
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and _CPU_OUT_OF_MEMORY not in str(error):
            raise
        raise InputError(_advice(run, doing, held)) from error


def _advice(run: Run, doing: str, held: float) -> str:
    config = run.config
    n, length = config.rows_per_micro_batch, run.loader.shards.manifest.row_length
    states = states_gib(run.engine)
    cures = []
    if n > 1:
        cures.append(f"--rows-per-micro-batch {n // 2}")
    if not config.gradient_checkpointing:
        cures.append("--gradient-checkpointing true")
    elif config.keep_products or config.checkpoint_every > 1:
        cures.append("--checkpoint-every 1 --keep-products false")
    if run.engine.zero_optimization_stage() < 3:
        cures.append("--deepspeed ds_configs/zero3.json")
    if distributed.world_size() == 1 or states > held / 2:
        cures += ["more GPUs", "--deepspeed ds_configs/zero3_offload.json"]
    if not cures:
        cures = ["shards of a smaller --row-length", "more GPUs"]
    where = "its host"
    if run.device.type == "cuda":
        total = torch.cuda.get_device_properties(run.device).total_memory / 2**30
        where = f"a GPU of {total:.0f} GiB"
    return (
        f"out of memory {doing} on {where}, at {n} rows of {length} tokens: {held:.1f} GiB were "
        f"held before, of which weights, gradients and optimizer states take some {states:.1f} "
        f"GiB; give {' or '.join(cures)}"
    )


def states_gib(engine: Any) -> float:
    """Weights, fp32 gradients, and AdamW's master weights and two moments, of one rank, in GiB."""
    stage, ranks = engine.zero_optimization_stage(), distributed.world_size()
    total = 0.0
    for parameter in engine.module.parameters():
        n = getattr(parameter, "ds_numel", parameter.numel())
        total += n * parameter.element_size() / (ranks if stage == 3 else 1)
        if parameter.requires_grad:
            total += n * 4 / (ranks if stage >= 2 else 1) + n * 12 / (ranks if stage >= 1 else 1)
    return total / 2**30
