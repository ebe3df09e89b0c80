"""An honest client beside hostile ones: what it notices, and what they leave behind in the server.

    python benchmarks/hostile.py [--minutes 30] [--model exports/gem] [--json out.json]

Rounds of the honest client alone, beside each attack in turn, and beside all at once; then SIGTERM,
in the middle of all of them. Exit status 1 where the honest client gets an error, where memory,
files or the log grow, or where the server does not end in its time. Its times against those alone
(goal: p99 at most 3 times) are printed only: attackers compute on the same machine. The honest
client has an address of its own. Linux only.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import encode_model
import httpx
import numpy as np
import psutil
from hostile_attacks import ATTACKS, attacking
from served import NAME, Served, served

from gem_ds.errors import run
from gem_ds.flags import Parser, real, whole

ALONE, ALL = "alone", "all at once"
HONEST = "127.0.0.2"
KINDS = ("embed", "write", "health")
PAUSE = 0.02  # seconds between two requests of the honest client
STOP_SECONDS = 10
GROWTH_MB, GROWTH_LOG, GROWTH_FILES = 128, 50_000, 16
GOAL = 3.0


class Phase(NamedTuple):
    """What was seen in one phase: of the honest client, and of the server at its end."""

    attack: str
    times: dict[str, list[float]]  # seconds, by kind of request
    errors: list[str]
    attackers: dict[str, int]
    megabytes: float
    files: int
    log_bytes: int


class Honest(threading.Thread):
    """Asks one thing after another, as most clients do, and notes how long it takes."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self.url, self.seconds = url, seconds
        self.times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.errors: list[str] = []

    def run(self) -> None:
        end = time.monotonic() + self.seconds
        transport = httpx.HTTPTransport(local_address=HONEST, retries=0)
        with httpx.Client(base_url=self.url, transport=transport, timeout=60) as client:
            number = 0
            while time.monotonic() < end:
                kind = KINDS[number % len(KINDS)]
                number += 1
                began = time.monotonic()
                try:
                    answer = _ask(client, kind, number)
                    error = "" if answer.status_code == 200 else answer.text[:200]
                except httpx.HTTPError as failed:
                    error = repr(failed)
                took = time.monotonic() - began
                if error:
                    self.errors.append(f"{kind}: {error}")
                else:
                    self.times[kind].append(took)
                time.sleep(PAUSE)


def _ask(client: httpx.Client, kind: str, number: int) -> httpx.Response:
    if kind == "health":
        return client.get("/health")
    text = f"A sentence of some words that has the number {number} in it. " * 4
    if kind == "embed":
        return client.post("/v1/embeddings", json={"model": NAME, "input": text})
    body = {"model": NAME, "prompt": text, "max_tokens": 16, "temperature": 0}
    return client.post("/v1/completions", json=body)


def phase(server: Served, attack: str, seconds: float) -> Phase:
    """The honest client for so long, beside an attack or alone."""
    names = list(ATTACKS) if attack == ALL else [attack]
    seen: Counter[str] = Counter()
    port = httpx.URL(server.url).port
    honest = Honest(server.url, seconds)
    with nullcontext() if attack == ALONE else attacking(port, names, seen):
        honest.start()
        honest.join()
    return Phase(attack, honest.times, honest.errors, dict(seen), *_left(server))


def _left(server: Served) -> tuple[float, int, int]:
    """Memory in megabytes and open files, of the server and its processes, and its log's bytes."""
    top = psutil.Process(server.process.pid)
    processes = [top, *top.children(recursive=True)]
    memory = sum(process.memory_info().rss for process in processes) / 1e6
    return memory, top.num_fds(), len(server.text())


def share(times: Sequence[float], q: float) -> float:
    """A percentile in milliseconds; 0 of nothing."""
    return float(np.percentile(times, q)) * 1e3 if times else 0.0


def table(phases: Sequence[Phase]) -> str:
    """What was seen, a line a phase; times in milliseconds, and p99 as a multiple of that alone."""
    alone = {
        kind: share([t for one in phases if one.attack == ALONE for t in one.times[kind]], 99)
        for kind in KINDS
    }
    heads = [f"{kind} p50/p99 (x)".rjust(26) for kind in KINDS]
    lines = [f"{'beside':12} {'requests':>8} {'errors':>6} {' '.join(heads)}     MB files    log"]
    for one in phases:
        cells = []
        for kind, times in one.times.items():
            p99 = share(times, 99)
            ratio = p99 / alone[kind] if alone[kind] else 0
            cells.append(f"{share(times, 50):.0f}/{p99:.0f} ({ratio:.1f})".rjust(26))
        n = sum(map(len, one.times.values()))
        lines.append(
            f"{one.attack:12} {n:8} {len(one.errors):6} {' '.join(cells)} "
            f"{one.megabytes:6.0f} {one.files:5} {one.log_bytes:6}"
        )
    return "\n".join(lines)


