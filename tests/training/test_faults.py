"""What happens to a run: killed and stopped ranks, signals, full disks, losses that are no numbers.

Real processes, two ranks. Checkpoint by checkpoint: see test_checkpoint; kills at random moments:
benchmarks/faults.py.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults_runs import Started, metrics
from helpers import small_disk
from processes import until
from runs import ROOT, command, fp32, llama_config, random_shards, train

from gem_ds.checkpoints.checkpoint import damage, find, found
from gem_ds.checkpoints.run_record import METRICS
from gem_ds.errors import STOPPED, InputError
from gem_ds.training.config import TrainConfig
from gem_ds.training.dry_run import memory_advice
from gem_ds.training.watchdog import FOLDER


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("faults")
    random_shards(folder / "shards", tokenizer_dir, n_rows=8)
    llama_config(folder / "llama")
    fp32("zero3.json", folder)
    return folder


def flags(made, output, **more):
    given = {"config": made / "llama", "shards": made / "shards", "output": output}
    given |= {"rows_per_step": 4, "alpha_start": 0, "deepspeed": made / "fp32-zero3.json", **more}
    return [part for name, v in given.items() for part in (f"--{name.replace('_', '-')}", v)]


@contextlib.contextmanager
def started(made, run, **more):
    """A run of two ranks under way, in a folder."""
    line = command("launch/train.py", *flags(made, run, **more), ranks=2)
    begun = Started(run, line, made / f"{run.name}.log")
    try:
        yield begun
    finally:
        begun.kill()
        begun.process.wait()


def wait(begun, there):
    """Until it is so, or the run has ended."""
    until(lambda: there() or begun.process.poll() is not None, 120)
    assert there(), begun.text()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_rank_that_is_gone_is_named_and_nothing_is_left_behind(made, how):
    number = {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL}[how]
    with started(made, made / how, steps=10**6, timeout_minutes=0.05) as run:
        wait(run, lambda: len(metrics(run.run)) > 3)
        pid = run.pid(1)
        run.kill(number, rank=1)
        assert run.is_gone(25), "and no process is left"
        (error,) = [line for line in run.text().splitlines() if line.startswith("error")]
        condition = "stopped" if how == "stopped" else "dead"
        gone = rf"rank 1 \(process {pid} on \S+\) is {condition}.* in step \d+, .*--resume auto"
        assert re.search(gone, error), error
        assert run.process.returncode != 0
        if how == "stopped":
            assert "train_step" in (run.run / FOLDER / "rank-00000.stacks.txt").read_text()


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_and_another_run_is_kept_out(made):
    with started(made, made / "signalled", steps=10**6) as run:
        wait(run, lambda: len(metrics(run.run)) > 3)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free.getsockname()[1])}
        line = [sys.executable, str(ROOT / "launch/train.py")]
        line += map(str, flags(made, run.run, resume="auto"))
        second = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120)
        assert f"{run.run} is being written by another run" in second.stderr
        assert second.returncode == 2
        run.kill(signal.SIGTERM, rank=1)
        assert run.process.wait(timeout=60) == STOPPED, run.text()
    done = len(metrics(run.run))
    assert f"stopped as asked, after {done} of 1000000 steps" in run.text()
    assert "OVERFLOW" not in run.text(), "the rehearsal's, in which nothing is wrong"
    assert find(run.run).name == f"step-{done:08d}"
    assert damage(find(run.run)) == ""


def test_a_signal_while_it_starts_or_ends_does_no_harm(made, monkeypatch):
    """SIGUSR1 again and again, from the handler's being there until the process is not."""
    run = made / "hailed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    given = flags(made, run, steps=1, rehearse=False)
    begun = Started(run, [sys.executable, *map(str, (ROOT / "launch/train.py", *given))])
    number = 1 << (signal.SIGUSR1 - 1)
    status = Path("/proc") / str(begun.process.pid) / "status"

    def handled():
        return int(re.search(r"SigCgt:\s+(\w+)", status.read_text())[1], 16) & number

    assert until(handled, 60)
    n = 0
    while begun.process.poll() is None:
        begun.process.send_signal(signal.SIGUSR1)
        n += 1
        time.sleep(0.01)
    assert begun.process.returncode == 0, begun.text()
    assert n > 100
    assert find(run).name == "step-00000001"


ROOM = 600_000  # bytes: more than a checkpoint of the tiny model, less than two


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 6) as folder:
        yield folder


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(made, disk):
    """The first is written, then there is no room for a second, until there is."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - ROOM))
    run = disk / "run"
    with started(made, run, steps=10**6, save_every=4) as begun:
        wait(begun, lambda: len(metrics(run)) > 10)
        assert "saved" in begun.text()
        assert re.search(r"WARNING: the checkpoint of step 8 could not be written", begun.text())
        assert [path.name for path in found(run)] == ["step-00000004"]
        assert not list((run / "checkpoints").glob("*.tmp/*"))
        with (disk / "more").open("wb", buffering=0) as more, contextlib.suppress(OSError):
            while True:
                more.write(bytes(4096))
        wait(begun, lambda: f"WARNING: {METRICS} lacks step" in begun.text())
        ballast.unlink()
        n = len(metrics(run))
        wait(begun, lambda: len(metrics(run)) > n + 9)
    assert len(found(run)) >= 2
    assert all(damage(path) == "" for path in found(run))
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - ROOM // 4))
    done = train(*flags(made, run, steps=10**6, resume="auto"), check=False)
    assert re.search(r"has room for \d.* GiB and a checkpoint takes .* make room", done.stderr)


def test_gradients_that_are_not_finite_change_nothing_and_end_the_run(made):
    """A rate that blows the weights up in the first step; the checkpoint is of before."""
    run = made / "infinite"
    more = {"learning_rate": "1e30", "warmup_steps": 0, "steps": 20, "max_skipped_steps": 3}
    done = train(*flags(made, run, **more), check=False)
    assert done.returncode == 2
    assert "3 steps in a row, the last 3, had gradients that are not finite" in done.stderr
    assert [m["train/skipped"] for m in metrics(run)] == [0, 1, 1, 1]
    assert find(run).name == "step-00000001"
    lines = (run / "unusual-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert all(len(json.loads(line)["rows"]) == 4 for line in lines)


def test_out_of_memory_says_what_to_change(made):
    config = TrainConfig(
        shards="", output="", deepspeed="", rows_per_micro_batch=8, gradient_checkpointing=False
    )
    manifest = SimpleNamespace(row_length=512)
    engine = SimpleNamespace(zero_optimization_stage=lambda: 2, module=torch.nn.Linear(4, 4))
    run = SimpleNamespace(config=config, engine=engine, device=torch.device("cpu"))
    run.loader = SimpleNamespace(shards=SimpleNamespace(manifest=manifest))
    cures = "give --rows-per-micro-batch 4 or --gradient-checkpointing true or --deepspeed .*zero3"
    message = rf"in step 7 .* at 8 rows of 512 tokens: .*{cures}"
    with pytest.raises(InputError, match=message), memory_advice(run, "in step 7"):
        torch.empty(2**60, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="other"), memory_advice(run, "in step 7"):
        raise RuntimeError("other")
