"""Data preparation under kill -9, compared with a run that nobody disturbs.

    python benchmarks/kills.py --kills 30 --json out.json

Makes a corpus of its own and shards it once. Then the same command runs in new folders and is
killed: a worker, the server that forks workers, the main process alone, or all of them at once;
after a random time, when a file appears, or in the last moments; and is begun again until it
finishes. Every file must be, byte for byte, that of the first run; so must those of runs with 1, 2
and 8 workers, under other hash seeds, and in shares at once. Exit status 1 if anything differs.
Linux only.
"""

import itertools
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kills_runs import begin, command, hashes, write_corpus
from processes import living, until

from gem_ds.errors import run
from gem_ds.flags import SEEDS, Parser, real, whole

VICTIMS = WORKER, SERVER, MAIN, ALL = ("a worker", "the fork server", "the main process", "all")
MOMENTS = RANDOM, NEW_FILE, LAST = ("a random moment", "a new file", "the last moments")
GAVE_UP = "was killed by SIGKILL, as did 2 before it"  # a unit's workers, three times
ORPHAN_SECONDS = 2.0  # by then, what is left of a killed run has ended by itself


@dataclass
class Kill:
    """A process that was alive, and was killed."""

    victim: str
    moment: str
    seconds: float  # since its run began
    receipts: int  # that were there


