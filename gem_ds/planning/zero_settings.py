"""What a plan needs to know of a DeepSpeed JSON: how ZeRO spreads a model over ranks.

The JSON itself is in `training.deepspeed_config`, and what DeepSpeed would not understand in it
that of `training.deepspeed_keys`. Sizes of buckets are in elements, as in the JSON.
"""

from dataclasses import dataclass
from typing import Any

from gem_ds.errors import InputError


@dataclass(frozen=True)
class Zero:
    """ZeRO's settings with DeepSpeed's defaults."""

    stage: int = 3
    offload_optimizer: bool = False
    offload_param: bool = False
    hpz: int = 1  # ranks that share a second copy of the weights
    overlap: bool = True
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    persistence: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    multi_rank_allreduce: bool = True
    bf16: bool = True
    bf16_states: bool = False  # master weights, gradients and AdamW's moments in bf16
    fp32_accumulation: bool = True

    @property
    def weight_bytes(self) -> int:
        return 2 if self.bf16 else 4

    @property
    def accumulation_bytes(self) -> int:
        return 4 if self.fp32_accumulation else self.weight_bytes

    @property
    def state_bytes(self) -> int:
        """Of a master weight, and of each of AdamW's moments."""
        return 2 if self.bf16_states else 4


def of_json(resolved: dict[str, Any]) -> Zero:
    """The settings of a resolved JSON. Raises `InputError` for what is not planned."""
    zero = resolved.get("zero_optimization", {})
    if resolved.get("fp16", {}).get("enabled"):
        raise InputError("fp16 is not planned, nor trained with; use bf16, or neither for fp32")
    bf16 = resolved.get("bf16", {})
    stage = zero.get("stage", 0)
    if stage not in (2, 3):
        raise InputError(f"ZeRO stage {stage} is not planned; give 2 or 3")
    devices = {
        name: (zero.get(name) or {}).get("device", "none")
        for name in ("offload_optimizer", "offload_param")
    }
    if "nvme" in devices.values():
        raise InputError("offload to NVMe is not planned; give the device cpu")
    defaults = Zero()

    def size(name: str, default: int) -> int:
        value = zero.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise InputError(f"zero_optimization.{name} is {value!r}; give a number of elements")
        return int(value)

    return Zero(
        stage=stage,
        offload_optimizer=devices["offload_optimizer"] == "cpu",
        offload_param=devices["offload_param"] == "cpu",
        hpz=zero.get("zero_hpz_partition_size", 1),
        overlap=zero.get("overlap_comm", stage == 3),
        reduce_bucket=size("reduce_bucket_size", defaults.reduce_bucket),
        prefetch_bucket=size("stage3_prefetch_bucket_size", defaults.prefetch_bucket),
        persistence=size("stage3_param_persistence_threshold", defaults.persistence),
        max_live=size("stage3_max_live_parameters", defaults.max_live),
        max_reuse=size("stage3_max_reuse_distance", defaults.max_reuse),
        sub_group=size("sub_group_size", defaults.sub_group),
        multi_rank_allreduce=zero.get("use_multi_rank_bucket_allreduce", True),
        bf16=bf16.get("enabled", False),
        bf16_states=bf16.get("bf16_optimizer_states", False),
        fp32_accumulation=resolved.get("data_types", {}).get("grad_accum_dtype") == "fp32",
    )
