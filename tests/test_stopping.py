"""Signals: what is remembered, what ends a process at once, and whose they are."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from faults_runs import Started, metrics
from processes import free_port, until
from runs import ROOT, command, llama_config, random_shards

from gem_ds.checkpoints.checkpoint import damage, find
from gem_ds.training.watchdog import FOLDER

WAITS = """
import contextlib, os, subprocess, sys, time
from gem_ds.launcher import listen
request = listen()
remembers = request.remembering() if "remember" in sys.argv else contextlib.nullcontext()
if "child" in sys.argv:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    print(subprocess.Popen(["sleep", "60"], **quiet).pid, flush=True)
if "fork" in sys.argv:
    child = os.fork()
    if not child:
        time.sleep(60)
    print(child, flush=True)
with remembers:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if request.made:
            request.made = False  # first: the next signal may come as soon as this is read
            print("made", flush=True)
"""


class Waiting:
    """A process that waits, and what it says."""

    def __init__(self, *how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITS, *how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.number = int(self.line()) if {"child", "fork"} & {*how} else 0
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        status = self.process.wait(10)
        assert self.process.stderr is not None
        return status, self.process.stderr.read()


@pytest.fixture
def waiting() -> Iterator[list[Waiting]]:
    made: list[Waiting] = []
    yield made
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()


def test_before_the_steps_a_signal_ends_it_and_its_children(waiting: list[Waiting]) -> None:
    waiting += [Waiting("child"), Waiting("child")]
    for each, number in zip(waiting, (signal.SIGTERM, signal.SIGINT), strict=True):
        each.send(signal.SIGUSR1)
        assert each.line() == "made", "a time limit may be near, and a first step is to come"
        each.send(number)
    assert waiting[0].ended() == (128 + signal.SIGTERM, "")
    assert waiting[1].ended() == (128 + signal.SIGINT, "error: interrupted\n")
    assert until(lambda: not any(psutil.pid_exists(each.number) for each in waiting), 5)


def test_during_steps_only_a_second_interrupt_ends_it(waiting: list[Waiting]) -> None:
    waiting.append(Waiting("remember"))
    (process,) = waiting
    process.send(signal.SIGTERM)
    assert process.line() == "made"
    process.send(signal.SIGINT)
    assert process.line() == "made"
    process.send(signal.SIGINT, signal.SIGTERM)  # as a launcher repeats what a terminal has sent
    assert process.line() == "made"
    time.sleep(1.1)
    process.send(signal.SIGTERM)
    assert process.line() == "made"
    process.send(signal.SIGINT)
    status, said = process.ended()
    assert status == 128 + signal.SIGINT
    assert said == (
        "stopping after this step; Ctrl-C again ends the run at once\nerror: interrupted\n"
    )


def test_the_signals_of_a_forked_process_are_its_own(waiting: list[Waiting]) -> None:
    waiting.append(Waiting("remember", "fork"))
    (process,) = waiting
    os.kill(process.number, signal.SIGTERM)
    child = psutil.Process(process.number)
    assert until(lambda: child.status() == psutil.STATUS_ZOMBIE, 5), "it ends"
    process.send(signal.SIGUSR1, signal.SIGINT)
    assert process.line() == "made"
    time.sleep(0.1)
    process.process.kill()
    assert process.process.communicate()[0].count("made") <= 1


def test_a_run_that_waits_says_for_what_and_is_ended(tmp_path, tokenizer_dir) -> None:
    """For a rank and a compiler, in code that is not ours, and for another machine's lock."""
    shards = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=8)
    config = llama_config(tmp_path / "llama")
    flags = ["--config", config, "--shards", shards, "--rows-per-step", 4]
    flags += ["--deepspeed", ROOT / "ds_configs" / "zero2.json"]
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "lock.json").write_text('{"host": "elsewhere", "time": 9e9}')
    extension = tmp_path / "extensions" / "deepspeed_shm_comm"
    extension.mkdir(parents=True)
    (extension / "lock").touch()
    lonely = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    waits = {
        "rank": {**lonely, "RANK": "0", "LOCAL_RANK": "0"},
        "compiler": {"TORCH_EXTENSIONS_DIR": str(extension.parent)},
        "lock": {},
    }
    runs = {}
    for name, more in waits.items():
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port()), **more}
        line = [sys.executable, ROOT / "launch/train.py", *flags, "--output", tmp_path / name]
        with (tmp_path / f"{name}.log").open("w") as log:
            runs[name] = subprocess.Popen([*map(str, line)], env=env, stdout=log, stderr=log)

    def says(name: str, text: str) -> bool:
        return until(lambda: text in (tmp_path / f"{name}.log").read_text(), 90)

    try:
        assert says("lock", "lock.json was left by process unknown on elsewhere; waiting until")
        runs["lock"].send_signal(signal.SIGTERM)
        assert runs["lock"].wait(10) == 128 + signal.SIGTERM
        assert not (tmp_path / "lock" / "ranks").exists(), "nothing is changed"
        assert until(lambda: _listens(runs["rank"].pid), 60)
        runs["rank"].send_signal(signal.SIGINT)
        assert runs["rank"].wait(10) in (128 + signal.SIGINT, -signal.SIGINT)
        assert says("compiler", f"compiles a part of DeepSpeed: {extension / 'lock'} is")
        runs["compiler"].send_signal(signal.SIGTERM)
        assert runs["compiler"].wait(10) == 128 + signal.SIGTERM
    finally:
        for process in runs.values():
            process.kill()
            process.wait()


def _listens(pid: int) -> bool:
    return any(each.status == "LISTEN" for each in psutil.Process(pid).net_connections())


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_ctrl_c_under_a_launcher_ends_the_run_with_a_checkpoint(
    launcher: str, tmp_path, tokenizer_dir
) -> None:
    """A terminal sends SIGINT to all of them, and the launcher sends more."""
    shards = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=8)
    config = llama_config(tmp_path / "llama")
    flags = ["--config", config, "--shards", shards, "--rows-per-step", 4, "--steps", 10**6]
    flags += ["--deepspeed", ROOT / "ds_configs" / "zero2.json", "--rehearse", "false"]
    run = tmp_path / "run"
    line = command("launch/train.py", *flags, "--output", run, ranks=2)
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        line = [sys.executable, *torchrun, *line[line.index(str(ROOT / "launch/train.py")) :]]
    begun = Started(run, line, tmp_path / "log")
    try:
        assert until(lambda: len(metrics(run)) > 2, 90), begun.text()
        os.killpg(begun.process.pid, signal.SIGINT)
        told = [json.loads(path.read_text()) for path in (run / FOLDER).glob("rank-*.json")]
        assert begun.process.wait(60) != 0
        assert until(lambda: not any(psutil.pid_exists(each["pid"]) for each in told), 30)
    finally:
        begun.kill()
    done = len(metrics(run))
    assert "stopping after this step; Ctrl-C again ends the run at once" in begun.text()
    assert f"stopped as asked, after {done} of 1000000 steps" in begun.text()
    assert find(run).name == f"step-{done:08d}"
    assert damage(find(run)) == ""
