"""gem_ds.plan and what tells of it: choices, cures, files, and launch/plan.py as it is typed."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import plan_table
import pytest
from runs import ROOT, random_shards
from test_readme import commands
from test_slurm_script import SBATCH

from gem_ds import (
    ds_keys,
    hardware,
    plan,
    plan_advice,
    plan_files,
    plan_flags,
    plan_report,
    recipes,
    reference,
    shapes,
)
from gem_ds import memory as of_memory
from gem_ds.config import TrainConfig
from gem_ds.ds_json import read_json, resolve_deepspeed
from gem_ds.errors import InputError
from gem_ds.expected import Data
from gem_ds.flags import parser_of
from gem_ds.plan import Fixed
from gem_ds.speed import Cluster
from gem_ds.ways import Job, Way

H100S = Cluster(hardware.GPUS["h100"], 8, 8)
LLAMA = shapes.BUILT_IN["llama3.1-8b"]
CONFIG = TrainConfig("", "", "", model="base", negatives="all", alpha_start=0, kl_to_base=2.0)
KEEP = Job(LLAMA, H100S, Data(8192), config=CONFIG)
DOCS = (ROOT / "docs" / "performance.md").read_text()


def on(gpus, gpu="h100", job=KEEP, memory=None):
    found = hardware.GPUS[gpu]
    found = replace(found, memory=memory or found.memory)
    return replace(job, cluster=Cluster(found, gpus, 8))


def told(job=KEEP, **flags):
    return replace(job, config=replace(job.config, **flags))


def typed(*words):
    """The parsed flags of ``launch/plan.py``."""
    return plan_flags.parser("").parse_args([str(word) for word in words])


def test_the_fastest_way_that_fits_is_taken():
    job = on(8, memory=60)
    found = plan.best(job, Fixed())
    assert found.fits
    others = [plan.evaluate(job, way) for way in Fixed().ways(job)]
    fastest = min(other.speed.seconds for other in others if other.fits)
    assert found.speed.seconds <= 1.02 * fastest
    assert any(not other.fits for other in others)


def test_offload_is_taken_where_nothing_else_fits():
    found = plan.best(on(2, "4090", replace(KEEP, data=Data(2048))), Fixed())
    assert (found.fits, found.way.offload) == (True, "all")
    assert found.host_gib > 150


def test_what_is_asked_for_stays():
    fixed = Fixed(stage=3, offload="optimizer", rows_per_micro_batch=2, checkpoint_every=2)
    found = plan.best(KEEP, fixed).way
    assert (found.stage, found.offload, found.rows_per_micro_batch) == (3, "optimizer", 2)
    assert found.checkpoint_every == 2


def test_the_smallest_number_of_gpus():
    fixed = Fixed(stage=3, offload="none", rows_per_micro_batch=1)
    least = plan_advice.smallest(KEEP, fixed)
    n = least.job.cluster.gpus
    assert least.fits
    assert n > 1
    assert not plan.best(on(n // 2), fixed).fits
    assert plan_advice.smallest(on(8, memory=4), fixed, most=64) is None
    # More GPUs than rows of a step, and a step that no other number of GPUs divides.
    for rows in (32, 24):
        many = replace(fixed, rows_per_micro_batch=rows)
        found = plan_advice.smallest(told(on(1, memory=24), rows_per_step=rows), many)
        assert found is None or found.config.rows_per_step % (rows * found.job.cluster.gpus) == 0


def test_more_of_anything_needs_more_memory():
    base = plan.evaluate(KEEP, Way()).gib
    for way in (Way(rows_per_micro_batch=2), Way(checkpoint_every=0), Way(stage=2)):
        assert plan.evaluate(KEEP, way).gib > base
    for way in (Way(offload="optimizer"), Way(bf16_states=True)):
        assert plan.evaluate(KEEP, way).gib < base
    assert plan.evaluate(on(16), Way()).gib < base
    lossless = told(adapter="summary", lora_rank=32, alpha=1.0, kl_to_base=0.0)
    assert plan.evaluate(lossless, Way()).gib < 0.5 * base


def test_states_are_sixteen_bytes_a_parameter():
    job = told(kl_to_base=0.0)
    states = plan.evaluate(job, Way()).memory.states
    padded = LLAMA.with_summary_tokens(8).n_parameters + 1
    assert sum(states.values()) == pytest.approx((2 + 4 + 4 + 8) * padded / 8)
    bf16 = plan.evaluate(job, Way(bf16_states=True)).memory.states
    assert sum(bf16.values()) == pytest.approx((2 + 4 + 2 + 4) * padded / 8)
    offloaded = plan.evaluate(job, Way(offload="all")).memory
    assert offloaded.states == {}
    # And twelve more for the copy of a checkpoint.
    assert offloaded.of_machine(8) == pytest.approx((18 + 4 + 12) * padded)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--gpus 8 --gpu-memory 40 --zero-stage 2 --checkpoint-every 0", "--recipe lossless"),
        ("--gpus 8 --gpu-memory 30 --zero-stage 2", "--zero-stage 3"),
        (
            "--gpus 2 --gpu-memory 24 --zero-stage 2 --offload optimizer --row-length 1024",
            "--zero-stage 3",
        ),
        (
            "--gpus 1 --offload none --adapter everywhere --gpu-memory 30",
            "--recipe lossless without --adapter",
        ),
        ("--gpus 1 --gpu-memory 24 --rows-per-micro-batch 32", "--rows-per-micro-batch 1"),
        ("--gpus 1 --gpu-memory 2", "--gpu-memory 9"),
        (
            "--gpus 8 --host-memory 60 --gpu-memory 40 --offload all",
            "--bf16-states without --offload",
        ),
        ("--gpus 1 --deepspeed ds_configs/zero2.json", "without --deepspeed"),
        ("--gpus 8 --gpu-memory 24 --row-length 131072 --kl-to-base 0", "--row-length 16384"),
    ],
)
def test_advice_is_what_the_planner_says_of_flags_that_follow_it(monkeypatch, flags, expected):
    monkeypatch.chdir(ROOT)
    words = f"--model llama3.1-8b --recipe keep {flags}".split()
    found = plan_flags.plan_of(typed(*words))
    assert not found.fits
    report = plan_report.text(found, typed(*words), "JSON")
    assert ("DOES NOT FIT: " in report, "start it with" in report) == (True, False)
    advice = re.findall(r"^  (.*) fits: ([\d.]+) GiB", report, re.MULTILINE)
    assert any(change.startswith(expected) for change, _ in advice), report
    for change, gib in advice:
        given, _, left = change.partition("without ")
        changed = [word for word in given.split() if word.startswith("--")]
        gone = [name for name in left.split(", ") if name] + changed
        followed = plan_flags.plan_of(typed(*_without(words, gone), *given.split()))
        assert followed.fits, change
        assert f"{followed.gib:.1f}" == gib


def _without(words, flags):
    """A command line without some flags and their values."""
    kept = []
    for i, word in enumerate(words):
        if word not in flags and not (i and words[i - 1] in flags and not word.startswith("--")):
            kept.append(word)
    return kept


def test_what_no_number_of_gpus_holds_is_said():
    words = "--model llama3.1-8b --recipe keep --gpus 1 --gpu-memory 2 --rows-per-micro-batch 32"
    args = typed(*words.split())
    report = plan_report.text(plan_flags.plan_of(args), args, "JSON")
    assert "the GPU needs" in report
    assert "no number of these GPUs up to 1,024 fits" in report
    assert "2 GPUs" not in report


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"no multiple of 24 .* choose 48"):
        plan.evaluate(replace(KEEP, cluster=replace(H100S, gpus=24)), Way())
    with pytest.raises(InputError, match="no multiple of 64 GPUs; choose 64"):
        plan.best(replace(KEEP, cluster=replace(H100S, gpus=64)), Fixed())


def test_a_chunk_of_the_comparison_is_the_trainers():
    assert of_memory.CHUNK == reference.CHUNK


@pytest.mark.parametrize("gpus", [1, 8, 16])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_file_that_is_written_is_one_that_runs_take(tmp_path, gpus, stage):
    found = plan.best(on(gpus, memory=500), Fixed(stage=stage))
    path = tmp_path / "x.json"
    plan_files.write_json(found, path)
    raw = read_json(path)
    ds_keys.check(raw, str(path))
    config = TrainConfig(
        "s",
        "o",
        str(path),
        rows_per_step=32,
        rows_per_micro_batch=found.way.rows_per_micro_batch,
    )
    local = min(gpus, 8)
    assert resolve_deepspeed(raw, config, gpus, 4096, True, local) == found.deepspeed
    assert ("zero_hpz_partition_size" in raw["zero_optimization"]) == (gpus > 8 and stage == 3)


def launched(*flags):
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command_and_its_files(tmp_path):
    flags = ["--model", "llama3.1-8b", "--gpus", 16, "--recipe", "keep", "--zero-stage", 3]
    out, script = tmp_path / "x.json", tmp_path / "x.sbatch"
    done = launched(*flags, "--tokens", 1e9, "--write", out, "--write-sbatch", script, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["parameters"] == LLAMA.n_parameters
    assert found["hours"] > 0
    text = script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    line = re.sub(r"\\\n\s*", "", text).splitlines()[-1]
    options, _, rest = line.partition(" launch/slurm/train.sbatch")
    assert set(re.findall(r"--([a-z-]+)", options)) <= set(SBATCH) | {"time", "ntasks-per-node"}
    assert "--nodes 2 --gpus-per-node 8 --ntasks-per-node 8" in options
    assert f"--deepspeed {out}" in rest
    words = shlex.split(rest)[6:-1]
    assert found["flags"] == dict(zip(words[::2], words[1::2], strict=True))
    assert found["flags"]["--recipe"] == "keep"
    assert int(found["flags"]["--steps"]) == found["steps"] == -(-1_000_000_000 // (32 * 2048))


def submitted(script, folder):
    """What a script gives sbatch, as a shell that runs it passes it on, up to the run's flags."""
    shell = folder / "sbatch"
    shell.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    shell.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "MODEL": "a b", "SHARDS": "s", "OUTPUT": "o"}
    done = subprocess.run(
        ["bash", script], env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    return words[words.index("launch/slurm/train.sbatch") + 1 :]


def trained(words):
    """The flags of a run as ``launch/train.py`` reads them."""
    parser = parser_of(TrainConfig, None)
    parser.set_defaults(**recipes.defaults(words))
    return TrainConfig(**vars(parser.parse_args(words)))


MACHINES = ["--gpus 16 --gpu h100", "--gpus 2 --gpu 4090", "--gpus 1 --gpu h200"]
WHAT = [
    "--recipe keep --tokens 1e9 --row-length 8192",
    "--recipe lossless --lora-rank 8 --positives pair,crops",
    "--recipe paper --alpha 0.25 --steps 70",
    "--recipe keep --adapter everywhere --kl-to-base 0 --rows-per-step 64",
]
HOW = [
    "",
    "--checkpoint-every 3 --zero-stage 2",
    "--checkpoint-every 0 --offload optimizer --rows-per-micro-batch 1",
    "--deepspeed ds_configs/zero3_offload.json",
    "--bf16-states",
]


@pytest.mark.parametrize(("machine", "what", "how"), [*itertools.product(MACHINES, WHAT, HOW)])
def test_the_run_that_is_written_is_the_one_that_was_planned(
    tmp_path, monkeypatch, machine, what, how
):
    """Its flags, planned again, give the same plan: those of the script and of the command."""
    monkeypatch.chdir(ROOT)
    fixed = ["--model", "llama3.2-1b", "--gpu-memory", "200", *machine.split()]
    if "--row-length" in what:
        fixed += ["--row-length", "8192"]
    found = plan_flags.plan_of(typed(*fixed, *what.split(), *how.split()))
    assert found.fits
    out, script = tmp_path / "the file.json", tmp_path / "x.sbatch"
    plan_files.write_json(found, out)
    plan_files.write_sbatch(found, str(out), script)
    launcher, _, command = plan_files.command(found, str(out)).partition("launch/train.py ")
    assert f"--num_gpus {found.job.cluster.gpus} " in launcher or "--hostfile " in launcher
    for words in (submitted(script, tmp_path), shlex.split(command)):
        config = trained(words)
        config.check(found.job.cluster.gpus)
        places = {name: getattr(config, name) for name in (*plan_files.UNKNOWN, "deepspeed")}
        assert config == replace(found.config, **places)
        flags = ["deepspeed", "recipe", "adapter", "lora_rank", "alpha", "kl_to_base", "positives"]
        flags += ["rows_per_step", "rows_per_micro_batch", "steps"]
        again = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in flags]
        every = config.checkpoint_every * config.gradient_checkpointing
        second = plan_flags.plan_of(typed(*fixed, *again, "--checkpoint-every", every))
        assert second.config == found.config
        for name in ("deepspeed", "memory", "traffic", "speed", "micro_batches"):
            assert getattr(second, name) == getattr(found, name), name
        assert plan_files.as_dict(second, "x") == plan_files.as_dict(found, "x")


