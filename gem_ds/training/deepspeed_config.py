"""The DeepSpeed JSON of a run, which the flags of `config` complete.

The JSON owns ZeRO, offload and precision; a value that flags own too is ``"auto"`` in it.
"""

import copy
import json
from pathlib import Path
from typing import Any

from gem_ds.errors import InputError
from gem_ds.training.config import TrainConfig

# What the trainer does itself, in DeepSpeed's words: a section that names it, with "auto" for every
# parameter, says nothing else. The values are flags.
_OWNED = {
    "optimizer": (
        ("AdamW", "Adam"),
        {
            "lr": "--learning-rate",
            "betas": "--beta1 and --beta2",
            "weight_decay": "--weight-decay",
            "eps": None,
        },
        "the optimizer is AdamW, set by --learning-rate, --beta1, --beta2 and --weight-decay",
    ),
    "scheduler": (
        ("WarmupCosineLR",),
        {
            "warmup_num_steps": "--warmup-steps",
            "total_num_steps": "--steps",
            "cos_min_ratio": "--final-rate",
            "warmup_min_ratio": None,
            "warmup_type": None,
        },
        "the rate warms up and falls as a cosine, set by --warmup-steps, --steps and --final-rate",
    ),
}


def read_json(path: str | Path) -> dict[str, Any]:
    """A DeepSpeed configuration file. Raises `InputError` where it is missing or no JSON object."""
    try:
        config = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; ds_configs/ has some") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; ds_configs/zero3.json is an example")
    return config


def resolve_deepspeed(
    raw: dict[str, Any],
    config: TrainConfig,
    world_size: int,
    hidden_size: int,
    bf16: bool = True,
    local_ranks: int = 1,
) -> dict[str, Any]:
    """The JSON with every ``"auto"`` filled.

    ``bf16.enabled`` is filled with `bf16`: whether the hardware computes in it. The sections
    ``optimizer`` and ``scheduler`` are left out where they say what the trainer does anyway.
    ``zero_hpz_partition_size`` is filled with `local_ranks`: the ranks of a machine.
    ZeRO-3's bucket sizes in elements are filled from the hidden size C as Transformers does
    (C², 0.9 C², 10 C), with floors that keep small models from many small collectives. Raises
    `InputError` where the JSON and a flag disagree, where the JSON sets what this trainer owns, or
    where an ``"auto"`` is left over.
    """
    resolved = copy.deepcopy(raw)
    for owned in _OWNED.keys() & resolved.keys():
        _check_owned(owned, resolved.pop(owned), config.deepspeed)
    if resolved.get("fp16", {}).get("enabled") is True:
        raise InputError(
            f"{config.deepspeed} enables fp16, in which gradients overflow; remove 'fp16' and "
            'write "bf16": {"enabled": "auto"}'
        )
    # The optimizer here is torch's fused AdamW, on a CPU too: as fast as DeepSpeed's own there, and
    # needing no compiler.
    resolved.setdefault("zero_force_ds_cpu_optimizer", False)
    bucket = max(hidden_size**2, 2**22)
    values: dict[str, tuple[Any, str | None]] = {
        "train_batch_size": (config.rows_per_step, "--rows-per-step"),
        "train_micro_batch_size_per_gpu": (config.rows_per_micro_batch, "--rows-per-micro-batch"),
        "gradient_accumulation_steps": (
            config.accumulation(world_size),
            "--rows-per-step / (--rows-per-micro-batch x ranks)",
        ),
        "gradient_clipping": (config.max_grad_norm, "--max-grad-norm"),
        "bf16.enabled": (bf16, None),
        "fp16.enabled": (False, None),
        "zero_optimization.reduce_bucket_size": (bucket, None),
        "zero_optimization.stage3_prefetch_bucket_size": (int(0.9 * bucket), None),
        "zero_optimization.stage3_param_persistence_threshold": (
            max(10 * hidden_size, 2**20),
            None,
        ),
        "zero_optimization.zero_hpz_partition_size": (local_ranks, None),
    }
    for path, (value, flag) in values.items():
        *parents, key = path.split(".")
        node = resolved
        for parent in parents:
            node = node.get(parent, {})
        if node.get(key) == "auto" or (flag and key not in node):
            node[key] = value
        elif flag and node[key] != value:
            raise InputError(
                f"{config.deepspeed} has {path} = {node[key]!r} but {flag} gives {value}; "
                'write "auto" in the JSON or give the same value in both'
            )
    zero = resolved.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == "auto" and key != "stage"]:
        del zero[key]  # DeepSpeed's own default
    states = resolved.get("bf16", {})
    if states.get("bf16_master_weights_and_grads") and not states.get("enabled"):
        raise InputError(
            f"{config.deepspeed}: states in bf16 need weights in bf16, which this hardware does "
            "not compute; leave out bf16_master_weights_and_grads and bf16_optimizer_states"
        )
    left = _autos(resolved)
    if left:
        raise InputError(
            f'{config.deepspeed}: nothing here fills the "auto" of {", ".join(left)}; write a '
            "value, or leave it out for DeepSpeed's default"
        )
    return resolved


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [p for key, value in node.items() for p in _autos(value, f"{path}.{key}".strip("."))]
    return [path] if node == "auto" else []


def _check_owned(name: str, section: Any, file: str) -> None:
    """Refuse a section that asks for another optimizer or schedule than the trainer's."""
    kinds, flags, does = _OWNED[name]
    section = section if isinstance(section, dict) else {}
    if section.get("type") not in kinds:
        raise InputError(f"{file}: remove {name!r}; {does}")
    for key, value in section.get("params", {}).items():
        if value != "auto":
            cure = f"give it as {flags[key]} and write " if flags.get(key) else "write "
            raise InputError(
                f'{file} sets {name}.params.{key}; {cure}"auto" here, or remove {name!r}'
            )
