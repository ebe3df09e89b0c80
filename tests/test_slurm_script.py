"""launch/slurm/train.sbatch, as far as a machine without SLURM can tell: its options, and its
torchrun line as the only machine of a job would run it."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from runs import ROOT, llama_config, metrics, random_shards
from torch.distributed.run import get_args_parser

from gem_ds.config import TrainConfig

SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
TEXT = SCRIPT.read_text()
# The options of sbatch and srun that the script means to use.
SBATCH = [
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive"),
    *("time", "requeue", "open-mode", "output", "partition", "account"),
]
SRUN = ["cpus-per-task", "kill-on-bad-exit"]


def start() -> tuple[str, str]:
    """The script's last command, cut in front of torchrun: srun with its options, and the rest."""
    (line,) = re.findall(r"^srun .*", TEXT.replace("\\\n", " "), re.MULTILINE)
    srun, rest = line.split(" torchrun ")
    return srun, f"torchrun {rest}"


def options(command: str) -> list[str]:
    return [word.split("=")[0] for word in shlex.split(command) if word.startswith("--")]


def test_bash_accepts_it():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_every_option_exists():
    assert re.findall(r"^##?SBATCH --([a-z-]+)", TEXT, re.MULTILINE) == SBATCH
    srun, rest = start()
    assert options(srun) == [f"--{name}" for name in SRUN]
    torchrun, script = rest.split(" launch/train.py ")
    known = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert set(options(torchrun)) <= known
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig)}
    assert set(options(script)) <= flags
    flag, value = re.findall(r"resume=\((--\w+) (\w+)\)", TEXT)[0]
    assert flag in flags
    assert value in get_args(get_type_hints(TrainConfig)[flag.removeprefix("--")])


def test_its_torchrun_line_trains_in_two_processes(tmp_path, tokenizer_dir):
    """What a user appends reaches training, spaces in it included."""
    shards = random_shards(tmp_path / "the shards", tokenizer_dir, n_rows=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--config", llama_config(tmp_path), "--shards", shards, "--output", tmp_path / "run")
    flags += ("--steps", 1, "--rows-per-step", 4, "--alpha-start", 0)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"resume=()\n{start()[1]}", SCRIPT, *map(str, flags)],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_ID": "7",
            "gpus": "2",
            "first": "127.0.0.1",
            "port": str(port),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(metrics(tmp_path / "run")) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["world_size"] == 2