def test_a_model_and_shards_that_are_there_are_written(tmp_path, tokenizer_dir):
    folder = random_shards(tmp_path / "the shards", tokenizer_dir, n_rows=2, row_length=64, k=2)
    base = tmp_path / "the base"
    base.mkdir()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "vocab_size": 400}
    (base / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    script = tmp_path / "x"
    done = launched(*("--model", base, "--shards", folder, "--gpus", 1, "--write-sbatch", script))
    assert done.returncode == 0, done.stderr
    config = trained(submitted(script, tmp_path))
    assert (config.model, config.shards, config.output) == (str(base), str(folder), "o")
    assert Path(config.deepspeed) == tmp_path / "x.json"
    assert read_json(config.deepspeed)["zero_optimization"]["stage"] == 2
    done = subprocess.run(["bash", script], env={"PATH": "/bin"}, capture_output=True, text=True)
    assert done.returncode
    assert "OUTPUT: not set" in done.stderr


def test_nothing_is_written_where_nothing_fits(tmp_path):
    small = ("--model", "llama3.1-8b", "--gpus", 1, "--gpu-memory", 2, "--recipe", "keep")
    done = launched(*small, "--write-sbatch", tmp_path / "x", "--json")
    assert (done.returncode, json.loads(done.stdout)["fits"]) == (1, False)
    assert done.stderr.startswith("does not fit, so not written: ")
    assert list(tmp_path.iterdir()) == []


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
    names = dict.fromkeys(shapes.SIZES, 64)
    for name in shapes.SIZES:
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "llama", **names, name: size})
        )
        with pytest.raises(InputError, match=f"{name} = {size!r}, which is no size"):
            shapes.load(tmp_path)


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
    # The others launch processes; tests/test_communication.py and test_memory.py run what they do.
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
