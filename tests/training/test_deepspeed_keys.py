"""gem_ds.training.deepspeed_keys: typing errors in a DeepSpeed JSON, against what DeepSpeed itself
reads."""

import copy
import re

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from gem_ds.errors import InputError
from gem_ds.training import deepspeed_keys

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
        deepspeed_keys.check(raw, "my.json")


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
    assert asked - set(deepspeed_keys.known()) <= removed


DEPRECATED = {
    *("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
    "stage3_gather_fp16_weights_on_model_save",
}


def test_deepspeed_itself_calls_these_deprecated():
    fields = DeepSpeedZeroConfig.model_fields.items()
    found = {name for name, info in fields if (info.json_schema_extra or {}).get("deprecated")}
    assert found == DEPRECATED


@pytest.mark.parametrize("key", [key for key, inside in deepspeed_keys.known().items() if inside])
def test_the_keys_of_a_section_are_accepted(key):
    def filled(at):
        return {name: filled(inside) if inside else 1 for name, inside in at.items()}

    section = filled(deepspeed_keys.known()[key])
    current = {name: value for name, value in section.items() if name not in DEPRECATED}
    if key != "bfloat16":
        deepspeed_keys.check({key: current}, "my.json")


REMOVED = {
    "scale": ({"bf16": {"enabled": "auto", "loss_scale": 0}}, "remove bf16.loss_scale: .*fp16"),
    "scale at the top": ({"hysteresis": 2}, "remove hysteresis: it is of fp16, and bf16 needs"),
    "fp16's name": ({"bf16": {"fp16_master_weights_and_grads": 1}}, "mean 'bf16_master_weights"),
    "of the optimizer": ({"params": {}}, "remove params: it is of optimizer, and flags set it"),
    "another tool's": ({"amp": {"enabled": True}}, "'amp' .*; remove it"),
    "of many sections": ({"zero_optimization": {"enabled": True}}, "; remove it"),
    "of two": ({"zero_optimization": {"device": "cpu"}}, "offload_param.device or zero_opt.*mizer"),
    "offload": ({"zero_optimization": {"cpu_offload": True}}, 'write "offload_optimizer": {"dev'),
    "old bf16": ({"bfloat16": {"enabled": True}}, "bfloat16 is deprecated; write bf16"),
    "no section": ({"bf16": True}, "bf16 is True; remove it, or write an object"),
    "null": ({"zero_optimization": None}, "zero_optimization is None; remove it"),
}


@pytest.mark.parametrize("case", REMOVED)
def test_what_has_no_other_place_is_to_be_removed(case):
    raw, cure = REMOVED[case]
    with pytest.raises(InputError, match=rf"my\.json: .*{cure}"):
        deepspeed_keys.check(raw, "my.json")


VALUES = {
    "stage": ({"stage": 7}, "DeepSpeedZeroConfig refuses stage: Input should be 0, 1, 2"),
    "size": ({"stage": 3, "reduce_bucket_size": -5}, "reduce_bucket_size: .*greater than 0"),
    "device": ({"stage": 3, "offload_param": {"device": "gpu"}}, "offload_param.device: .*'cpu'"),
    "section": ({"stage": 3, "offload_param": "cpu"}, "offload_param: .*dictionary"),
    "no stage": ({}, 'leaves ZeRO off, .*"zero_optimization": {"stage": 1}'),
    "ignored": ({"stage": 2, "offload_param": {"device": "cpu"}}, ".*offload_param below stage 3"),
    "stage 0": ({"stage": 0}, "leaves ZeRO off"),
}


@pytest.mark.parametrize("case", VALUES)
def test_what_deepspeed_refuses_is_one_sentence(case):
    zero, said = VALUES[case]
    with pytest.raises(InputError, match=rf"my\.json.* {said}") as raised:
        deepspeed_keys.check_values({"zero_optimization": zero}, "my.json")
    assert "\n" not in str(raised.value)


def test_values_of_other_sections_and_good_ones():
    good = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}
    deepspeed_keys.check_values(
        {**good, "train_batch_size": 32, "gradient_clipping": 1.0}, "my.json"
    )
    for wrong in ({"bf16": {"enabled": "maybe"}}, {"communication_data_type": "int8"}):
        with pytest.raises(InputError, match=r"my\.json"):
            deepspeed_keys.check_values({**good, **wrong}, "my.json")


def test_groups_of_hpz_divide_a_machine_and_all_ranks():
    def config(group, stage=3):
        return {"zero_optimization": {"stage": stage, "zero_hpz_partition_size": group}}

    deepspeed_keys.check_groups(config(8), 16, 8, "my.json")
    deepspeed_keys.check_groups(config(1, stage=2), 3, 3, "my.json")
    for group, ranks, local in ((8, 12, 4), (3, 16, 8), (16, 16, 8)):
        with pytest.raises(InputError, match=re.escape(f"zero_hpz_partition_size {group} do not")):
            deepspeed_keys.check_groups(config(group), ranks, local, "my.json")
    with pytest.raises(InputError, match="of ZeRO stage 3"):
        deepspeed_keys.check_groups(config(2, stage=2), 2, 2, "my.json")
