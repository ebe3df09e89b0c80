"""Flags of the planner, and what it refuses."""

import json
import re
import subprocess
import sys

import plan_table
import pytest
from pages import commands
from plans import launched, typed
from runs import ROOT, random_shards

from gem_ds.errors import InputError
from gem_ds.model import architecture
from gem_ds.planning import plan_flags

DOCS = (ROOT / "docs" / "performance.md").read_text()


def test_help_and_refusals():
    bare = launched()
    assert (bare.returncode, "--rows-per-step" in bare.stdout) == (2, True)
    unknown = launched("--model", "llama-9000")
    assert unknown.returncode == 2
    assert "llama3.1-8b" in unknown.stderr.splitlines()[-1]
    small = launched("--model", "llama3.1-8b", "--gpus", 1, "--gpu-memory", 8, "--recipe", "keep")
    assert small.returncode == 1
    assert "DOES NOT FIT" in small.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gpus 0", "--gpus 0 is out of range"),
        ("--gpus 12 --rows-per-step 24", "no whole machines of 8; give --gpus 8 or 16"),
        ("--rows-per-micro-batch 0", "--rows-per-micro-batch 0 is out of range"),
        ("--checkpoint-every -1", "--checkpoint-every -1 is out of range"),
        ("--summary-tokens -1", "--summary-tokens -1 is out of range"),
        ("--tokens nan", "--tokens nan is out of range"),
        ("--tokens 0", "--tokens 0 is out of range; give a number above 0"),
        ("--steps 0", "--steps 0 is out of range"),
        ("--steps 9 --tokens 9", "give one of them"),
        ("--host-memory -1", "--host-memory -1 is out of range"),
        ("--gpu-memory inf", "--gpu-memory inf is out of range"),
        ("--lora-rank 0", "--lora-rank 0 is out of range"),
        ("--alpha nan", "--alpha nan is out of range"),
        ("--zero-stage 2 --offload all", "give --zero-stage 3"),
        ("--bf16-states --offload optimizer", "choose one of the two"),
        ("--row-length 200000 --document-length 99", "longer than the 131072 positions"),
        ("--deepspeed ds_configs/zero3.json --zero-stage 2", "settles stage"),
        ("--peak -1", "--peak -1 is out of range; give a number above 0"),
        ("--recipe keep --summary-tokens 0", "nothing embeds"),
        ("--recipe lossless --kl-to-base 1", "holds nothing"),
        ("--positives echo", "--positives echo"),
    ],
)
def test_flags_that_contradict_are_refused(flags, message):
    def settle():
        args = plan_flags.parser("").parse_args(["--model", "llama3.1-8b", *flags.split()])
        return plan_flags.job_of(args), plan_flags.fixed_of(args)

    with pytest.raises(InputError, match=re.escape(message)):
        settle()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"zero_optimization": []}, "zero_optimization is no JSON object"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "5e8"}}, "number of elements"),
        ({"train_micro_batch_size_per_gpu": "x"}, "'x'; give a number of rows"),
        ({"fp16": {"enabled": True}}, "enables fp16, in which gradients overflow"),
    ],
)
def test_a_file_that_cannot_be_planned_is_refused(tmp_path, file, message):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, **file}))
    with pytest.raises(InputError, match=message):
        plan_flags.plan_of(typed("--model", "llama3.2-1b", "--deepspeed", path))


@pytest.mark.parametrize("size", [0, -2, None, "64", True])
def test_a_model_without_proper_sizes_is_refused(tmp_path, size):
    names = dict.fromkeys(architecture.SIZES, 64)
    for name in architecture.SIZES:
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "llama", **names, name: size})
        )
        with pytest.raises(InputError, match=f"{name} = {size!r}, which is no size"):
            architecture.load(tmp_path)


def test_data_of_shards_is_taken(tmp_path, tokenizer_dir):
    folder = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=2, row_length=64, k=2)
    args = plan_flags.parser("").parse_args(
        ["--model", "llama3.2-1b", "--shards", str(folder), "--peak", "500", "--gpus", "1"]
    )
    job = plan_flags.job_of(args)
    assert (job.data.row_length, job.data.summary_tokens) == (64, 2)
    assert job.cluster.gpu.peak == 5e14
    assert (job.config.adapter, job.config.lora_rank) == ("summary", 32)
    assert (job.config.shards, job.views.kinds) == (str(folder), ("crops",))


def test_the_table_is_what_the_plan_says():
    shown = DOCS.split(plan_table.BEGIN)[1].split(plan_table.END)[0]
    assert shown == plan_table.table()


@pytest.mark.slow
def test_commands_of_the_documentation_run(tmp_path):
    lines = commands(DOCS)
    plans = [line for line in lines if line.startswith("python launch/plan.py ")]
    assert len(plans) == 3
    for name in ("launch", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "base").mkdir()
    config = {"model_type": "llama", "vocab_size": 32000, "num_key_value_heads": 8}
    sizes = {"hidden_size": 2048, "intermediate_size": 5632}
    counts = {"num_hidden_layers": 22, "num_attention_heads": 32}
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, **sizes, **counts}))
    for line in plans:
        typed = line.replace("python", sys.executable, 1)
        done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "my.json").exists()
    # The others launch processes; tests/planning/test_communication.py and test_memory.py run what
    # they do.
    scripts = {line.split()[1] for line in lines} - {"launch/plan.py"}
    assert scripts == {"benchmarks/communication.py", "benchmarks/memory_plan.py"}
    for line in set(lines) - set(plans):
        _, script, *flags = line.split()
        helped = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True
        )
        assert {flag for flag in flags if flag.startswith("--")} <= set(
            re.findall(r"--[a-z]+", helped.stdout)
        )
