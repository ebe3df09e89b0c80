"""Jobs, and ``launch/plan.py``, for tests of the planner."""

import subprocess
import sys
from dataclasses import replace

from runs import ROOT

from gem_ds import hardware
from gem_ds.model import architecture
from gem_ds.planning import plan_flags
from gem_ds.planning.expected_batch import Data
from gem_ds.planning.speed import Cluster
from gem_ds.planning.strategy import Job
from gem_ds.training.config import TrainConfig

H100S = Cluster(hardware.GPUS["h100"], 8, 8)
LLAMA = architecture.BUILT_IN["llama3.1-8b"]
CONFIG = TrainConfig("", "", "", model="base", negatives="all", alpha_start=0, kl_to_base=2.0)
KEEP = Job(LLAMA, H100S, Data(8192), config=CONFIG)

# Of the model that several tests follow through ZeRO-3.
SHAPE = replace(
    architecture.BUILT_IN["llama3.1-8b"],
    hidden=128,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    mlp=384,
    vocab=2048,
)


def on(gpus, gpu="h100", job=KEEP, memory=None):
    found = hardware.GPUS[gpu]
    found = replace(found, memory=memory or found.memory)
    return replace(job, cluster=Cluster(found, gpus, 8))


def told(job=KEEP, **flags):
    return replace(job, config=replace(job.config, **flags))


def typed(*words):
    """The parsed flags of ``launch/plan.py``."""
    return plan_flags.parser("").parse_args([str(word) for word in words])


def launched(*flags):
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
