"""launch/slurm/train.sbatch on a real SLURM of two nodes: signalled, requeued, continued, ended."""

import os
import re
import shlex
import subprocess
import time
from dataclasses import fields

import pytest
import torch
from runs import ROOT, fp32, llama_config, metrics, random_shards, train
from slurm_cluster import SBATCH, slurm, submit, wait

from gem_ds import launcher
from gem_ds.checkpoints.checkpoint import find, found, load_weights
from gem_ds.training.config import TrainConfig

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
TEXT = SCRIPT.read_text()
SRUN = ["cpus-per-task", "kill-on-bad-exit"]


def options(command):
    return [word.split("=")[0] for word in shlex.split(command) if word.startswith("--")]


def test_bash_accepts_it():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_every_option_exists():
    assert re.findall(r"^##?SBATCH --([a-z-]+)", TEXT, re.MULTILINE) == SBATCH
    (line,) = re.findall(r"^srun .*", TEXT.replace("\\\n", " "), re.MULTILINE)
    srun, _ = line.split(" python launch/train.py ")
    assert options(srun) == [f"--{name}" for name in SRUN]
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig)}
    defaults = re.findall(r"^ *default (--[a-z-]+) ", TEXT, re.MULTILINE)
    assert defaults == ["--deepspeed", "--stop-status", "--resume"]
    assert set(defaults) <= flags


@pytest.fixture(scope="module")
def cluster():
    with slurm() as env:
        yield env


def test_a_signalled_job_continues_and_ends_as_if_undisturbed(cluster, tmp_path, tokenizer_dir):
    """Spaces in what a user appends reach training too."""
    shards = random_shards(tmp_path / "the shards", tokenizer_dir, n_rows=8)
    common = ["--config", llama_config(tmp_path / "llama"), "--shards", shards, "--steps", "60"]
    common += ["--rows-per-step", "4", "--save-every", "1000", "--alpha-start", "2"]
    config = fp32("zero3.json", tmp_path)
    cwd = tmp_path / "repository"
    cwd.mkdir()
    for name in ("launch", "ds_configs", ".venv"):
        (cwd / name).symlink_to(ROOT / name)
    env = {**cluster, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    ours = ["--nodes=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1"]
    ours += ["--time=10", "--output=log"]
    run = tmp_path / "run"
    flags = [*common, "--output", run, "--deepspeed", config]
    job = submit(env, *ours, SCRIPT, *flags, cwd=cwd)

    def log():
        return (cwd / "log").read_text() if (cwd / "log").exists() else ""

    until = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 5:
        assert time.monotonic() < until, log()
        assert "error" not in log()
        time.sleep(0.2)
    # As SLURM does it some time before the limit, by --signal=B:USR1@300.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=env, check=True)
    assert wait(env, job, 240) == ["COMPLETED"], log()
    assert re.search(r"stopped as asked, after \d+ of 60 steps", log())
    assert f"job {job} goes back into the queue" in log()
    starts = (run / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2
    assert [m["step"] for m in metrics(run)] == list(range(60))
    assert len(found(run)) == 2, "of the signal and of the end"

    train(*common, "--output", tmp_path / "whole", ranks=2, deepspeed=config)
    losses = [[m["loss/total"] for m in metrics(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    here, undisturbed = (load_weights(find(tmp_path / name)) for name in ("run", "whole"))
    assert all(torch.equal(here[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.parametrize(
    ("appended", "told"),
    [
        ("", "--deepspeed ds_configs/zero3.json --stop-status 0"),
        ("--model 'a b'", "--model a b --deepspeed ds_configs/zero3.json --stop-status 0"),
        ("--deepspeed my.json", "--deepspeed my.json --stop-status 0"),
        ("--deepspeed=my.json --stop-status 3", "--deepspeed=my.json --stop-status 3"),
    ],
)
def test_what_is_appended_takes_the_place_of_a_default(appended, told):
    """No flag may be given twice."""
    (part,) = re.findall(r"^flags=.*?^default --stop-status 0$", TEXT, re.MULTILINE | re.DOTALL)
    command = f'set -euo pipefail\nset -- {appended}\n{part}\necho "${{flags[@]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def test_as_many_processes_as_gpus(cluster, tmp_path):
    cwd = tmp_path
    (cwd / ".venv").symlink_to(ROOT / ".venv")
    ours = ["--nodes=2", "--gpus-per-node=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
    job = submit(cluster, *ours, "--output=log", SCRIPT, cwd=cwd)
    assert wait(cluster, job) == ["FAILED"]
    assert "give sbatch --ntasks-per-node 2" in (cwd / "log").read_text()


def test_ranks_of_other_launchers_and_of_none():
    env = {"RANK": "3", "WORLD_SIZE": "4"}
    launcher.join(env)
    assert env == {"RANK": "3", "WORLD_SIZE": "4"}
    env = {"MASTER_PORT": "7"}
    launcher.join(env)
    assert env["RANK"] == env["LOCAL_RANK"] == "0"
    assert env["WORLD_SIZE"] == "1"
    assert env["MASTER_PORT"] == "7"
    env = {"SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    env |= {"SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_JOB_ID": "123456", "MASTER_ADDR": "a"}
    launcher.join(env)
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("5", "7", "1")
    assert (env["LOCAL_WORLD_SIZE"], env["MASTER_ADDR"], env["MASTER_PORT"]) == ("4", "a", "23456")
    assert os.environ.get("RANK") is None
