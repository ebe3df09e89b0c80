"""gem_ds.plan and what tells of it: choices, cures, files, and launch/plan.py as it is typed."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import plan_table
import pytest
from runs import ROOT, random_shards
from test_readme import commands
from test_slurm_script import SBATCH

from gem_ds import ds_keys, hardware, plan, plan_files, plan_flags, plan_report, reference, shapes
from gem_ds import memory as of_memory
from gem_ds.config import TrainConfig
from gem_ds.ds_json import read_json, resolve_deepspeed
from gem_ds.errors import InputError
from gem_ds.expected import Data
from gem_ds.plan import Fixed
from gem_ds.speed import Cluster
from gem_ds.ways import Job, Way

H100S = Cluster(hardware.GPUS["h100"], 8, 8)
LLAMA = shapes.BUILT_IN["llama3.1-8b"]
KEEP = Job(LLAMA, H100S, Data(8192), alpha=0.5, kl_to_base=2.0)
DOCS = (ROOT / "docs" / "performance.md").read_text()


def on(gpus, gpu="h100", job=KEEP, memory=None):
    found = hardware.GPUS[gpu]
    found = replace(found, memory=memory or found.memory)
    return replace(job, cluster=Cluster(found, gpus, 8))


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
    least = plan.smallest(KEEP, fixed)
    n = least.job.cluster.gpus
    assert least.fits
    assert n > 1
    assert not plan.best(on(n // 2), fixed).fits
    assert plan.smallest(on(8, memory=4), fixed, most=64) is None


def test_more_of_anything_needs_more_memory():
    base = plan.evaluate(KEEP, Way()).gib
    for way in (Way(rows_per_micro_batch=2), Way(checkpoint_every=0), Way(stage=2)):
        assert plan.evaluate(KEEP, way).gib > base
    for way in (Way(offload="optimizer"), Way(bf16_states=True)):
        assert plan.evaluate(KEEP, way).gib < base
    assert plan.evaluate(on(16), Way()).gib < base
    lossless = replace(KEEP, adapter="summary", lora_rank=32, alpha=1.0, kl_to_base=0.0)
    assert plan.evaluate(lossless, Way()).gib < 0.5 * base


def test_states_are_sixteen_bytes_a_parameter():
    job = replace(KEEP, kl_to_base=0.0)
    states = plan.evaluate(job, Way()).memory.states
    padded = LLAMA.with_summary_tokens(8).n_parameters + 1
    assert sum(states.values()) == pytest.approx((2 + 4 + 4 + 8) * padded / 8)
    bf16 = plan.evaluate(job, Way(bf16_states=True)).memory.states
    assert sum(bf16.values()) == pytest.approx((2 + 4 + 2 + 4) * padded / 8)
    offloaded = plan.evaluate(job, Way(offload="all")).memory
    assert offloaded.states == {}
    assert offloaded.of_host == pytest.approx((18 + 4) * padded / 8)


def test_what_would_make_it_fit_is_said():
    job = on(8, memory=40)
    fixed = Fixed(stage=2, checkpoint_every=0)
    assert not plan.best(job, fixed).fits
    found = plan.cures(job, fixed)
    assert "--recipe lossless" in found
    assert all(cure.fits for cure in found.values())
    told = plan_report.text(plan.best(job, fixed), fixed)
    assert "DOES NOT FIT" in told
    assert all(f"  {flag} fits" in told for flag in found)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"no multiple of 24 .* choose 48"):
        plan.evaluate(replace(KEEP, cluster=replace(H100S, gpus=24)), Way())
    with pytest.raises(InputError, match="no multiple of 64 GPUs"):
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
    assert f"--deepspeed {out}" in rest
    named = {name.replace("_", "-") for name in TrainConfig.__dataclass_fields__}
    assert set(re.findall(r"--([a-z-]+)", rest)) <= named


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


def test_data_of_shards_is_taken(tmp_path, tokenizer_dir):
    folder = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=2, row_length=64, k=2)
    args = plan_flags.parser("").parse_args(
        ["--model", "llama3.2-1b", "--shards", str(folder), "--peak", "500", "--gpus", "1"]
    )
    job = plan_flags.job_of(args)
    assert (job.data.row_length, job.data.summary_tokens) == (64, 2)
    assert job.cluster.gpu.peak == 5e14
    assert (job.adapter, job.lora_rank, job.views.kinds) == ("summary", 32, ("crops",))


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
