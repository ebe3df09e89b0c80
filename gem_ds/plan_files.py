"""The DeepSpeed JSON and the head of a SLURM script that a plan comes to.

What depends on the number of ranks or on flags is ``"auto"``, and filled when the run starts
(`ds_json`).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gem_ds.config import TrainConfig
from gem_ds.ds_json import resolve_deepspeed
from gem_ds.files import replacing
from gem_ds.speed import Cluster
from gem_ds.ways import Plan, Way

SCARCE = 40  # GiB of a GPU below which few weights are kept whole
LIVE = 300_000_000  # elements of them then
LARGE = 4096  # hidden size from which prefetching is set
# Elements that a model of that size fetches ahead at once, and reduces at once between machines:
# 100 and 200 MB, so that a collective's latency is small beside its time.
AHEAD, AHEAD_OF_MACHINES = 50_000_000, 100_000_000


def deepspeed_json(way: Way, cluster: Cluster, hidden: int) -> dict[str, Any]:
    """The JSON for a way to train a model of this width, with ``"auto"`` where flags decide.

    Communication always goes on beside computing (``overlap_comm``).
    """
    zero: dict[str, Any] = {
        "stage": way.stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if way.stage == 2:
        # Else every bucket is reduced to all ranks, which is twice the traffic.
        zero["use_multi_rank_bucket_allreduce"] = False
    else:
        zero["stage3_prefetch_bucket_size"] = "auto"
        zero["stage3_param_persistence_threshold"] = "auto"
        if cluster.gpu.memory < SCARCE:
            zero["stage3_max_live_parameters"] = zero["stage3_max_reuse_distance"] = LIVE
        elif hidden >= LARGE and cluster.gpus > 1:
            zero["stage3_prefetch_bucket_size"] = AHEAD
        if cluster.nodes > 1:
            zero["zero_hpz_partition_size"] = "auto"
            if hidden >= LARGE:
                for name in ("stage3_prefetch_bucket_size", "reduce_bucket_size"):
                    zero[name] = AHEAD_OF_MACHINES
    to_host = {"device": "cpu", "pin_memory": True}
    if way.offload != "none":
        zero["offload_optimizer"] = to_host
    if way.offload == "all":
        zero["offload_param"] = to_host
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
        "zero_optimization": zero,
        "steps_per_print": 1_000_000_000,
    }


def resolved(rows_per_step: int, cluster: Cluster, hidden: int, way: Way) -> dict[str, Any]:
    """The JSON as a run on these GPUs would fill it."""
    raw = way.file if way.file is not None else deepspeed_json(way, cluster, hidden)
    config = TrainConfig(
        shards="",
        output="",
        deepspeed="--deepspeed",
        rows_per_step=rows_per_step,
        rows_per_micro_batch=way.rows_per_micro_batch,
    )
    here = min(cluster.gpus, cluster.per_node)
    return resolve_deepspeed(raw, config, cluster.gpus, hidden, way.bf16, here)


def write_json(plan: Plan, path: Path) -> None:
    """Write the DeepSpeed JSON of a plan."""
    raw = plan.way.file or deepspeed_json(plan.way, plan.job.cluster, plan.job.shape.hidden)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(raw, indent=2) + "\n")


def train_flags(plan: Plan, deepspeed: str) -> list[str]:
    """Flags of ``launch/train.py`` that the plan stands for."""
    flags = {
        "deepspeed": deepspeed,
        "rows-per-step": plan.job.rows_per_step,
        "rows-per-micro-batch": plan.way.rows_per_micro_batch,
    }
    if not plan.way.checkpoint_every:
        flags["gradient-checkpointing"] = "false"
    return [f"--{name} {value}" for name, value in flags.items()]


def sbatch(plan: Plan, deepspeed: str) -> str:
    """A script that submits the run: options of sbatch, then ``launch/slurm/train.sbatch``."""
    cluster = plan.job.cluster
    here = min(cluster.gpus, cluster.per_node)
    hours = max(1, min(24, round(plan.hours + 1))) if plan.job.tokens else 24
    lines = [
        "#!/bin/bash",
        f"# {plan.gib:.0f} GiB of each GPU's {cluster.gpu.memory:g}, "
        f"{plan.tokens_per_second:,.0f} tokens a second, by launch/plan.py. From the repository's",
        "# root, with MODEL, SHARDS and OUTPUT set:",
        f"sbatch --nodes {cluster.nodes} --gpus-per-node {here} --ntasks-per-node {here} \\",
        f"    --time {hours:02d}:00:00 launch/slurm/train.sbatch \\",
        '    --model "$MODEL" --shards "$SHARDS" --output "$OUTPUT" \\',
        f'    {" ".join(train_flags(plan, deepspeed))} "$@"',
    ]
    return "\n".join(lines) + "\n"


def as_dict(plan: Plan) -> dict[str, Any]:
    """All figures of a plan, for ``--json``."""
    memory = {name: value for name, value in vars(plan.memory).items() if value}
    return {
        "model": plan.job.shape.name,
        "parameters": plan.job.shape.n_parameters,
        "gpus": plan.job.cluster.gpus,
        "fits": plan.fits,
        "gib": plan.gib,
        "host_gib": plan.host_gib,
        "memory": memory,
        "way": {name: value for name, value in asdict(plan.way).items() if name != "file"},
        "deepspeed": plan.deepspeed,
        "traffic": asdict(plan.traffic),
        "speed": asdict(plan.speed),
        "tokens_per_second": plan.tokens_per_second,
        "hours": plan.hours,
        "cost": plan.cost,
    }
