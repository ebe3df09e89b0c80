"""Real DeepSpeed processes over gloo: every file and flag from one base.

Refusals: test_engine_refusals.
"""

import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from runs import (
    ROOT,
    bf16,
    fp32,
    metrics,
    random_base,
    small_llama,
)
from several_runs import several_runs
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds import distributed
from gem_ds.checkpoints.checkpoint import check_agrees, find, load_weights, read_state
from gem_ds.errors import InputError
from gem_ds.shards.manifest import Manifest
from gem_ds.training import run_folder
from gem_ds.training.config import TrainConfig

RECOMPUTED = {
    "nothing": {"gradient_checkpointing": False},
    "every second": {"checkpoint_every": 2},
    "all but products": {"keep_products": True},
}
DEEPSPEED_FILES = ("zero2", "zero3", "zero3_offload")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    return small_llama(tmp_path_factory.mktemp("engine"), tokenizer_dir)


@pytest.fixture(scope="module")
def bases(made, tokenizer_dir):
    """Folders with a random base model and its tokenizer, as one would download them."""
    folders = {}
    for name in ("tied", "untied"):
        folders[name] = random_base(made / f"base-{name}", made / name, tokenizer_dir)
    return folders


@pytest.fixture(scope="module")
def trained(made, bases):
    """The folder of runs from base models: one nearly without a rate for each base, and two steps
    with each DeepSpeed file."""
    common = {"shards": made / "shards", "rows_per_step": 4}
    still = {
        **common,
        "deepspeed": made / "fp32-zero3.json",
        "steps": 1,
        "alpha_start": 0,
        "learning_rate": 1e-12,
        "contrastive_learning_rate": 1e-12,
    }
    settings = {name: {**still, "model": folder} for name, folder in bases.items()}
    for name in DEEPSPEED_FILES:
        settings[name] = {
            **common,
            "deepspeed": ROOT / "ds_configs" / f"{name}.json",
            "model": bases["untied"],
            "steps": 2,
            "alpha_start": 1,
            "learning_rate": 1e-3,
        }
    for name, make in {"bf16": bf16, "fp32": fp32}.items():
        settings[name] = {**settings["zero3"], "deepspeed": make("zero3.json", made)}
    for name, more in {**RECOMPUTED, "traced": {"steps": 5, "profile": 2, "save": False}}.items():
        settings[name] = {**settings["zero3"], **more}
    settings["seed"] = {**settings["fp32"], "steps": 1, "seed": 2**64 - 1, "save": False}
    several_runs(made / "trained", 2, settings)
    return made / "trained"


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_base_model_keeps_its_weights_and_gains_rows(trained, bases, name):
    """Loaded in partitions, resized, saved and read back: what did not train is as it was."""
    run, tied = trained / name, name == "tied"
    expected = AutoModelForCausalLM.from_pretrained(bases[name]).state_dict()
    weights = load_weights(find(run))
    assert weights.keys() == expected.keys() - ({"lm_head.weight"} if tied else set())
    for key, weight in weights.items():
        kept = weight
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(weight) == 448, "a multiple of 64"
            mean, spread = expected[key].mean(0), expected[key].std(0)
            z = (weight[400:] - mean) / spread
            assert z.std().item() == pytest.approx(0.02, rel=0.2)
            assert z.abs().max() < 0.1
            kept = weight[:400]
        assert torch.allclose(kept, expected[key], atol=1e-9), key
    config = AutoConfig.from_pretrained(find(run) / "model")
    assert (config.vocab_size, config.tie_word_embeddings) == (448, tied)


def test_every_deepspeed_file_starts_and_agrees(trained):
    """From one base they give the same losses up to bf16."""
    losses = {name: [m["loss/total"] for m in metrics(trained / name)] for name in DEEPSPEED_FILES}
    for name in DEEPSPEED_FILES:
        assert find(trained / name).name == "step-00000002"
        assert losses[name] == pytest.approx(losses["zero3"], rel=5e-3)


@pytest.mark.parametrize("name", list(RECOMPUTED))
def test_what_is_recomputed_changes_nothing(trained, name):
    recomputed, here = (load_weights(find(trained / n)) for n in ("zero3", name))
    assert all(torch.equal(recomputed[key], here[key]) for key in recomputed)


