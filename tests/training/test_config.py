"""Flags and the DeepSpeed JSON: filled, or refused in one sentence."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from runs import ROOT

from gem_ds.errors import InputError
from gem_ds.flags import parser_of
from gem_ds.training.config import TrainConfig
from gem_ds.training.deepspeed_config import read_json, resolve_deepspeed
from gem_ds.training.recipes import DEFAULT, RECIPES, defaults


def config(**flags):
    return TrainConfig(
        **{"shards": "s", "output": "o", "deepspeed": "d.json", "model": "m", **flags}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_file_of_the_project_resolves(path):
    flags = config(rows_per_step=32, rows_per_micro_batch=2, max_grad_norm=0.7)
    raw = read_json(path)
    resolved = resolve_deepspeed(raw, flags, world_size=4, hidden_size=4096)
    assert resolved["train_batch_size"] == 32
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == 4
    assert resolved["gradient_clipping"] == 0.7
    bucket = raw["zero_optimization"]["reduce_bucket_size"]
    filled = 4096**2 if bucket == "auto" else bucket
    assert resolved["zero_optimization"]["reduce_bucket_size"] == filled
    assert resolved["data_types"]["grad_accum_dtype"] == "fp32"
    assert '"auto"' not in json.dumps(resolved)


def resolve(raw, **flags):
    return resolve_deepspeed(raw, config(**flags), world_size=2, hidden_size=64)


@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_what_the_json_says_or_the_hardware_computes_in(able):
    def of(enabled):
        raw = {"bf16": {"enabled": enabled}}
        return resolve_deepspeed(raw, config(), 2, 64, able)["bf16"]["enabled"]

    assert (of("auto"), of(True), of(False)) == (able, True, False)


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
    with pytest.raises(InputError, match=r"remove 'scheduler'; .*--warmup-steps, --steps and"):
        resolve({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto"}}})
    with pytest.raises(InputError, match=r"remove 'optimizer'; the optimizer is AdamW"):
        resolve({"optimizer": {"type": "Lamb"}})
    with pytest.raises(InputError, match=r"sets optimizer.params.lr; give it as --learning-rate"):
        resolve({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}})
    with pytest.raises(InputError, match=r'enables fp16.*write "bf16": {"enabled": "auto"}'):
        resolve({"fp16": {"enabled": True}})


def test_what_other_tools_fill_is_filled():
    """The file that Transformers' documentation gives, with a schedule that the trainer has."""
    zero = {
        "stage": 3,
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "stage3_max_live_parameters": "auto",
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "allgather_bucket_size": "auto",
        "stage3_gather_16bit_weights_on_model_save": "auto",
    }
    adam = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    schedule = {"total_num_steps": "auto", "warmup_num_steps": "auto"}
    raw = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": adam},
        "scheduler": {"type": "WarmupCosineLR", "params": schedule},
        "zero_optimization": zero,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    resolved = resolve(raw)
    assert '"auto"' not in json.dumps(resolved)
    assert not {"optimizer", "scheduler"} & resolved.keys()
    assert (resolved["fp16"]["enabled"], resolved["bf16"]["enabled"]) == (False, True)
    assert "allgather_bucket_size" not in resolved["zero_optimization"]
    assert raw["zero_optimization"]["allgather_bucket_size"] == "auto", "the file stays as it is"


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
        ({"kl_to_base": -0.1}, "--kl-to-base -0.1 is out of range"),
        ({"kl_to_base": float("nan")}, "--kl-to-base nan is out of range"),
        (
            {"model": None, "config": "c", "kl_to_base": 0.1},
            r"--kl-to-base 0.1 holds .* from scratch \(--config\) has none; .* start from --model",
        ),
        (
            {"kl_to_base": 0.5, "adapter": "summary"},
            "--kl-to-base with --adapter summary holds nothing",
        ),
        ({"lora_rank": 0}, "--lora-rank 0 is out of range"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0 is out of range"),
        ({"keep_products": True, "gradient_checkpointing": False}, "recomputes nothing; leave it"),
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"positives": "dropout,cropped"}, "one or several of dropout, continuation, pair, crops"),
        ({"positives": "crops,crops"}, "--positives crops,crops: give auto, or one or several"),
        ({"positives": ""}, "--positives : give auto, or one or several"),
        ({"crop_tokens": "64-16"}, "--crop-tokens 64-16: give the least and most tokens"),
        ({"crop_tokens": "0-16"}, "--crop-tokens 0-16"),
        ({"crop_tokens": "16"}, "--crop-tokens 16"),
        ({"crop_every": 0}, "--crop-every 0 is out of range"),
        ({"matryoshka": "64,x"}, "--matryoshka 64,x: give sizes such as 64,128,256"),
        ({"matryoshka": "0"}, "--matryoshka 0"),
        ({"alpha": 1.5}, "--alpha 1.5 is out of range"),
        ({"temperature": 101.0}, "--temperature 101.0 is out of range"),
        ({"least_temperature": 30.0}, "--temperature 20.0 is out of range"),
        ({"least_temperature": 0.0}, "--least-temperature 0.0 is out of range"),
    ],
)
def test_values_of_no_sense_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        config(**flags).check(1)


