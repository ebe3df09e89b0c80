"""Flags and the DeepSpeed JSON: filled, or refused in one sentence."""

import json

import pytest
from runs import ROOT

from gem_ds.config import TrainConfig, read_json, resolve_deepspeed
from gem_ds.errors import InputError


def config(**flags):
    return TrainConfig(
        **{"shards": "s", "output": "o", "deepspeed": "d.json", "model": "m", **flags}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_file_of_the_project_resolves(path):
    flags = config(rows_per_step=32, rows_per_micro_batch=2, max_grad_norm=0.7)
    resolved = resolve_deepspeed(read_json(path), flags, world_size=4, hidden_size=4096)
    assert resolved["train_batch_size"] == 32
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == 4
    assert resolved["gradient_clipping"] == 0.7
    assert resolved["zero_optimization"]["reduce_bucket_size"] == 4096**2
    assert resolved["data_types"]["grad_accum_dtype"] == "fp32"
    assert '"auto"' not in json.dumps(resolved)


def resolve(raw, **flags):
    return resolve_deepspeed(raw, config(**flags), world_size=2, hidden_size=64)


def test_a_value_in_both_places_must_agree():
    assert resolve({"gradient_clipping": 1.0})["gradient_clipping"] == 1.0
    with pytest.raises(InputError, match=r"gradient_clipping = 0.5 but --max-grad-norm gives 1.0"):
        resolve({"gradient_clipping": 0.5})
    with pytest.raises(InputError, match=r"train_batch_size = 7 but --rows-per-step gives 32"):
        resolve({"train_batch_size": 7})


def test_an_auto_that_nobody_fills_is_named():
    raw = {"zero_optimization": {"stage": 3, "offload_param": {"device": "auto"}}, "amp": "auto"}
    with pytest.raises(InputError, match=r"zero_optimization\.offload_param\.device, amp"):
        resolve(raw)


def test_what_the_trainer_owns_does_not_belong_in_the_json():
    with pytest.raises(InputError, match="remove 'scheduler'"):
        resolve({"scheduler": {"type": "WarmupLR"}})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")
    for text, message in (("{", "is not JSON"), ("[]", "no JSON object")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": None}, "either --model .* or --config"),
        ({"config": "c"}, "either --model .* or --config"),
        ({"lora_rank": 0}, "--lora-rank 0 is out of range"),
        ({"lora_alpha": 0.0}, "--lora-alpha 0.0 is out of range"),
        ({"adapter": "summary", "model": None, "config": "c"}, "--adapter summary needs a trained"),
        ({"alpha": 1.5}, "--alpha 1.5 is out of range"),
        ({"temperature": 0.5}, "--temperature 0.5 is out of range"),
        ({"prefix_dropout": 1.0}, "--prefix-dropout 1.0 is out of range"),
        ({"rows_per_step": 5, "rows_per_micro_batch": 2}, "no multiple of 4 .* choose 8"),
    ],
)
def test_flags_out_of_range(flags, message):
    with pytest.raises(InputError, match=message):
        config(**flags).check(world_size=2)


def test_good_flags_pass():
    config().check(world_size=2)
    assert config(rows_per_step=12, rows_per_micro_batch=2).accumulation(world_size=3) == 2
