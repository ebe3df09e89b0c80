"""What the planner writes is the run that it planned."""

import itertools
import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from plans import LLAMA, launched, on, typed
from runs import ROOT, random_shards
from slurm_cluster import SBATCH

from gem_ds.flags import parser_of
from gem_ds.planning import deepspeed_template, plan, plan_flags
from gem_ds.planning.plan import Fixed
from gem_ds.training import deepspeed_keys, recipes
from gem_ds.training.config import TrainConfig
from gem_ds.training.deepspeed_config import read_json, resolve_deepspeed


@pytest.mark.parametrize("gpus", [1, 8, 16])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_file_that_is_written_is_one_that_runs_take(tmp_path, gpus, stage):
    found = plan.best(on(gpus, memory=500), Fixed(stage=stage))
    path = tmp_path / "x.json"
    deepspeed_template.write_json(found, path)
    raw = read_json(path)
    deepspeed_keys.check(raw, str(path))
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


def test_flags_of_saving_are_written_where_they_are_given():
    found = plan.best(on(8), Fixed())
    often = replace(found, job=replace(found.job, config=replace(found.config, save_minutes=30.0)))
    assert deepspeed_template.train_flags(often, "x.json")["--save-minutes"] == "30.0"
    assert "--save-minutes" not in deepspeed_template.train_flags(found, "x.json")


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
    deepspeed_template.write_json(found, out)
    deepspeed_template.write_sbatch(found, str(out), script)
    launcher, _, command = deepspeed_template.command(found, str(out)).partition("launch/train.py ")
    assert f"--num_gpus {found.job.cluster.gpus} " in launcher or "--hostfile " in launcher
    for words in (submitted(script, tmp_path), shlex.split(command)):
        config = trained(words)
        config.check(found.job.cluster.gpus)
        places = {
            name: getattr(config, name) for name in (*deepspeed_template.UNKNOWN, "deepspeed")
        }
        assert config == replace(found.config, **places)
        flags = ["deepspeed", "recipe", "adapter", "lora_rank", "alpha", "kl_to_base", "positives"]
        flags += ["rows_per_step", "rows_per_micro_batch", "steps"]
        again = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in flags]
        every = config.checkpoint_every * config.gradient_checkpointing
        second = plan_flags.plan_of(typed(*fixed, *again, "--checkpoint-every", every))
        assert second.config == found.config
        for name in ("deepspeed", "memory", "traffic", "speed", "micro_batches"):
            assert getattr(second, name) == getattr(found, name), name
        assert deepspeed_template.as_dict(second, "x") == deepspeed_template.as_dict(found, "x")


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
