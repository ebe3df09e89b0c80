"""Which rank a process is, from the environment of whatever started it, and being asked to stop.

torchrun and DeepSpeed's launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
SLURM's srun has names of its own; a process without a launcher is the only one.

SIGTERM, SIGUSR1 or Ctrl-C end a run after its step, with a checkpoint: SLURM sends one before a
time limit or a preemption. A rank that stopped by itself would leave the others waiting, so it is
only remembered, and the ranks agree in a collective of every step. Before the first step, SIGTERM
and Ctrl-C end the process at once, as does a second Ctrl-C later. A rank may then wait in code that
never returns to Python, where no handler would run. So a thread reads the signals from a pipe, into
which the interpreter writes them as they come.
"""

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped]

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


# Ctrl-C reaches a rank from the terminal, and from its launcher once more: within this time it is
# one request.
ONCE_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False
        self._remembers = False
        self._interrupted = 0.0  # when Ctrl-C came first, by the monotonic clock

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it, while a run takes steps, SIGTERM and a first Ctrl-C are remembered. Elsewhere
        they end the process, as launchers expect of one that waits for a rank which has failed."""
        self._remembers = True
        try:
            yield
        finally:
            self._remembers = False

    def take(self, number: int) -> None:
        """Do what a signal asks for."""
        if number == signal.SIGUSR1:
            self.made = True
        elif not self._remembers:
            _end(number)
        elif number == signal.SIGINT and self._interrupted:
            if time.monotonic() - self._interrupted > ONCE_SECONDS:
                _end(number)
        else:
            if number == signal.SIGINT:
                self._interrupted = time.monotonic()
                _say("stopping after this step; Ctrl-C again ends the run at once")
            self.made = True


def listen() -> StopRequest:
    """From now on signals are taken, by a thread.

    SIGUSR1 is remembered until the process has ended: a job whose last step is done, or whose first
    has not begun, is not to fail of a signal that comes just then.
    """
    request = StopRequest()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # without one the interpreter writes nothing
    # The interpreter's own end takes handlers away, but not this.
    atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)

    def watch() -> None:
        while True:
            for number in os.read(reader, 64):
                request.take(number)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    return request


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Within it Ctrl-C ends the process even where it waits in code that is not Python's."""
    if threading.current_thread() is not threading.main_thread():  # which alone takes signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _hold() -> None:
    """While a process is forked off, none comes: it would be taken for this one's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _forget() -> None:
    """In a process that was forked off: its signals are its own."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _release()


def _end(number: int) -> None:
    """End this process and those that it has made."""
    if number == signal.SIGINT:
        _say("error: interrupted")
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(128 + number)


def _say(text: str) -> None:
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
