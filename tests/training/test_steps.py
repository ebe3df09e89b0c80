"""Real DeepSpeed processes over gloo: same rows, same numbers; resuming."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from runs import (
    command,
    metrics,
    small_llama,
    train,
)
from single_steps import assert_same, one_step

from gem_ds.checkpoints.checkpoint import find, load_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    return small_llama(tmp_path_factory.mktemp("steps"), tokenizer_dir)


def test_same_rows_same_numbers(made):
    dropout = {"alpha": 0.5, "config": made / "tied", "positives": "dropout"}
    continuation = {"alpha": 0.5, "config": made / "untied", "positives": "continuation"}
    crops = {"alpha": 0.5, "config": made / "tied", "positives": "dropout,crops"}
    crops |= {"crop_tokens": "2-8", "crop_every": 16, "negatives": "all"}
    crops |= {"matryoshka": "8,16", "aggregation": "concat"}
    pairs = {"alpha": 0.5, "config": made / "tied", "shards": made / "pairs", "positives": "pair"}
    contrastive = {"alpha": 1.0, "config": made / "untied", "positives": "dropout"}
    ntp = {"alpha": 0.0, "config": made / "untied"}
    one = one_step(
        made,
        1,
        {
            "dropout": {**dropout, "rows_per_micro_batch": 8},
            "continuation": {**continuation, "rows_per_micro_batch": 4},
            "crops": {**crops, "rows_per_micro_batch": 8},
            "pairs": {**pairs, "rows_per_micro_batch": 8},
            "contrastive": {**contrastive, "rows_per_micro_batch": 8},
            "ntp": {**ntp, "rows_per_micro_batch": 8},
            "ntp-accumulated": {**ntp, "rows_per_micro_batch": 1},
        },
    )
    two = one_step(
        made,
        2,
        {
            "dropout": {**dropout, "rows_per_micro_batch": 4},
            "continuation": {**continuation, "rows_per_micro_batch": 2},
            "crops": {**crops, "rows_per_micro_batch": 4},
            "pairs": {**pairs, "rows_per_micro_batch": 4},
            "contrastive": {**contrastive, "rows_per_micro_batch": 4},
            "ntp": {**ntp, "rows_per_micro_batch": 1},
        },
    )
    for name, result in two.items():
        assert_same(one[name], result)
    assert_same(one["ntp"], one["ntp-accumulated"])
    values = one["dropout"]["values"]
    assert values["data/anchors"] > 8
    assert values["loss/contrastive"] > 0.01
    assert one["contrastive"]["values"]["loss/ntp"] == 0, "no logits are computed at alpha = 1"
    grads = one["contrastive"]["grads"]
    assert grads["lm.lm_head.weight"].abs().max() == 0
    assert all(g.abs().max() > 0 for name, g in grads.items() if name != "lm.lm_head.weight")
    assert one["ntp"]["grads"]["log_scale"].abs().max() == 0
    assert one["dropout"]["grads"]["log_scale"].abs().max() > 0


def test_a_resumed_run_continues_bit_for_bit(made):
    """Killed twice with all its processes, a run ends with the losses of one left alone."""
    flags = ("--config", made / "untied", "--shards", made / "shards", "--rows-per-step", 4)
    flags += ("--learning-rate", "1e-2", "--alpha-start", 2, "--warmup-steps", 0)
    flags += ("--save-every", 3, "--steps", 9, "--resume", "auto")
    config = made / "fp32-zero3.json"
    lines = [train(*flags, "--output", made / "whole", ranks=2, deepspeed=config).args]
    cut = made / "cut"
    for step in (3, 6):
        path = cut / "checkpoints" / f"step-{step:08d}"
        lines.append(train_until(path, *flags, "--output", cut, config=config))
    train(*flags, "--output", cut, ranks=2, deepspeed=config)

    def exact(run):
        noisy = ("speed/", "memory/")
        return [{k: v for k, v in m.items() if not k.startswith(noisy)} for m in metrics(run)]

    assert exact(made / "whole") == exact(cut)
    assert [m["step"] for m in exact(cut)] == list(range(9))
    for run in ("whole", "cut"):
        kept = sorted(p.name for p in (made / run / "checkpoints").glob("step-*"))
        assert kept == ["step-00000006", "step-00000009"]
    whole, resumed = (load_weights(find(made / run)) for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # On CPUs ranks share memory, which nothing else would remove, be a run ended or killed.
    for line in lines:
        port = line[line.index("--master_port") + 1]
        assert not list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))


def train_until(path, *flags, config):
    """Train in two processes until `path` is there, then kill everything; the command line."""
    line = command("launch/train.py", "--deepspeed", config, *flags, ranks=2)
    process = subprocess.Popen(
        line,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert process.poll() is None, "the run ended before it was cut off"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
    return line