def test_lists_among_the_flags():
    found = config(positives="crops, pair", crop_tokens="8-32", matryoshka="64, 16,64")
    assert found.positive_kinds() == ("pair", "crops")
    assert found.crop_lengths() == (8, 32)
    assert found.dimensions() == (16, 64)
    assert config().dimensions() == ()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_flags_that_there_are_and_passes_the_checks(recipe):
    flags = {field.name for field in fields(TrainConfig)}
    assert RECIPES[recipe].keys() <= flags
    config(**RECIPES[recipe]).check(1)


def parsed(*command):
    """As launch/train.py does."""
    parser = parser_of(TrainConfig, None)
    parser.set_defaults(**defaults(command))
    return TrainConfig(**vars(parser.parse_args(command)))


def test_a_recipe_sets_defaults_and_flags_win():
    command = [sys.executable, "launch/train.py", "--recipe", "paper", "--alpha", "0.25", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    flat = " ".join(shown.split())
    assert "loss (the paper's: 1) (from 0 to 1; default: 1.0)" in flat
    needed = ["--shards", "s", "--output", "o", "--deepspeed", "d", "--recipe", "paper"]
    found = parsed(*needed, "--alpha", "0.25")
    assert (found.alpha, found.contrastive_learning_rate) == (0.25, 1e-5)
    assert defaults([]) == {"recipe": DEFAULT, **RECIPES[DEFAULT]}


def test_a_model_from_scratch_is_held_to_no_base():
    command = ["--config", "c", "--shards", "s", "--output", "o", "--deepspeed", "d"]
    for recipe in ([], ["--recipe", "keep"]):
        found = parsed(*command, *recipe)
        found.check(1)
        assert (found.recipe, found.adapter, found.kl_to_base) == ("keep", "none", 0.0)
    with_base = defaults(["--model", "m", "--recipe", "keep"])
    assert with_base["kl_to_base"] > 0


def test_rates_that_are_not_given_fall_with_the_width():
    narrow, wide = (config(adapter="summary").rates(width) for width in (320, 4096))
    assert narrow == (2e-3, 2e-3)
    assert wide == pytest.approx((1.5625e-4, 1.5625e-4))
    assert config().rates(4096) == pytest.approx((2.44e-5, 2.44e-5), rel=1e-2)
    assert config(learning_rate=1e-4).rates(320) == (1e-4, 1e-4)
    assert config(learning_rate=1e-4, contrastive_learning_rate=1e-5).rates(320) == (1e-4, 1e-5)


def test_positives_are_what_the_documents_offer():
    assert config(positives="auto").positive_kinds({"plain", "pair"}) == ("pair", "crops")
    assert config(positives="auto").positive_kinds({"plain", "continuation"}) == ("crops",)
    assert config(positives="dropout").positive_kinds({"pair"}) == ("dropout",)
