"""What a run refuses, and what it says where it ends early."""

import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import pytest
from helpers import save_tokenizer
from processes import free_port
from runs import ROOT, llama_config, random_base, small_llama
from safetensors.torch import load_file, save_file
from several_runs import several_runs

from gem_ds.checkpoints.checkpoint import found
from gem_ds.errors import InputError
from gem_ds.shards.manifest import Manifest
from gem_ds.training import engine_factory, validation
from gem_ds.training.config import TrainConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    return small_llama(tmp_path_factory.mktemp("refusals"), tokenizer_dir)


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


def test_contradictions_are_refused_with_a_cure(made, tokenizer_dir, tmp_path):
    manifest = Manifest.load(made / "shards")
    base = random_base(tmp_path / "base", made / "tied", tokenizer_dir)
    llama_config(tmp_path / "short", positions=32)
    with pytest.raises(InputError, match=r"64 tokens, and .* takes at most 32 .*; shard with"):
        validation.model_config(config_of(made, config=str(tmp_path / "short")), manifest)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        validation.model_config(config_of(made, config=str(tmp_path / "nowhere")), manifest)
    other = save_tokenizer(tmp_path / "other", vocab_size=350)
    with pytest.raises(InputError, match=r"another tokenizer than the one .* was made with"):
        engine_factory.new_tokens(config_of(made, config=None, model=str(other)), manifest)
    known = config_of(made, config=None, model=str(base))
    assert engine_factory.new_tokens(known, manifest) == manifest.summary_tokens
    already = config_of(made, config=None, model=str(made / "shards" / "tokenizer"))
    assert engine_factory.new_tokens(already, manifest) == []
    plain = dataclasses.replace(manifest, counts={"documents": {"plain": 9}})
    with pytest.raises(InputError, match=r"only plain documents.*--alpha 0"):
        validation.check_objective(config_of(made, positives="dropout"), plain)
    validation.check_objective(config_of(made, alpha=0.0), plain)
    validation.check_objective(config_of(made), plain)  # crops, which every text has


def test_a_run_that_saves_nothing_says_so_when_it_is_stopped(made, tmp_path):
    code = (
        "import sys; from gem_ds import errors, launcher\n"
        "from gem_ds.training import config, trainer\n"
        "request = launcher.StopRequest()\n"
        "request.made = True\n"
        "shards, deepspeed, model, output = sys.argv[1:]\n"
        "told = config.TrainConfig(shards, output, deepspeed, config=model, save=False)\n"
        "errors.run(lambda: trainer.train(told, request))\n"
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


def test_a_run_that_saves_nothing_says_so_when_it_cannot_go_on(made):
    blown = {"learning_rate": 1e30, "warmup_steps": 0, "max_skipped_steps": 2, "save": False}
    blown |= {"deepspeed": made / "fp32-zero3.json", "config": made / "tied", "alpha": 0.0}
    blown |= {"shards": made / "shards", "rows_per_step": 1, "steps": 9}
    says = (
        r"2 steps in a row, the last 2, .*-rank\*\.jsonl; lower --learning-rate.*then begin again"
    )
    with pytest.raises(AssertionError, match=says):
        several_runs(made / "blown", 1, {"run": blown})


def test_a_first_step_that_is_not_finite_ends_the_run(made, tokenizer_dir):
    """Weights that are finite, and overflow where they meet."""
    base = random_base(made / "infinite", made / "tied", tokenizer_dir)
    tensors = load_file(base / "model.safetensors")
    for part in ("gate", "up"):  # in a layer beyond those that are tried before the run
        tensors[f"model.layers.1.mlp.{part}_proj.weight"] *= 1e22
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    flags = {"deepspeed": made / "fp32-zero3.json", "model": base, "shards": made / "shards"}
    flags |= {"rows_per_step": 1, "steps": 2, "rehearse": False}
    with pytest.raises(AssertionError, match="the first step has gradients that are not finite"):
        several_runs(made / "not-finite", 1, {"run": flags})
    assert not list((made / "not-finite").rglob("step-*"))


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

    swapped = tmp_path / "swapped"
    shutil.copytree(made / "shards", swapped)
    path = swapped / "tokenizer" / "tokenizer.json"
    told = json.loads(path.read_text())
    vocab = told["model"]["vocab"]
    one, other = list(vocab)[100:102]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(told))
    message = one_error(*flags, "--shards", swapped)
    assert f"{path.parent} is not the tokenizer that the shards were written with" in message
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
        # What needs no other ranks is said before any is looked for.
        lonely = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        env = {**os.environ, **lonely, "MASTER_PORT": str(port)}
        wrong = tmp_path / "wrong.json"
        wrong.write_text('{"zero_optimization": {"stage": 7}}')
        for more, cure in (
            (("--shards", broken), "sharding did not finish"),
            (("--shards", made / "shards", "--beta1", "1.5"), "--beta1 1.5 is out of range"),
            (("--shards", made / "shards", "--rows-per-step", 5), "no multiple of 2"),
        ):
            assert cure in one_error(*flags, *more, env=env)
        others = ("--shards", made / "shards", "--output", tmp_path / "run", "--deepspeed", wrong)
        assert "refuses stage" in one_error("--config", made / "tied", *others, env=env)
        assert "there is no folder" in one_error("--config", tmp_path / "none", *others, env=env)

    def little_room():  # what a full disk or a quota does, for files above a size
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))

    flags = (*flags[:3], tmp_path / "full", *flags[4:], "--steps", 1, "--rows-per-step", 1)
    message = one_error(*flags, "--shards", made / "shards", preexec_fn=little_room)
    assert "the checkpoint of step 1 could not be written" in message
    assert not found(tmp_path / "full")


def test_a_rank_that_ends_while_all_join_is_one_sentence_on_the_others(made, tmp_path):
    flags = ("--config", made / "tied", "--shards", made / "shards", "--output", tmp_path / "run")
    train = (ROOT / "launch/train.py", "--deepspeed", made / "fp32-zero3.json", *flags)
    joins = ("-c", "import deepspeed, os; deepspeed.init_distributed(); os._exit(1)")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate((train, joins))
    ]
    try:
        said = started[0].communicate(timeout=100)[1]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert "error [rank 0]: another rank ended before the run began" in said
    assert "Traceback" not in said
