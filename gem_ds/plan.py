"""A run before it starts: memory, traffic, speed and cost of a way to train, and which way is best.

`evaluate` says what one way needs; `best` compares those that are open (ZeRO stage, offload, rows a
micro-batch) by predicted speed; `smallest` finds how few GPUs suffice, and `cures` what would make
one fit that does not. How it is told is the business of `plan_report`, the DeepSpeed JSON that of
`plan_files`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from gem_ds import communication, expected, flops, memory, speed, zero
from gem_ds.communication import Base
from gem_ds.errors import InputError
from gem_ds.plan_files import resolved
from gem_ds.visits import Trace, Trained
from gem_ds.ways import OFFLOADS, Job, Offload, Plan, Way


def evaluate(job: Job, way: Way) -> Plan:
    """What a way needs. Raises `InputError` where the rows do not divide."""
    ranks, together = job.cluster.gpus, job.cluster.gpus * way.rows_per_micro_batch
    if job.rows_per_step % together:
        raise InputError(
            f"--rows-per-step {job.rows_per_step} is no multiple of {together} "
            f"(--rows-per-micro-batch {way.rows_per_micro_batch} on {ranks} GPUs); "
            f"choose {-(-job.rows_per_step // together) * together}"
        )
    micro_batches = job.rows_per_step // together
    shape = job.shape.with_summary_tokens(job.data.summary_tokens)
    settled = resolved(job.rows_per_step, job.cluster, shape.hidden, way)
    settings = zero.of_json(settled)
    adapted = job.adapter != "none"
    trained = Trained(job.adapter, job.lora_rank * adapted, job.data.summary_tokens)
    n_reference = job.data.row_length * way.rows_per_micro_batch
    chunks = -(-n_reference // memory.CHUNK) if job.kl_to_base else 0
    trace = Trace(shape, trained, way.checkpoint_every, chunks)
    base = Base(job.shape, chunks) if chunks else None
    plans = []
    for alpha in _alphas(job):
        stream = expected.stream(
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
        work = memory.Work(
            counts,
            stream.n_anchors,
            1 + (job.negatives == "all"),
            way.checkpoint_every,
        )
        needed = memory.of_rank(shape, trace, settings, ranks, work, traffic, base)
        predicted = speed.predict(
            shape,
            trace,
            settings,
            job.cluster,
            counts,
            micro_batches,
            traffic,
            cast(flops.Trained, job.adapter if adapted else "all"),
            trained.lora_rank,
            way.checkpoint_every,
        )
        length = counts.tokens + counts.first_tokens
        plan = Plan(job, way, settled, needed, traffic, predicted, micro_batches, length)
        plans.append(plan)
    # The last is what most steps are; memory must suffice for all.
    heaviest = max(plans, key=lambda plan: plan.gib)
    return replace(plans[-1], memory=heaviest.memory)


def _alphas(job: Job) -> list[float]:
    """The mixtures of losses that the schedule has, the final one last."""
    return [0.0, job.alpha] if job.alpha_start and job.alpha else [job.alpha]


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
        each = job.rows_per_step // job.cluster.gpus
        fitting = [n for n in (2**i for i in range(12)) if each and each % n == 0]
        rows = [self.rows_per_micro_batch] if self.rows_per_micro_batch else fitting
        for offload in (
            ("none",) if settled else OFFLOADS if self.offload is None else (self.offload,)
        ):
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
    plans = [evaluate(job, way) for way in fixed.ways(job)]
    if not plans:
        raise InputError(
            f"--rows-per-step {job.rows_per_step} is no multiple of {job.cluster.gpus} GPUs"
        )
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return min(plans, key=lambda plan: plan.gib)
    fastest = min(plan.speed.seconds for plan in fitting)
    close = [plan for plan in fitting if plan.speed.seconds <= 1.02 * fastest]
    return max(close, key=lambda plan: plan.way.rows_per_micro_batch)


def smallest(job: Job, fixed: Fixed, most: int = 1024) -> Plan | None:
    """The plan on as few GPUs as suffice, whole machines beyond one; None where `most` do not."""
    per_node = job.cluster.per_node
    sizes = [n for n in range(1, per_node + 1) if per_node % n == 0]
    sizes += range(2 * per_node, most + 1, per_node)
    for gpus in sizes:
        # As many rows as it takes: a step on more GPUs cannot have fewer than one each.
        rows = -(-job.rows_per_step // gpus) * gpus
        cluster = replace(job.cluster, gpus=gpus)
        found = best(replace(job, cluster=cluster, rows_per_step=rows), fixed)
        if found.fits:
            return found
    return None


def cures(job: Job, fixed: Fixed) -> dict[str, Plan]:
    """Changes of one kind each that make a job fit, by the flags that ask for them."""
    found = {}
    tries: dict[str, Fixed] = {
        "--checkpoint-every 1": replace(fixed, checkpoint_every=1),
        "--rows-per-micro-batch 1": replace(fixed, rows_per_micro_batch=1),
        "--zero-stage 3": replace(fixed, stage=3, file=None),
        "--offload optimizer": replace(fixed, stage=3, offload="optimizer", file=None),
        "--offload all": replace(fixed, stage=3, offload="all", file=None),
        "--bf16-states": replace(fixed, bf16_states=True, file=None),
    }
    for flag, changed in tries.items():
        if changed != fixed:
            plan = best(job, changed)
            if plan.fits:
                found[flag] = plan
    if job.adapter == "none":
        adapted = replace(job, adapter="summary", lora_rank=32, alpha=1.0, kl_to_base=0.0)
        plan = best(adapted, fixed)
        if plan.fits:
            found["--recipe lossless"] = plan
    return found
