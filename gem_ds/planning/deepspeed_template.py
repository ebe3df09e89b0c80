"""The DeepSpeed JSON and the head of a SLURM script that a plan comes to.

What depends on the number of ranks or on flags is ``"auto"``, and filled when the run starts
(`training.deepspeed_config`).
"""

import json
import math
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from gem_ds.files import replacing
from gem_ds.model import architecture
from gem_ds.planning import zero_settings
from gem_ds.planning.speed import Cluster
from gem_ds.planning.strategy import Plan, Way
from gem_ds.training.config import TrainConfig
from gem_ds.training.deepspeed_config import resolve_deepspeed
from gem_ds.training.recipes import RECIPES

SCARCE = 40  # GiB of a GPU below which few weights are kept whole
LIVE = 300_000_000  # elements of them then
LARGE = 4096  # hidden size from which prefetching is set
# Elements that a model of that size fetches ahead at once, and reduces at once between machines:
# 100 and 200 MB, so that a collective's latency is small beside its time.
AHEAD, AHEAD_OF_MACHINES = 50_000_000, 100_000_000
UNKNOWN = ("model", "shards", "output")  # flags whose value a plan may not know
NAMED = ("recipe", "steps", "rows_per_step", "rows_per_micro_batch")  # flags to be written always


def deepspeed_json(way: Way, cluster: Cluster, hidden: int) -> dict[str, Any]:
    """The JSON for a way to train a model of this width, with ``"auto"`` where flags decide.

    Communication always goes on beside computing (``overlap_comm``).
    """
    settings: dict[str, Any] = {
        "stage": way.stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if way.stage == 2:
        # Else every bucket is reduced to all ranks, which is twice the traffic.
        settings["use_multi_rank_bucket_allreduce"] = False
    else:
        settings["stage3_prefetch_bucket_size"] = "auto"
        settings["stage3_param_persistence_threshold"] = "auto"
        if cluster.gpu.memory < SCARCE:
            settings["stage3_max_live_parameters"] = settings["stage3_max_reuse_distance"] = LIVE
        elif hidden >= LARGE and cluster.gpus > 1:
            settings["stage3_prefetch_bucket_size"] = AHEAD
        if cluster.nodes > 1:
            settings["zero_hpz_partition_size"] = "auto"
            if hidden >= LARGE:
                for name in ("stage3_prefetch_bucket_size", "reduce_bucket_size"):
                    settings[name] = AHEAD_OF_MACHINES
    to_host = {"device": "cpu", "pin_memory": True}
    if way.offload != "none":
        settings["offload_optimizer"] = to_host
    if way.offload == "all":
        settings["offload_param"] = to_host
    bf16: dict[str, Any] = {"enabled": "auto"}
    if way.bf16_states:
        bf16 |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": bf16,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": settings,
        "steps_per_print": 1_000_000_000,
    }


def resolved(config: TrainConfig, cluster: Cluster, hidden: int, way: Way) -> dict[str, Any]:
    """The JSON as a run with these flags, on these GPUs, would fill it."""
    raw = way.file if way.file is not None else deepspeed_json(way, cluster, hidden)
    told = replace(config, deepspeed="--deepspeed", rows_per_micro_batch=way.rows_per_micro_batch)
    return resolve_deepspeed(raw, told, cluster.gpus, hidden, way.bf16, cluster.here)


def write_json(plan: Plan, path: Path) -> None:
    """Write the DeepSpeed JSON of a plan."""
    raw = plan.way.file or deepspeed_json(plan.way, plan.job.cluster, plan.job.shape.hidden)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(raw, indent=2) + "\n")


