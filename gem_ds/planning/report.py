"""A plan told to people: as text, and as a row of the table in docs/performance.md."""

import argparse
from collections.abc import Mapping

from gem_ds.planning.advice import cures, smallest
from gem_ds.planning.deepspeed_template import command
from gem_ds.planning.memory_estimate import GIB
from gem_ds.planning.plan_flags import fixed_of
from gem_ds.planning.strategy import Plan

GROUPS = {
    "states": "always there",
    "computing": "in the forward and backward passes",
    "moments": "the largest of",
    "stepping": "or, while the optimizer steps",
    "host": "in the host's memory, of each GPU's process",
    "first_host": "in the host's memory, of the first process besides",
}
LEAST = 0.005  # GiB that are worth a line
MOST = 1024  # GPUs


def text(plan: Plan, args: argparse.Namespace, deepspeed: str) -> str:
    """The whole report of the plan for parsed flags; `deepspeed` is the JSON of the run."""
    job, cluster = plan.job, plan.job.cluster
    whole = f"{job.shape.name}, {job.shape.n_parameters / 1e9:.2f} B parameters, on {cluster.gpus} "
    lines = [
        f"{whole}x {cluster.gpu.name} of {cluster.gpu.memory:g} GiB",
        _way(plan),
        "",
        "memory of a GPU, GiB",
        *_memory(plan),
        f"  {plan.gib:8.2f}  at the worst moment, of {plan.room:.1f} that can be filled",
        f"  {plan.host_gib:8.2f}  of a machine's own memory{_limit(plan)}",
        "",
        *_traffic(plan),
        *_speed(plan),
        "",
    ]
    lines += (
        ["start it with", f"  {command(plan, deepspeed)}"] if plan.fits else _misfit(plan, args)
    )
    least = smallest(job, fixed_of(args), MOST)
    if least is None:
        lines += [f"no number of these GPUs up to {MOST:,} fits, with flags as they are"]
    else:
        n, rows = least.job.cluster.gpus, least.config.rows_per_step
        more = f", with --rows-per-step {rows}" if rows != plan.config.rows_per_step else ""
        lines += [f"the smallest number of these GPUs that fits is {n} ({_how(least)}{more})"]
    return "\n".join(lines)


def _how(plan: Plan) -> str:
    way = plan.way
    if way.file is not None:
        return "this JSON"
    offload = {"none": "", "optimizer": ", optimizer in the host", "all": ", all in the host"}
    return f"ZeRO-{way.stage}{offload[way.offload]}"


def _rows(plan: Plan) -> str:
    n = plan.way.rows_per_micro_batch
    return "1 row" if n == 1 else f"{n} rows"


def _way(plan: Plan) -> str:
    way = plan.way
    layers = {0: "no layer", 1: "every layer"}.get(
        way.checkpoint_every, f"one layer of {way.checkpoint_every}"
    )
    states = ", states in bf16" if way.bf16_states else ""
    return (
        f"{_how(plan)}{states}; {_rows(plan)} of {plan.job.data.row_length} "
        f"tokens a micro-batch ({plan.stream_tokens:,} tokens with views), {plan.micro_batches} a "
        f"step; {layers} computed again"
    )


def _memory(plan: Plan) -> list[str]:
    lines = []
    for group, told in GROUPS.items():
        parts: Mapping[str, float] = getattr(plan.memory, group)
        shown = {name: n / GIB for name, n in parts.items() if n / GIB >= LEAST}
        if shown:
            lines.append(f"  {told}")
            lines += [f"  {gib:8.2f}    {name}" for name, gib in shown.items()]
    return lines


def _limit(plan: Plan) -> str:
    return f", of {plan.job.host_memory:g}" if plan.job.host_memory else ""


def _traffic(plan: Plan) -> list[str]:
    t = plan.traffic
    volumes = {
        "weights gathered, all ranks": t.weights.gathered,
        "weights gathered, inside groups": t.weights_inside.gathered,
        "gradients reduced to parts": t.gradients.scattered,
        "gradients reduced to all": t.gradients.reduced,
        "contrastive": t.contrastive.gathered + t.contrastive.reduced,
    }
    shown = [f"  {n / 1e9:8.2f}  {name}" for name, n in volumes.items() if n]
    return ["traffic of a step, GB of whole tensors", *shown, ""] if shown else []


def _speed(plan: Plan) -> list[str]:
    s, job = plan.speed, plan.job
    lines = [
        f"a step, seconds: {s.seconds:.2f} predicted (computing {s.computing:.2f}, traffic "
        f"{s.traffic:.2f}, after them {s.after:.2f})",
        f"{plan.tokens_per_second:,.0f} tokens a second, "
        f"{plan.tokens_per_second / job.cluster.gpus:,.0f} a GPU; MFU {s.mfu:.0%} (with "
        f"recomputation {s.mfu * s.hardware_flops / s.model_flops:.0%})",
    ]
    cost = f", {plan.cost:,.0f} at {job.price:g} a GPU and hour" if job.price else ""
    run = f"{plan.config.steps:,} steps, {job.tokens:,} tokens: {plan.hours:,.1f} hours{cost}"
    return [*lines, run]


def _misfit(plan: Plan, args: argparse.Namespace) -> list[str]:
    """What does not fit, and what would."""
    job, lines = plan.job, []
    who = "the GPU" if job.cluster.gpus == 1 else f"each of {job.cluster.gpus} GPUs"
    how = f"{_how(plan)} and {_rows(plan)} a micro-batch"
    if not plan.fits_gpu:
        lines += [
            f"DOES NOT FIT: with {how} {who} needs {plan.gib:.1f} GiB, and {plan.room:.1f} can be "
            "filled"
        ]
    if not plan.fits_host:
        lines += [
            f"DOES NOT FIT: with {how} a machine needs {plan.host_gib:.1f} GiB of its own memory, "
            f"and has {job.host_memory:g}"
        ]
    return lines + [
        f"  {change} fits: {cure.gib:.1f} GiB, {cure.tokens_per_second:,.0f} tokens a second"
        for change, cure in cures(args, plan).items()
    ]


def row(name: str, plan: Plan) -> str:
    """A line of a Markdown table: file, GPUs, GiB of a GPU and host, tokens a second, MFU."""
    cluster = plan.job.cluster
    cells = [
        f"`{name}`",
        f"{cluster.gpus} x {cluster.gpu.name}, {cluster.gpu.memory:g} GiB",
        f"{plan.way.rows_per_micro_batch} x {plan.job.data.row_length}",
        f"{plan.gib:.1f}",
        f"{plan.host_gib:.0f}",
        f"{plan.tokens_per_second / cluster.gpus:,.0f}",
        f"{plan.speed.mfu:.0%}",
    ]
    return f"| {' | '.join(cells)} |"
