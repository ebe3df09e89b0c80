"""A server of `launch/serve.py` in a process of its own, on a free loopback port."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
NAME = "served"


class Served:
    """A running server: `url`, process, and what it has said so far."""

    def __init__(self, model: Path, *flags: str, **environment: str) -> None:
        arguments = ["--model", str(model), "--name", NAME, "--port", "0", *flags]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "serve.py"), *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self.ready = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ready.wait(120)
        if not self.url:
            self.process.kill()
            raise RuntimeError(f"the server does not start: {self.text()}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"^serving \S+ on (http://\S+):", line):
                self.url = found[1]
                self.ready.set()
        self.ready.set()

    def text(self) -> str:
        """All that it has said."""
        return "".join(self.said)

    def client(self, timeout: float = 60.0) -> httpx.Client:
        """A plain HTTP client, for what a friendly one would not send."""
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def megabytes(self) -> float:
        """Memory that it has resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def processor_seconds(self) -> float:
        """What all its threads have computed so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, sent: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Signal it to end; its exit status."""
        self.process.send_signal(sent)
        status = self.process.wait(timeout)
        self._reader.join(10)
        return status


@contextmanager
def served(model: Path, *flags: str, **environment: str) -> Iterator[Served]:
    """A server that is gone afterwards."""
    server = Served(model, *flags, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
