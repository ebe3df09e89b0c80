"""A plan told to people: as text, and as a row of the table in docs/performance.md."""

from collections.abc import Mapping

from gem_ds import hardware
from gem_ds.memory import GIB
from gem_ds.plan import Fixed, cures, smallest
from gem_ds.plan_files import train_flags
from gem_ds.ways import Plan

GROUPS = {
    "states": "always there",
    "computing": "in the forward and backward passes",
    "moments": "the largest of",
    "stepping": "or, while the optimizer steps",
    "host": "in the host's memory",
}
LEAST = 0.005  # GiB that are worth a line


def text(plan: Plan, fixed: Fixed) -> str:
    """The whole report."""
    job, cluster = plan.job, plan.job.cluster
    whole = f"{job.shape.name}, {job.shape.n_parameters / 1e9:.2f} B parameters, on {cluster.gpus} "
    lines = [
        f"{whole}x {cluster.gpu.name} of {cluster.gpu.memory:g} GiB",
        _way(plan),
        "",
        "memory of a GPU, GiB",
        *_memory(plan),
        f"  {plan.gib:8.2f}  at the worst moment, of {_room(plan):.1f} that can be filled",
        "",
        *_traffic(plan),
        "",
        *_speed(plan),
        "",
    ]
    if plan.fits:
        lines += ["python launch/train.py needs " + " ".join(train_flags(plan, "JSON"))]
    else:
        lines += _does_not_fit(plan, fixed)
    least = smallest(job, fixed)
    if least is None:
        lines += ["no number of GPUs up to 1024 is enough for this way"]
    else:
        n = least.job.cluster.gpus
        lines += [f"the smallest number of these GPUs that fits is {n} ({_how(least)})"]
    return "\n".join(lines)


def _how(plan: Plan) -> str:
    way = plan.way
    if way.file is not None:
        return "with this JSON"
    offload = {"none": "", "optimizer": ", optimizer in the host", "all": ", all in the host"}
    return f"ZeRO-{way.stage}{offload[way.offload]}"


def _way(plan: Plan) -> str:
    way = plan.way
    layers = {0: "no layer", 1: "every layer"}.get(
        way.checkpoint_every, f"one layer of {way.checkpoint_every}"
    )
    states = ", states in bf16" if way.bf16_states else ""
    return (
        f"{_how(plan)}{states}; {way.rows_per_micro_batch} rows of {plan.job.data.row_length} "
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


def _room(plan: Plan) -> float:
    return hardware.MEMORY * plan.job.cluster.gpu.memory


def _traffic(plan: Plan) -> list[str]:
    t = plan.traffic
    volumes = {
        "weights gathered, all ranks": t.weights.gathered,
        "weights gathered, inside groups": t.weights_inside.gathered,
        "gradients reduced to parts": t.gradients.scattered,
        "gradients reduced to all": t.gradients.reduced,
        "contrastive": t.contrastive.gathered + t.contrastive.reduced,
    }
    lines = ["traffic of a step, GB of whole tensors"]
    return lines + [f"  {n / 1e9:8.2f}  {name}" for name, n in volumes.items() if n]


def _speed(plan: Plan) -> list[str]:
    s, job = plan.speed, plan.job
    lines = [
        f"a step, seconds: {s.seconds:.2f} predicted (computing {s.computing:.2f}, traffic "
        f"{s.traffic:.2f}, after them {s.after:.2f})",
        f"{plan.tokens_per_second:,.0f} tokens a second, "
        f"{plan.tokens_per_second / job.cluster.gpus:,.0f} a GPU; MFU {s.mfu:.0%} (with "
        f"recomputation {s.mfu * s.hardware_flops / s.model_flops:.0%})",
    ]
    if job.tokens:
        cost = f", {plan.cost:,.0f} at {job.price:g} a GPU and hour" if job.price else ""
        steps = job.tokens / job.rows_per_step / job.data.row_length
        lines += [f"{job.tokens:,.0f} tokens: {steps:,.0f} steps, {plan.hours:,.1f} hours{cost}"]
    return lines


def _does_not_fit(plan: Plan, fixed: Fixed) -> list[str]:
    lines = [f"DOES NOT FIT: {plan.gib:.1f} GiB of {_room(plan):.1f}"]
    if plan.job.host_memory and plan.host_gib > plan.job.host_memory:
        lines = [f"DOES NOT FIT: {plan.host_gib:.0f} GiB of the host's {plan.job.host_memory:g}"]
    found = cures(plan.job, fixed)
    lines += [
        f"  {flag} fits: {cure.gib:.1f} GiB, {cure.tokens_per_second:,.0f} tokens a second"
        for flag, cure in found.items()
    ]
    return lines if found else [*lines, "  no single change of these GPUs' use does"]


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
