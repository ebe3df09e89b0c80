"""gem_ds.ds_keys: typing errors in a DeepSpeed JSON, against what DeepSpeed itself reads."""

import copy
import re

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from gem_ds import ds_keys
from gem_ds.errors import InputError

TYPOS = {
    "zero_optimisation": ({"zero_optimisation": {"stage": 3}}, "mean 'zero_optimization'"),
    "bucket": (
        {"zero_optimization": {"stage3_prefetch_bucketsize": 1}},
        "mean 'stage3_prefetch_bucket_size'",
    ),
    "offload": (
        {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
        "'zero_optimization.offload_optimizer.devise'.* mean 'device'",
    ),
    "place": ({"reduce_bucket_size": 1}, "write it as zero_optimization.reduce_bucket_size"),
    "bf16": ({"bf16": {"enable": True}}, "mean 'enabled'"),
    "types": ({"data_types": {"grad_accum_type": "fp32"}}, "mean 'grad_accum_dtype'"),
    "clipping": ({"gradient_cliping": 1.0}, "mean 'gradient_clipping'"),
    "activations": (
        {"activation_checkpointing": {"partitioned_activations": True}},
        "mean 'partition_activations'",  # DeepSpeed's own example of this section has the typo
    ),
    "comms": ({"comms_logger": {"prof_al": True}}, "mean 'prof_all'"),
    "aio": ({"aio": {"blocksize": 1}}, "mean 'block_size'"),
    "profiler": ({"flops_profiler": {"profile_steps": 1}}, "mean 'profile_step'"),
    "monitor": ({"tensorboard": {"outputpath": "x"}}, "mean 'output_path'"),
    "timers": ({"timers": {"throughput": {"synchronised": True}}}, "mean 'synchronized'"),
    "checkpoint": ({"checkpoint": {"tag_validate": "Warn"}}, "mean 'tag_validation'"),
    "autocast": ({"torch_autocast": {"enable": True}}, "mean 'enabled'"),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typing_error_is_refused_with_what_was_meant(typo):
    raw, meant = TYPOS[typo]
    with pytest.raises(InputError, match=rf"my\.json: DeepSpeed knows no .*{meant}"):
        ds_keys.check(raw, "my.json")


class Recorder(dict):
    """A JSON that remembers which of its keys were asked for."""

    def __init__(self, content, asked):
        super().__init__(content)
        self.asked = asked

    def __copy__(self):
        return Recorder(self, self.asked)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def keys(self):
        return self  # whose `in` is recorded


def test_what_deepspeed_reads_is_known():
    asked = set()
    config = Recorder({"train_batch_size": 1}, asked)
    DeepSpeedConfig(config)
    assert "zero_optimization" in asked
    assert copy.copy(config).asked is asked
    removed = {"nebula", "compression_training", "amp", "quantize_training", "sparse_gradients"}
    removed |= {"eigenvalue", "sparse_attention", "elasticity", "graph_harvesting"}
    removed |= {"curriculum_learning", "progressive_layer_drop"}  # of which DeepSpeed says so
    assert asked - set(ds_keys.known()) <= removed


@pytest.mark.parametrize("key", [key for key, inside in ds_keys.known().items() if inside])
def test_the_keys_of_a_section_are_accepted(key):
    def filled(at):
        return {name: filled(inside) if inside else 1 for name, inside in at.items()}

    ds_keys.check({key: filled(ds_keys.known()[key])}, "my.json")


def test_groups_of_hpz_divide_a_machine_and_all_ranks():
    def config(group, stage=3):
        return {"zero_optimization": {"stage": stage, "zero_hpz_partition_size": group}}

    ds_keys.check_groups(config(8), 16, 8, "my.json")
    ds_keys.check_groups(config(1, stage=2), 3, 3, "my.json")
    for group, ranks, local in ((8, 12, 4), (3, 16, 8), (16, 16, 8)):
        with pytest.raises(InputError, match=re.escape(f"zero_hpz_partition_size {group} do not")):
            ds_keys.check_groups(config(group), ranks, local, "my.json")
    with pytest.raises(InputError, match="of ZeRO stage 3"):
        ds_keys.check_groups(config(2, stage=2), 2, 2, "my.json")