def broken(phases: Sequence[Phase], calm: Sequence[Phase], stop: float, status: int) -> list[str]:
    """Which promises were not kept. Growth is from the first calm after attacks to the last."""
    found = [f"{len(p.errors)} errors beside {p.attack}: {p.errors[0]}" for p in phases if p.errors]
    first, last = calm[1], calm[-1]
    if last.megabytes - first.megabytes > GROWTH_MB:
        found.append(f"memory grows: {first.megabytes:.0f} to {last.megabytes:.0f} MB")
    if last.files - calm[0].files > GROWTH_FILES:
        found.append(f"files stay open: {calm[0].files} to {last.files}")
    if last.log_bytes - calm[0].log_bytes > GROWTH_LOG:
        found.append(f"the log grows: {calm[0].log_bytes} to {last.log_bytes} bytes")
    if stop > STOP_SECONDS:
        found.append(f"SIGTERM takes {stop:.1f} s, and {STOP_SECONDS} are its grace")
    if status != 0:
        found.append(f"the server's exit status is {status}")
    return found


def hostile(model: Path, seconds: float, rounds: int, attacks: Sequence[str]) -> dict[str, Any]:
    """All phases in so many seconds; prints them, and returns what came of them."""
    each = seconds / (rounds * (len(attacks) + 3) + 1)
    phases: list[Phase] = []
    with served(model, "--stop-seconds", str(STOP_SECONDS)) as server:
        phase(server, ALONE, min(each, 5.0))  # warms up
        for _ in range(rounds):
            for attack, share_of in ((ALONE, 1), *((name, 1) for name in attacks), (ALL, 2)):
                phases.append(phase(server, attack, each * share_of))
                print(table(phases[-1:]).splitlines()[-1], flush=True)
        phases.append(phase(server, ALONE, each))
        with attacking(httpx.URL(server.url).port, list(attacks), Counter()):
            time.sleep(min(each, 5.0))
            began = time.monotonic()
            status = server.stop(timeout=STOP_SECONDS + 60)
            stop = time.monotonic() - began
        log = server.text()
    shown = table(phases)
    calm = [one for one in phases if one.attack == ALONE]
    faults = broken(phases, calm, stop, status)
    worst = _worst(phases)
    print(
        f"\n{shown}\n\nSIGTERM beside {ALL}: {stop:.1f} s (grace {STOP_SECONDS} s), status {status}"
    )
    print(f"worst p99: {worst:.1f} times that alone (goal: {GOAL:g})")
    seen: Counter[str] = Counter()
    for one in phases:
        seen.update(one.attackers)
    print(f"what attackers got: {dict(seen.most_common())}")
    print(f"the log's last lines:\n{log[-2000:]}")
    return {
        "phases": [one._asdict() for one in phases],
        "stop_seconds": stop,
        "exit_status": status,
        "worst_p99_ratio": worst,
        "broken": faults,
    }


def _worst(phases: Sequence[Phase]) -> float:
    ratios = []
    for kind in KINDS:
        calm = share([t for one in phases if one.attack == ALONE for t in one.times[kind]], 99)
        for attack in {one.attack for one in phases} - {ALONE}:
            times = [t for one in phases if one.attack == attack for t in one.times[kind]]
            ratios.append(share(times, 99) / calm if calm else 0.0)
    return max(ratios, default=0.0)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--model", type=Path, help="an export; default: a small random model")
    parser.add_argument(
        "--minutes", type=real(0, 1e4, above=True), default=30.0, help="of everything"
    )
    parser.add_argument(
        "--rounds",
        type=whole(1, 1000),
        default=3,
        help="of all attacks: the last must leave no more behind than the first",
    )
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="attacks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary:
        model = args.model or encode_model.make(Path(temporary))
        print(f"{args.minutes:g} minutes, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
        result = hostile(model, args.minutes * 60, args.rounds, args.only)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if result["broken"]:
        sys.exit("error: not as promised: " + "; ".join(result["broken"]))


if __name__ == "__main__":
    run(main)
