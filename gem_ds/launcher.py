"""Which rank a process is, from the environment of whatever started it.

torchrun and DeepSpeed's launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
SLURM's srun has names of its own; a process without a launcher is the only one.
"""

import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Mapping, MutableMapping

from gem_ds.errors import InputError

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_SRUN = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}
_PORTS = range(20000, 30000)  # below those that kernels give to outgoing connections


def join(env: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables by which PyTorch finds the other ranks, where no launcher has.

    Under srun the ranks meet on the first machine, at a port that differs between jobs. A process
    alone takes a port that is free.
    """
    if "RANK" in env:
        return
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        here = {**_ALONE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    else:
        here = {name: env[theirs] for name, theirs in _SRUN.items()}
        here["LOCAL_WORLD_SIZE"] = _tasks_here(env)
        here["MASTER_PORT"] = str(_PORTS[int(env["SLURM_JOB_ID"]) % len(_PORTS)])
        if "MASTER_ADDR" not in env:
            here["MASTER_ADDR"] = _first_host(env["SLURM_STEP_NODELIST"])
    for name, value in here.items():
        env.setdefault(name, value)


def rank(env: Mapping[str, str] = os.environ) -> int:
    """Which this process is, also before the ranks have joined."""
    return int(env.get("RANK", "0"))


def size(env: Mapping[str, str] = os.environ) -> int:
    """The ranks of the run, once they have joined."""
    return int(env["WORLD_SIZE"])


def local_size(env: Mapping[str, str] = os.environ) -> int:
    """The ranks on this machine, once they have joined; LOCAL_SIZE is of DeepSpeed's launcher."""
    found = env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or env["WORLD_SIZE"]
    return int(found)


def _free_port() -> str:
    """Any of `_PORTS` but one in use: two runs that start at once take different ones."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise InputError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free; set MASTER_PORT")


def _tasks_here(env: MutableMapping[str, str]) -> str:
    """Of SLURM_STEP_TASKS_PER_NODE, such as ``4(x2),3``: all but the last machine have as many."""
    return env["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]


def _first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{' '.join(command)} failed ({error}); set MASTER_ADDR") from error
    return done.stdout.split()[0]
