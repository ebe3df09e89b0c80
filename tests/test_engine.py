"""Real DeepSpeed processes over gloo: every file and flag from one base; bad input."""

import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import save_tokenizer
from processes import free_port
from runs import (
    ROOT,
    bf16,
    fp32,
    llama_config,
    metrics,
    random_base,
    small_llama,
)
from several_runs import several_runs
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds import assemble, dist, preflight, run_folder
from gem_ds.checkpoint import check_agrees, find, found, load_weights, read_state
from gem_ds.config import TrainConfig
from gem_ds.errors import InputError
from gem_ds.manifest import Manifest

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


def test_a_run_that_saves_nothing_says_so_when_it_is_stopped(made, tmp_path):
    code = (
        "import sys; from gem_ds import config, engine, errors, stopping\n"
        "request = stopping.StopRequest()\n"
        "request.made = True\n"
        "shards, deepspeed, model, output = sys.argv[1:]\n"
        "told = config.TrainConfig(shards, output, deepspeed, config=model, save=False)\n"
        "errors.run(lambda: engine.train(told, request))\n"
    )
    paths = (made / "shards", made / "fp32-zero3.json", made / "tied", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        env={**os.environ, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "after 1 of 1000 steps, without a checkpoint (--save false)" in done.stderr
    assert done.returncode == TrainConfig("", "", "").stop_status
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


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
    fast = "bf16" if dist.computes_bf16(torch.device("cpu")) else "fp32"
    assert losses["zero3"] == losses[fast]
    states = {name: read_state(find(trained / name))["dtype"] for name in losses}
    assert (states["bf16"], states["fp32"]) == ("bfloat16", "float32")
    assert states["zero3"] == states[fast]


def test_the_run_says_what_a_person_wants_to_see(trained):
    shown = metrics(trained / "zero3")[-1]
    for group in ("loss", "cosine", "schedule", "train", "data", "speed", "memory"):
        assert any(name.startswith(f"{group}/") for name in shown), group
    assert list((trained / "zero3" / "tensorboard").glob("events.*"))
    resolved = json.loads((trained / "zero3" / "run.json").read_text())
    assert resolved["deepspeed"]["train_batch_size"] == 4
    assert resolved["config"]["alpha_start"] == 1
    assert resolved["manifest"] == Manifest.load(trained.parent / "shards").digest


def config_of(made, **flags):
    return TrainConfig(
        **{
            "shards": str(made / "shards"),
            "output": str(made / "never"),
            "deepspeed": str(ROOT / "ds_configs" / "zero3.json"),
            "config": str(made / "tied"),
            **flags,
        }
    )


def test_contradictions_are_refused_with_a_cure(made, bases, tmp_path):
    manifest = Manifest.load(made / "shards")
    llama_config(tmp_path / "short", positions=32)
    with pytest.raises(InputError, match=r"64 tokens but .* has 32 positions; shard with"):
        preflight.model_config(config_of(made, config=str(tmp_path / "short")), manifest)
    with pytest.raises(InputError, match=r"cannot read the model configuration of '.*nowhere'"):
        preflight.model_config(config_of(made, config=str(tmp_path / "nowhere")), manifest)
    other = save_tokenizer(tmp_path / "other", vocab_size=350)
    with pytest.raises(InputError, match=r"another tokenizer than the one .* was made with"):
        assemble.new_tokens(config_of(made, config=None, model=str(other)), manifest)
    known = config_of(made, config=None, model=str(bases["tied"]))
    assert assemble.new_tokens(known, manifest) == manifest.summary_tokens
    already = config_of(made, config=None, model=str(made / "shards" / "tokenizer"))
    assert assemble.new_tokens(already, manifest) == []
    plain = dataclasses.replace(manifest, counts={"documents": {"plain": 9}})
    with pytest.raises(InputError, match=r"only plain documents.*--alpha 0"):
        preflight.check_objective(config_of(made, positives="dropout"), plain)
    preflight.check_objective(config_of(made, alpha=0.0), plain)
    preflight.check_objective(config_of(made), plain)  # crops, which every text has


def test_a_full_folder_another_checkpoint_and_missing_ones_are_refused(trained, made):
    with pytest.raises(InputError, match=r"already has checkpoints \(newest step-00000002\)"):
        run_folder.to_resume(config_of(made, output=str(trained / "zero3")))
    state = read_state(find(trained / "zero3"))
    for key, value in (("vocab_size", 512), ("manifest", "f00"), ("seed", 4)):
        with pytest.raises(InputError, match=rf"was written with {key} = .*this run has {value!r}"):
            check_agrees(find(trained / "zero3"), {**state, key: value})
    with pytest.raises(InputError, match=r"no checkpoint of step 7 in .*there are 2"):
        find(trained / "zero3", 7)
    with pytest.raises(InputError, match=r"is .* the --output of a run"):
        find(made)


def test_the_script_says_what_it_needs_and_one_sentence_of_what_is_wrong(made, tmp_path):
    def script(*flags, **options):
        line = [sys.executable, str(ROOT / "launch/train.py"), *map(str, flags)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)

    def one_error(*flags, **options):
        done = script(*flags, **options)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert done.returncode == 2, done.stderr
        assert len(errors) == 1, done.stderr
        assert "Traceback" not in done.stderr
        return errors[0]

    bare = script()
    assert bare.returncode != 0
    assert "deepspeed launch/train.py --deepspeed ds_configs/zero3.json" in bare.stderr
    assert len(bare.stderr.splitlines()) < 12
    broken = tmp_path / "broken"
    shutil.copytree(made / "shards", broken)
    (broken / "manifest.json").unlink()
    flags = ("--config", made / "tied", "--output", tmp_path / "run")
    flags += ("--deepspeed", ROOT / "ds_configs/zero3.json")
    assert "sharding did not finish" in one_error(*flags, "--shards", broken)
    assert not (tmp_path / "run").exists()

    flipped = tmp_path / "flipped"
    shutil.copytree(made / "shards", flipped)
    data = bytearray((flipped / "shard-00000.parquet").read_bytes())
    data[len(data) // 3] ^= 1
    (flipped / "shard-00000.parquet").write_bytes(data)
    message = one_error(*flags, "--shards", flipped, "--steps", 3, "--rows-per-step", 8)
    assert "shard-00000.parquet" in message

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = one_error(
            *flags, "--shards", made / "shards", env={**os.environ, "MASTER_PORT": str(port)}
        )
        assert f"port {port} of this machine is in use" in message

    def little_room():  # what a full disk or a quota does, for files above a size
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))

    flags = (*flags[:3], tmp_path / "full", *flags[4:], "--steps", 1, "--rows-per-step", 1)
    message = one_error(*flags, "--shards", made / "shards", preexec_fn=little_room)
    assert "the checkpoint of step 1 could not be written" in message
    assert not found(tmp_path / "full")
