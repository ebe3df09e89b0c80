"""Signals: what is remembered, what ends a process at once, and whose they are."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from processes import free_port, until
from runs import ROOT, llama_config, random_shards

WAITS = """
import contextlib, os, subprocess, sys, time
from gem_ds.stopping import listen
request = listen()
remembers = request.remembering() if "remember" in sys.argv else contextlib.nullcontext()
if "child" in sys.argv:
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
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
            print("made", flush=True)
            request.made = False
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


def test_a_run_that_waits_for_a_rank_or_a_lock_is_ended(tmp_path, tokenizer_dir) -> None:
    """Where it waits in code that is not Python's, and where another machine's lock is watched."""
    shards = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=8)
    config = llama_config(tmp_path / "llama")
    flags = ["--config", config, "--shards", shards, "--rows-per-step", 4]
    flags += ["--deepspeed", ROOT / "ds_configs" / "zero2.json"]
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "lock.json").write_text('{"host": "elsewhere", "time": 9e9}')
    lonely = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    started = []
    for name, more in {"joining": {**lonely, "RANK": "0", "LOCAL_RANK": "0"}, "locked": {}}.items():
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port()), **more}
        line = [sys.executable, ROOT / "launch/train.py", *flags, "--output", tmp_path / name]
        with (tmp_path / f"{name}.log").open("w") as log:
            started.append(subprocess.Popen([*map(str, line)], env=env, stdout=log, stderr=log))
    try:
        assert until(lambda: "waiting until" in (tmp_path / "locked.log").read_text(), 60)
        # Its port is open when it waits for the other rank.
        assert until(lambda: _listens(started[0].pid), 60)
        started[0].send_signal(signal.SIGINT)
        started[1].send_signal(signal.SIGTERM)
        assert started[0].wait(10) in (130, -signal.SIGINT)
        assert started[1].wait(10) == 128 + signal.SIGTERM
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert not (tmp_path / "locked" / "ranks").exists(), "nothing is changed"


def _listens(pid: int) -> bool:
    return any(each.status == "LISTEN" for each in psutil.Process(pid).net_connections())