def train_flags(plan: Plan, deepspeed: str) -> dict[str, str]:
    """The flags of ``launch/train.py`` that the plan stands for, by name.

    Those are all whose value is not the recipe's. Left out is what the plan does not know: the
    output, shards that were not given, and a model of which it had the sizes alone.
    """
    config = replace(plan.config, deepspeed=deepspeed)
    values = asdict(config)
    if str(config.model).lower() in architecture.BUILT_IN or not Path(str(config.model)).is_dir():
        values["model"] = ""
    usual = {field.name: field.default for field in fields(TrainConfig)} | RECIPES[config.recipe]
    usual |= dict.fromkeys(UNKNOWN, "")
    changed = [name for name in values if name in NAMED or values[name] != usual[name]]
    return {f"--{name.replace('_', '-')}": _typed(values[name]) for name in changed}


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def command(plan: Plan, deepspeed: str) -> str:
    """The command that starts the run, with words in capitals for what the plan does not know."""
    cluster, flags = plan.job.cluster, train_flags(plan, deepspeed)
    launcher = (
        ["--num_gpus", str(cluster.gpus)] if cluster.nodes == 1 else ["--hostfile", "HOSTFILE"]
    )
    unknown = {f"--{name}": name.upper() for name in UNKNOWN if f"--{name}" not in flags}
    words = [word for pair in (flags | unknown).items() for word in pair]
    return shlex.join(["deepspeed", *launcher, "launch/train.py", *words])


def sbatch(plan: Plan, deepspeed: str) -> str:
    """A script that submits the run: options of sbatch, then ``launch/slurm/train.sbatch``."""
    cluster, data, flags = plan.job.cluster, plan.job.data, train_flags(plan, deepspeed)
    hours = max(1, min(24, math.ceil(plan.hours + 1)))
    known = [f"{name} {shlex.quote(value)}" for name, value in flags.items()]
    unknown = [name for name in UNKNOWN if f"--{name}" not in flags]
    missing = [f'--{name} "${{{name.upper()}:?not set}}"' for name in unknown]
    words = " and ".join(name.upper() for name in unknown)
    lines = [
        "#!/bin/bash",
        f"# By launch/plan.py, for rows of {data.row_length} tokens and {data.summary_tokens} "
        "summary tokens:",
        f"# {plan.gib:.0f} GiB of each GPU's {cluster.gpu.memory:g}, {plan.host_gib:.0f} GiB of a "
        f"machine's own, {plan.tokens_per_second:,.0f} tokens a second.",
        f"# From the repository's root, with {words} in the environment:",
        f"sbatch --nodes {cluster.nodes} --gpus-per-node {cluster.here} "
        f"--ntasks-per-node {cluster.here} \\",
        f"    --time {hours:02d}:00:00 launch/slurm/train.sbatch \\",
        f"    {' '.join(missing)} \\",
        f'    {" ".join(known)} "$@"',
    ]
    return "\n".join(lines) + "\n"


def write_sbatch(plan: Plan, deepspeed: str, path: Path) -> None:
    """Write the script that submits the run."""
    with replacing(path) as temporary:
        temporary.write_text(sbatch(plan, deepspeed))


def as_dict(plan: Plan, deepspeed: str) -> dict[str, Any]:
    """All figures of a plan, for ``--json``."""
    memory = {name: value for name, value in vars(plan.memory).items() if value}
    settings = zero_settings.of_json(plan.deepspeed)
    offloaded = "optimizer" if settings.offload_optimizer else "none"
    way = {
        "stage": settings.stage,
        "offload": "all" if settings.offload_param else offloaded,
        "rows_per_micro_batch": plan.way.rows_per_micro_batch,
        "checkpoint_every": plan.way.checkpoint_every,
        "bf16_states": settings.bf16_states,
        "bf16": settings.bf16,
    }
    return {
        "model": plan.job.shape.name,
        "parameters": plan.job.shape.n_parameters,
        "gpus": plan.job.cluster.gpus,
        "fits": plan.fits,
        "gib": plan.gib,
        "host_gib": plan.host_gib,
        "memory": memory,
        "way": way,
        "flags": train_flags(plan, deepspeed),
        "deepspeed": plan.deepspeed,
        "traffic": asdict(plan.traffic),
        "speed": asdict(plan.speed),
        "tokens_per_second": plan.tokens_per_second,
        "steps": plan.config.steps,
        "hours": plan.hours,
        "cost": plan.cost,
    }
