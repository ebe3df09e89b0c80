"""gem_ds.planning.speed: predictions near what others published, and what must follow from what."""

import re
from dataclasses import replace

import pytest
from runs import ROOT

from gem_ds import hardware
from gem_ds.model import architecture
from gem_ds.planning import plan
from gem_ds.planning.expected_batch import Data
from gem_ds.planning.speed import Cluster
from gem_ds.planning.strategy import Job, Way
from gem_ds.training.config import TrainConfig

DOCS = (ROOT / "docs" / "performance.md").read_text()
H100S = Cluster(hardware.GPUS["h100"], 8, 8)
# Rows of one plain document: what those runs trained on.
ROW = Data(8192, 8192, 0.0, 0)
# Tokens a second and GPU, on eight H100s, as published by torchtitan (selective checkpointing, not
# compiled) and llm-foundry (full checkpointing; MPT 7B).
PUBLISHED = {
    "llama3.1-8b": (5762, 2),
    "mistral-7b-v0.3": (6935, 1),
}


def job(model="llama3.1-8b", cluster=H100S, **changed):
    config = TrainConfig("", "", "", model=model, alpha=0.0, alpha_start=0, rows_per_step=16)
    about = {"data": ROW, "config": config, **changed}
    return Job(architecture.BUILT_IN[model], cluster, **about)


@pytest.mark.parametrize("model", PUBLISHED)
def test_predictions_are_near_what_was_published(model):
    published, every = PUBLISHED[model]
    found = plan.evaluate(job(model), Way(checkpoint_every=every))
    each = found.tokens_per_second / 8
    assert each == pytest.approx(published, rel=0.25)
    shown = re.search(rf"\| {published:,} \| ([\d,]+)", DOCS)[1]
    assert shown == f"{each:,.0f}", "docs/performance.md"


def test_mfu_counts_no_recomputation():
    again = plan.evaluate(job(), Way(checkpoint_every=1)).speed
    once = plan.evaluate(job(), Way(checkpoint_every=0)).speed
    assert again.model_flops == once.model_flops == once.hardware_flops
    assert again.hardware_flops > 1.2 * again.model_flops
    assert again.mfu < once.mfu
    assert once.mfu == pytest.approx(once.model_flops / 8 / once.seconds / 989e12)


def test_traffic_counts_where_it_is_not_hidden():
    machines = replace(H100S, gpus=16)
    slow = replace(machines, gpu=replace(machines.gpu, outside=1e8))
    fast, slowed = (plan.evaluate(job(cluster=c), Way()).speed for c in (machines, slow))
    assert fast.seconds == pytest.approx(fast.computing + fast.after)
    assert slowed.seconds == pytest.approx(slowed.traffic + slowed.after)
    assert slowed.seconds > 2 * fast.seconds
    off = {"stage": 3, "overlap_comm": False}
    file = {"bf16": {"enabled": True}, "zero_optimization": off}
    added = plan.evaluate(job(cluster=machines), Way(file=file)).speed
    assert added.seconds == pytest.approx(added.computing + added.traffic + added.after)


def test_offload_costs_time():
    times = [plan.evaluate(job(), Way(offload=offload)).speed.seconds for offload in plan.OFFLOADS]
    assert times == sorted(times)
    assert times[0] < times[1]