@dataclass
class Result:
    """What came of it all. `orphan_seconds`: how long workers outlived a main process."""

    quiet_seconds: float = 0.0
    units: int = 0
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    folders: int = 0
    gave_up: int = 0  # runs that ended by themselves, since one unit's workers were killed thrice
    orphan_seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Torture:
    """One corpus, the folder it should become, and runs of the command that are killed."""

    def __init__(self, folder: Path, megabytes: float, seed: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.corpus = folder / "corpus"
        self.log = folder / "log"
        self.rng = random.Random(seed)
        self.result = Result()
        write_corpus(self.corpus, megabytes, seed)
        began = time.perf_counter()
        self.quiet("quiet")
        self.result.quiet_seconds = time.perf_counter() - began
        self.expected = hashes(folder / "quiet")
        self.result.units = len(self._receipts(folder / "quiet"))

    def quiet(self, name: str, *more: object, hash_seed: int = 0) -> None:
        """A run that nobody disturbs."""
        process = begin(command(self.corpus, self.folder / name, *more), self.log, hash_seed)
        if process.wait():
            self._fault(f"{name} ended with status {process.returncode}")

    def compare(self, name: str) -> None:
        """A finished folder with the expected one."""
        found = hashes(self.folder / name)
        differ = {n for n in {*found, *self.expected} if found.get(n) != self.expected.get(n)}
        if differ:
            self._fault(f"{name} differs in {', '.join(sorted(differ)[:5])}")

    def until_finished(self, name: str, kills: int) -> None:
        """Begin, kill and begin again, at most so many kills, until the folder is finished."""
        output = self.folder / name
        limit = len(self.result.kills) + kills
        before = None
        while True:
            said = self.log.stat().st_size
            process = begin(command(self.corpus, output), self.log)
            self.result.runs += 1
            if before:  # those that the last run has left, while the new one is at it
                self._await_orphans(before)
            before = process.pid
            while process.poll() is None and len(self.result.kills) < limit:
                self._kill(process, output)
            status = process.wait()
            if status == 0:
                break
            told = self.log.read_bytes()[said:].decode(errors="replace")
            errors = re.findall("^error: .*", told, re.MULTILINE)
            gave_up = status == 2 and errors and GAVE_UP in errors[-1]  # as it says it would
            if status != -signal.SIGKILL and not gave_up:
                self._fault(f"{name}: a run ended with status {status}: {errors}")
                break
            self.result.gave_up += bool(gave_up)
        self._await_orphans(before)
        self.result.folders += 1
        self.compare(name)

    def _kill(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """Kill something of a run at some moment, unless it ends before that."""
        began = time.perf_counter()
        counts = Counter((kill.victim, kill.moment) for kill in self.result.kills)
        ways = sorted(itertools.product(VICTIMS, MOMENTS), key=lambda _: self.rng.random())
        victim, moment = min(ways, key=lambda way: counts[way])
        self._await_moment(process, output, moment)
        there = living(process.pid)
        workers = [p for p in there if process.pid not in (p.pid, p.parent)]
        pids = {
            MAIN: [process.pid],
            ALL: [p.pid for p in there],
            WORKER: [p.pid for p in workers],
            SERVER: [p.parent for p in workers if p.parent in {q.pid for q in there}],
        }[victim]
        if not pids or process.pid not in {p.pid for p in there}:
            return
        if victim == ALL:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(self.rng.choice(pids), signal.SIGKILL)
        seconds = time.perf_counter() - began
        receipts = len(self._receipts(output))
        self.result.kills.append(Kill(victim, moment, round(seconds, 3), receipts))
        if victim in (MAIN, ALL) and process.wait() != -signal.SIGKILL:
            self._fault(f"{victim} was to be killed, but ended with {process.returncode}")

    def _await_moment(self, process: subprocess.Popen[bytes], output: Path, moment: str) -> None:
        def ended() -> bool:
            return process.poll() is not None

        def new_file() -> None:
            before = self._names(output)
            until(lambda: ended() or self._names(output) != before, 60)

        if moment == RANDOM:
            until(ended, self.rng.uniform(0, self.result.quiet_seconds))
        elif moment == NEW_FILE:
            for _ in range(self.rng.randint(1, 6)):
                new_file()
        else:
            until(lambda: ended() or len(self._receipts(output)) >= self.result.units - 1, 60)
            until(ended, self.rng.uniform(0, 0.1))

    def _await_orphans(self, session: int) -> None:
        began = time.perf_counter()
        if not until(lambda: not living(session), ORPHAN_SECONDS):
            self._fault(f"of a killed run, {living(session)} were alive after {ORPHAN_SECONDS} s")
        self.result.orphan_seconds.append(round(time.perf_counter() - began, 3))

    def _names(self, output: Path) -> set[str]:
        return {path.name for folder in (output, output / "units") for path in folder.glob("*")}

    def _receipts(self, output: Path) -> list[Path]:
        return list(output.glob("units/?????.json"))

    def _fault(self, what: str) -> None:
        self.result.faults.append(what)
        print(f"FAIL: {what}", flush=True)


def torture(folder: Path, kills: int, megabytes: float, seed: int) -> Torture:
    """Kill until there have been so many kills."""
    work = Torture(folder, megabytes, seed)
    while len(work.result.kills) < kills and not work.result.faults:
        left = kills - len(work.result.kills)
        work.until_finished(f"folder-{work.result.folders}", min(left, 6))
    if "Traceback" in work.log.read_text():
        work._fault(f"there is a traceback in {work.log}")
    return work


def variants(work: Torture) -> None:
    """Other numbers of workers, other hash seeds; shares at once."""
    for workers in (1, 2, 8):
        work.quiet(f"workers-{workers}", "--workers", workers, hash_seed=workers)
        work.compare(f"workers-{workers}")
    begin(command(work.corpus, work.folder / "shares", "--only-plan"), work.log).wait()
    flags = [("--share", f"{i}/3", "--workers", 1) for i in range(3)]
    commands = [command(work.corpus, work.folder / "shares", *more) for more in flags]
    for process in [begin(each, work.log) for each in commands]:
        process.wait()
    work.quiet("shares")
    work.compare("shares")


def table(result: Result) -> str:
    """Kills by victim and moment."""
    counts = Counter((kill.victim, kill.moment) for kill in result.kills)
    rows = [["", *MOMENTS]]
    rows += [[victim, *(str(counts[victim, moment]) for moment in MOMENTS)] for victim in VICTIMS]
    return "\n".join("  ".join(cell.ljust(18) for cell in row).rstrip() for row in rows)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole(1), default=30, help="of a run")
    parser.add_argument("--megabytes", type=real(0, 1e6, above=True), default=6.0, help="of corpus")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of what is random")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = torture(Path(folder) / "work", args.kills, args.megabytes, args.seed)
        variants(work)
        result = work.result
        if result.faults:
            print(work.log.read_text()[-4000:])
    print(table(result))
    print(
        f"{len(result.kills)} kills, each of a process alive, in {result.runs} runs "
        f"({result.gave_up} gave up on a unit) of "
        f"{result.folders} folders of {result.units} units; a quiet run takes "
        f"{result.quiet_seconds:.1f} s; workers outlived a run by at most "
        f"{max(result.orphan_seconds):.2f} s"
    )
    if args.json:
        about = {"seed": args.seed, "machine": platform.platform(), "cpus": os.cpu_count()}
        args.json.write_text(json.dumps(about | asdict(result), indent=1) + "\n")
    print("FAIL" if result.faults else "PASS: all folders are the same, byte for byte")
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    run(main)
