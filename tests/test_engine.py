"""Real DeepSpeed processes over gloo: same rows, same numbers; resuming; bad input."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import psutil
import pytest
import torch
from runs import ROOT, command, fp32, llama_config, metrics, random_shards, train
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.checkpoint import find, load_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    """Shards, a tiny Llama's configuration and DeepSpeed files, shared by this module's runs."""
    folder = tmp_path_factory.mktemp("engine")
    random_shards(folder / "shards", tokenizer_dir, n_rows=24, k=2, gem_share=0.8)
    llama_config(folder / "tied")
    llama_config(folder / "untied", tied=False)
    # Nothing stays gathered: even the smallest parameter is partitioned.
    fp32("zero3.json", folder, stage3_param_persistence_threshold=0)
    return folder


def one_step(made, ranks, settings):
    """Metrics and gradients of one step for each setting, from one launch."""
    out = made / f"gradients-{ranks}"
    out.mkdir(exist_ok=True)
    common = {
        "shards": str(made / "shards"),
        "deepspeed": str(made / "fp32-zero3.json"),
        "rows_per_step": 8,
        "steps": 50,
        "max_grad_norm": 1e9,
    }
    for name, flags in settings.items():
        settings[name] = {**common, "output": str(out / name), **flags}
    path = out / "settings.json"
    path.write_text(json.dumps(settings))
    done = subprocess.run(
        command("tests/gradients.py", path, out, ranks=ranks),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: torch.load(out / f"{name}.pt") for name in settings}


def assert_same(a, b):
    for key in ("loss/ntp", "loss/contrastive", "loss/total", "train/grad_norm"):
        assert a["values"][key] == pytest.approx(b["values"][key], rel=1e-5), key
    for name, grad in a["grads"].items():
        error = (grad - b["grads"][name]).abs().max() / grad.abs().max().clamp_min(1e-20)
        assert error < 1e-5, (name, float(error))


def test_same_rows_same_numbers(made):
    both = {"alpha": 0.5, "alpha_start": 3}
    dropout = {**both, "config": str(made / "tied")}
    continuation = {**both, "config": str(made / "untied"), "positives": "continuation"}
    ntp = {"alpha": 0.0, "alpha_start": 3, "config": str(made / "untied")}
    contrastive = {**both, "alpha": 1.0, "config": str(made / "untied")}
    one = one_step(
        made,
        1,
        {
            "dropout": {**dropout, "rows_per_micro_batch": 8},
            "continuation": {**continuation, "rows_per_micro_batch": 4},
            "contrastive": {**contrastive, "rows_per_micro_batch": 8},
            "ntp": {**ntp, "rows_per_micro_batch": 8},
            "ntp-accumulated": {**ntp, "rows_per_micro_batch": 1},
        },
    )
    two = one_step(
        made,
        2,
        {
            "dropout": {**dropout, "rows_per_micro_batch": 4},
            "continuation": {**continuation, "rows_per_micro_batch": 2},
            "contrastive": {**contrastive, "rows_per_micro_batch": 4},
            "ntp": {**ntp, "rows_per_micro_batch": 1},
        },
    )
    for name, result in two.items():
        assert_same(one[name], result)
    assert_same(one["ntp"], one["ntp-accumulated"])
    values = one["dropout"]["values"]
    assert values["data/anchors"] > 8
    assert values["loss/contrastive"] > 0.01
    assert one["contrastive"]["values"]["loss/ntp"] == 0, "no logits are computed at alpha = 1"
    grads = one["contrastive"]["grads"]
    assert grads["lm.lm_head.weight"].abs().max() == 0
    assert all(g.abs().max() > 0 for name, g in grads.items() if name != "lm.lm_head.weight")
    assert one["ntp"]["grads"]["log_scale"].abs().max() == 0
    assert one["dropout"]["grads"]["log_scale"].abs().max() > 0


def test_a_resumed_run_continues_bit_for_bit(made):
    """Killed twice with all its processes, a run ends with the losses of one left alone."""
    flags = ("--config", made / "untied", "--shards", made / "shards", "--rows-per-step", 4)
    flags += ("--learning-rate", "1e-2", "--alpha-start", 2, "--warmup-steps", 0)
    flags += ("--save-every", 3, "--steps", 9, "--resume", "auto")
    config = made / "fp32-zero3.json"
    train(*flags, "--output", made / "whole", ranks=2, deepspeed=config)
    cut = made / "cut"
    for step in (3, 6):
        train_until(
            cut / "checkpoints" / f"step-{step:08d}", *flags, "--output", cut, config=config
        )
    train(*flags, "--output", cut, ranks=2, deepspeed=config)

    def exact(run):
        noisy = ("speed/", "memory/")
        return [{k: v for k, v in m.items() if not k.startswith(noisy)} for m in metrics(run)]

    assert exact(made / "whole") == exact(cut)
    assert [m["step"] for m in exact(cut)] == list(range(9))
    for run in ("whole", "cut"):
        kept = sorted(p.name for p in (made / run / "checkpoints").glob("step-*"))
        assert kept == ["step-00000006", "step-00000009"]
    whole, resumed = (load_weights(find(made / run)) for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def train_until(path, *flags, config):
    """Train in two processes until `path` is there, then kill everything."""
    process = subprocess.Popen(
        command("launch/train.py", "--deepspeed", config, *flags, ranks=2),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert process.poll() is None, "the run ended before it was cut off"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


@pytest.fixture(scope="module")
def bases(made, tokenizer_dir):
    """Folders with a random base model and its tokenizer, as one would download them."""
    folders = {}
    for name in ("tied", "untied"):
        folders[name] = made / f"base-{name}"
        torch.manual_seed(1)
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made / name))
        lm.resize_token_embeddings(400, mean_resizing=False)
        lm.save_pretrained(folders[name])
        shutil.copytree(tokenizer_dir, folders[name], dirs_exist_ok=True)
    return folders


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_base_model_keeps_its_weights_and_gains_rows(made, bases, name):
    """Loaded in partitions, resized, saved and read back: what did not train is as it was."""
    base, run = bases[name], made / f"run-{name}"
    train(
        *("--model", base, "--shards", made / "shards", "--output", run),
        *("--steps", 1, "--rows-per-step", 4, "--learning-rate", "1e-12", "--alpha-start", 0),
        *("--contrastive-learning-rate", "1e-12"),
        ranks=2,
        deepspeed=made / "fp32-zero3.json",
    )
    expected = AutoModelForCausalLM.from_pretrained(base).state_dict()
    weights = load_weights(find(run))
    tied = name == "tied"
    assert ("lm_head.weight" in weights) != tied
    assert weights.keys() == expected.keys() - ({"lm_head.weight"} if tied else set())
    for key, weight in weights.items():
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(weight) == 448, "a multiple of 64"
            mean, spread = expected[key].mean(0), expected[key].std(0)
            z = (weight[400:] - mean) / spread
            assert z.std().item() == pytest.approx(0.02, rel=0.2)
            assert z.abs().max() < 0.1
            weight = weight[:400]
        assert torch.allclose(weight, expected[key], atol=1e-9), key
    config = AutoConfig.from_pretrained(find(run) / "model")
    assert (config.vocab_size, config.tie_word_embeddings) == (448, tied)


def test_every_deepspeed_file_starts_and_agrees(made, bases):
    """Two steps of each configuration from the same base give the same losses up to bf16."""
    base = bases["untied"]
    losses = {}
    for name in ("zero2", "zero3", "zero3_offload"):
        run = made / f"run-{name}"
        train(
            *("--model", base, "--shards", made / "shards", "--output", run, "--steps", 2),
            *("--rows-per-step", 4, "--alpha-start", 1, "--learning-rate", "1e-3"),
            ranks=2,
            deepspeed=ROOT / "ds_configs" / f"{name}.json",
        )
        losses[name] = [m["loss/total"] for m in metrics(run)]
        assert find(run).name == "step-00000002"
    assert losses["zero2"] == pytest.approx(losses["zero3"], rel=5e-3)
    assert losses["zero3_offload"] == pytest.approx(losses["zero3"], rel=5e-3)
