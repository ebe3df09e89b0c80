"""What it takes to repeat a run, written into its folder: ``run.json``, and ``starts.jsonl`` of
every time that it was started."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gem_ds import distributed
from gem_ds.errors import InputError
from gem_ds.files import replacing

LIBRARIES = (
    *("gem_ds", "torch", "deepspeed", "transformers", "peft"),
    *("tokenizers", "numpy", "pyarrow"),
)
FILE = "run.json"
METRICS = "metrics.jsonl"  # beside it
_VARIABLES = ("CUBLAS_", "CUDA_", "DS_", "GLOO_", "HF_", "MASTER_", "NCCL_", "OMP_", "PYTORCH_")
_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def environment() -> dict[str, Any]:
    """Where and how this start was made. All ranks call."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hosts = distributed.gather(socket.gethostname())
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES + _SLURM) and not any(x in name for x in _SECRET)
    }
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "commit": commit(),
        "hosts": list(dict.fromkeys(hosts)),
        "world_size": distributed.world_size(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "variables": variables,
    }


def commit() -> str | None:
    """The git commit of this code, with a + where files differ from it; nothing outside git."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The flags (``config``) and ``versions`` of a run.

    Raises `InputError` where its ``run.json`` is missing or damaged.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_bytes())
        told = {key: dict(found[key]) for key in ("config", "versions")}
        if not told["config"].keys() >= {"model", "config"}:
            raise ValueError("the base is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r}); copy it again from where the run was, or start "
            "the run again with --resume auto, which writes it"
        ) from error
    return told


def write(folder: Path, first_step: int, started: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Write ``run.json`` and a line of ``starts.jsonl``. On rank 0."""
    with replacing(folder / FILE) as partial:
        content = {**resolved, "environment": started, "versions": versions()}
        partial.write_text(json.dumps(content, indent=1))
    with (folder / "starts.jsonl").open("a") as file:
        line = {"first_step": first_step, **started, "versions": versions()}
        file.write(json.dumps(line) + "\n")
