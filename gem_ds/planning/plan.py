"""A run before it starts: memory, traffic, speed and cost of a way to train, and which way is best.

`evaluate` says what one way needs; `best` compares those that are open (ZeRO stage, offload, rows a
micro-batch) by predicted speed. What to change where none fits is in `advice`,
how a plan is told that of `report`, the DeepSpeed JSON that of `deepspeed_template`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from gem_ds.errors import InputError
from gem_ds.model import flops
from gem_ds.planning import communication, expected_batch, memory_estimate, speed, zero_settings
from gem_ds.planning.communication import Base
from gem_ds.planning.deepspeed_template import resolved
from gem_ds.planning.strategy import OFFLOADS, Job, Offload, Plan, Way
from gem_ds.planning.zero3_trace import Trace, Trained
from gem_ds.training.config import TrainConfig


def evaluate(job: Job, way: Way) -> Plan:
    """What a way needs. Raises `InputError` where the rows do not divide."""
    config, ranks = job.config, job.cluster.gpus
    together = ranks * way.rows_per_micro_batch
    if config.rows_per_step % together:
        gpus = "1 GPU" if ranks == 1 else f"{ranks} GPUs"
        raise InputError(
            f"--rows-per-step {config.rows_per_step} is no multiple of {together} "
            f"(--rows-per-micro-batch {way.rows_per_micro_batch} on {gpus}); "
            f"choose {-(-config.rows_per_step // together) * together}"
        )
    micro_batches = config.rows_per_step // together
    shape = job.shape.with_summary_tokens(job.data.summary_tokens)
    settled = resolved(config, job.cluster, shape.hidden, way)
    settings = zero_settings.of_json(settled)
    adapted = config.adapter != "none"
    trained = Trained(config.adapter, config.lora_rank * adapted, job.data.summary_tokens)
    n_reference = job.data.row_length * way.rows_per_micro_batch
    chunks = -(-n_reference // memory_estimate.CHUNK) if config.kl_to_base else 0
    trace = _trace(shape, trained, way.checkpoint_every, chunks)
    base = Base(job.shape, chunks) if chunks else None
    plans = []
    for alpha in _alphas(config):
        stream = expected_batch.stream(
            job.data,
            job.views,
            way.rows_per_micro_batch,
            alpha < 1,
            alpha > 0,
            job.frozen_text,
            base is not None,
        )
        counts = flops.count(
            stream.bounds,
            stream.n_targets,
            window=shape.window,
            frozen_text=job.frozen_text,
            reference_D4=stream.rows if base else None,
        )
        traffic = communication.step(
            trace, settings, ranks, micro_batches, stream.n_anchors, shape.hidden, base
        )
        work = memory_estimate.Work(
            counts,
            stream.n_anchors,
            1 + (config.negatives == "all"),
            way.checkpoint_every,
        )
        needed = memory_estimate.of_rank(shape, trace, settings, ranks, work, traffic, base)
        predicted = speed.predict(
            shape,
            trace,
            settings,
            job.cluster,
            counts,
            micro_batches,
            traffic,
            cast(flops.Trained, config.adapter if adapted else "all"),
            trained.lora_rank,
            way.checkpoint_every,
        )
        length = counts.tokens + counts.first_tokens
        plan = Plan(job, way, settled, needed, traffic, predicted, micro_batches, length)
        plans.append(plan)
    # The last is what most steps are; memory must suffice for all.
    heaviest = max(plans, key=lambda plan: plan.gib)
    return replace(plans[-1], memory=heaviest.memory)


_trace = lru_cache(maxsize=64)(Trace)


def _alphas(config: TrainConfig) -> list[float]:
    """The mixtures of losses that the schedule has, the final one last."""
    both = config.alpha_start and config.alpha
    return [0.0, config.alpha] if both else [config.alpha]


@dataclass(frozen=True)
class Fixed:
    """What of a way was asked for; None leaves it open."""

    stage: int | None = None
    offload: Offload | None = None
    rows_per_micro_batch: int | None = None
    checkpoint_every: int = 1
    bf16_states: bool = False
    file: dict[str, Any] | None = None

    def ways(self, job: Job) -> Iterator[Way]:
        """All that are open, those without offload first."""
        settled = self.file is not None
        stages = (3,) if settled else (2, 3) if self.stage is None else (self.stage,)
        each = job.config.rows_per_step // job.cluster.gpus
        fitting = [n for n in (2**i for i in range(12)) if each and each % n == 0]
        rows = [self.rows_per_micro_batch] if self.rows_per_micro_batch else fitting
        # DeepSpeed has no AdamW in the host for states in bf16.
        open_here = OFFLOADS[:1] if settled or self.bf16_states else OFFLOADS
        for offload in open_here if self.offload is None else (self.offload,):
            for stage in stages:
                if offload == "all" and stage == 2:
                    continue
                for n in rows:
                    yield Way(
                        stage,
                        offload,
                        n,
                        self.checkpoint_every,
                        self.bf16_states,
                        file=self.file,
                    )


def best(job: Job, fixed: Fixed) -> Plan:
    """The fastest way that fits; if none does, the one that needs least.

    A larger micro-batch, which also gives more negatives, wins among those as fast within 2 %.
    """
    rows, gpus = job.config.rows_per_step, job.cluster.gpus
    if rows % gpus:
        raise InputError(
            f"--rows-per-step {rows} is no multiple of {gpus} GPUs; "
            f"choose {-(-rows // gpus) * gpus}"
        )
    plans = [evaluate(job, way) for way in fixed.ways(job)]
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return min(plans, key=lambda plan: plan.gib)
    fastest = min(plan.speed.seconds for plan in fitting)
    close = [plan for plan in fitting if plan.speed.seconds <= 1.02 * fastest]
    return max(close, key=lambda plan: plan.way.rows_per_micro_batch)