@pytest.fixture(scope="module")
def traced(trained) -> list[dict[str, Any]]:
    (path,) = (trained / "traced" / "profile").iterdir()
    return [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name")]


def test_the_steps_that_were_asked_for_are_traced(trained, traced):
    names = {event["name"] for event in traced}
    assert {name for name in names if name.startswith("ProfilerStep")} == {
        "ProfilerStep#2",
        "ProfilerStep#3",
    }
    assert "aten::mm" in names
    assert not (trained / "zero3" / "profile").exists()


def test_a_run_that_saves_nothing_leaves_its_log(trained):
    assert len(metrics(trained / "traced")) == 5
    assert list((trained / "traced" / "checkpoints").iterdir()) == []


def test_the_host_waits_for_no_number_inside_a_step(traced):
    """It would let the device run dry. Reading the step's sums at its end is one such number.

    (What only the CPU's attention does, to index by a mask, is left out; a GPU has its own test.)
    """

    def within(span: dict[str, Any]) -> set[str]:
        until = span["ts"] + span["dur"]
        return {
            event["name"]
            for event in traced
            if event.get("tid") == span["tid"] and span["ts"] <= event["ts"] < until
        }

    for part in ("forward", "backward"):
        spans = [
            e for e in traced if e["name"] == f"gem_ds {part}" and e["cat"] == "user_annotation"
        ]
        assert len(spans) == 4, "two micro-batches in each of two steps"
        for span in spans:
            assert "aten::mm" in within(span)
            assert not {"aten::item", "aten::_local_scalar_dense"} & within(span)
    assert any(event["name"] == "aten::_local_scalar_dense" for event in traced)


def test_precision_is_chosen_by_the_hardware_or_by_name(trained):
    """bf16 gives other numbers, but not far; the project's files take what is fast here."""
    losses = {n: [m["loss/ntp"] for m in metrics(trained / n)] for n in ("zero3", "bf16", "fp32")}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=5e-3)
    fast = "bf16" if distributed.computes_bf16(torch.device("cpu")) else "fp32"
    assert losses["zero3"] == losses[fast]
    states = {name: read_state(find(trained / name))["dtype"] for name in losses}
    assert (states["bf16"], states["fp32"]) == ("bfloat16", "float32")
    assert states["zero3"] == states[fast]


def test_any_seed_of_64_bits_trains(trained):
    assert len(metrics(trained / "seed")) == 1
    first = [metrics(trained / name)[0]["loss/ntp"] for name in ("seed", "fp32")]
    assert first[0] != first[1], "the rows have another order"


def test_the_run_says_what_a_person_wants_to_see(trained):
    shown = metrics(trained / "zero3")[-1]
    for group in ("loss", "cosine", "schedule", "train", "data", "speed", "memory"):
        assert any(name.startswith(f"{group}/") for name in shown), group
    assert list((trained / "zero3" / "tensorboard").glob("events.*"))
    resolved = json.loads((trained / "zero3" / "run.json").read_text())
    assert resolved["deepspeed"]["train_batch_size"] == 4
    assert resolved["config"]["alpha_start"] == 1
    assert resolved["manifest"] == Manifest.load(trained.parent / "shards").digest


def test_a_full_folder_another_checkpoint_and_missing_ones_are_refused(trained, made):
    full = TrainConfig(str(made / "shards"), str(trained / "zero3"), "d.json")
    with ExitStack() as stack, pytest.raises(InputError, match=r"already .*newest step-00000002\)"):
        run_folder.enter(full, stack)
    state = read_state(find(trained / "zero3"))
    for key, value in (("vocab_size", 512), ("manifest", "f00"), ("seed", 4)):
        with pytest.raises(InputError, match=rf"was written with {key} = .*this run has {value!r}"):
            check_agrees(find(trained / "zero3"), {**state, key: value})
    with pytest.raises(InputError, match=r"no checkpoint of step 7 in .*there are 2"):
        find(trained / "zero3", 7)
    with pytest.raises(InputError, match=r"is .* the --output of a run"):
        find(made)
