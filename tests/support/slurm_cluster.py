"""A real SLURM of two nodes on this machine for tests, by tests/support/cluster/slurm.sh."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

# The options of sbatch that the script of a training run means to use.
SBATCH = [
    *("job-name", "nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "exclusive"),
    *("time", "signal", "requeue", "open-mode", "output", "partition", "account"),
]
SCRIPT = Path(__file__).parent / "cluster" / "slurm.sh"
# A job in one of these states stays there, unless somebody requeues it.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch, srun and scontrol reach a cluster of this test's own.

    Without Debian's packages the test is skipped, or fails where GEM_DS_REQUIRE_CLUSTER is 1.
    """
    # What an outer SLURM, which runs these tests, says about its job is not for the inner one.
    outer = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SINFO_", "SQUEUE_", "SCANCEL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    env["PATH"] = f"{env['PATH']}{os.pathsep}/usr/sbin"
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if not shutil.which(program, path=env["PATH"]):
            missing = f"{program} is not installed: apt install slurm-wlm munge"
            if os.environ.get("GEM_DS_REQUIRE_CLUSTER") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
    # Not under pytest's folder, whose path may be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        started = _script("start", folder, env)
        assert started.returncode == 0, started.stderr
        yield env | {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        stopped = _script("stop", folder, env)
        assert stopped.returncode == 0, stopped.stderr
        shutil.rmtree(folder)


def _script(action: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), action, str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def submit(env: Mapping[str, str], *arguments: object, cwd: Path) -> str:
    """Submit a job by sbatch's own arguments; returns its id."""
    command = ["sbatch", "--parsable", *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait(env: Mapping[str, str], job: str, seconds: float = 60) -> list[str]:
    """Wait until the job, or every task of the array, is at its end; returns their states."""
    until = time.monotonic() + seconds
    while True:
        command = ["scontrol", "--oneliner", "show", "job", job]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        states = re.findall(r"\bJobState=(\w+)", done.stdout)
        if states and FINAL.issuperset(states):
            return states
        assert time.monotonic() < until, f"after {seconds} s:\n{done.stdout}{done.stderr}"
        time.sleep(0.2)
