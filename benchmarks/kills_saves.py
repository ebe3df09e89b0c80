"""Training that is killed while it saves, with --keep-last 1: the same bits, nothing left over.

    python benchmarks/kills_saves.py --kills 100 > out.txt

A small run is watched once for every change that it makes in its folder: pieces written, names
given and changed, old checkpoints removed. Then it is begun again and again in new folders, and
killed (SIGKILL) just before one of those changes, or in the middle of a piece. Each is then
continued by the same command. It has to say from where, and end with the weights, losses and files
of the run that nobody killed. After the first checkpoint there must always be a whole one. Exit
status 1 where anything is not so. One rank, on a CPU; real processes, forked from one that has
imported everything.
"""

import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import forked_runs
from faults_runs import Work, metrics, same_bits
from forked_runs import REMOVE, RENAME, WRITE

from gem_ds.checkpoints import checkpoint
from gem_ds.errors import InputError, run
from gem_ds.flags import SEEDS, Parser, whole

FLAGS = {"save_every": 2, "keep_last": 1, "alpha_start": 2, "rehearse": False}
STEPS = 8
KINDS = (REMOVE, RENAME, WRITE)


@dataclass
class Result:
    """What came of it."""

    moments: int = 0  # of a run
    kills: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)  # what continued runs said
    faults: list[str] = field(default_factory=list)


def torture(work: Work, kills: int, seed: int, kinds: Sequence[str] = KINDS) -> Result:
    """Kill at so many moments, of each of these kinds as many while there are some."""
    result = Result()
    quiet, told = work.folder / "quiet", work.folder / "moments"
    ended = forked_runs.finish(work.flags("quiet", STEPS, **FLAGS), quiet.with_suffix(".log"), told)
    if ended.status:
        raise InputError(f"the quiet run ended with {ended.status}: {ended.text[-2000:]}")
    moments = forked_runs.read(told)
    result.moments = len(moments)
    for number in _chosen([kind for kind, _ in moments], kills, seed, kinds):
        kind, name = moments[number]
        result.kills[kind] += 1
        wrong = _kill(work, quiet, number, result)
        if wrong:
            result.faults.append(f"moment {number} ({kind} {name}): {wrong}")
            print(f"FAIL: {result.faults[-1]}", flush=True)
    return result


def _chosen(found: list[str], kills: int, seed: int, kinds: Sequence[str]) -> list[int]:
    """Numbers of moments, the kinds in turn."""
    rng = random.Random(seed)
    left = {kind: [n for n, k in enumerate(found) if k == kind] for kind in kinds}
    for numbers in left.values():
        rng.shuffle(numbers)
    chosen: list[int] = []
    while len(chosen) < kills and any(left.values()):
        chosen += [numbers.pop() for numbers in left.values() if numbers]
    return sorted(chosen[:kills])


def _kill(work: Work, quiet: Path, number: int, result: Result) -> str:
    """Kill a run at a moment, continue it; what is wrong, if anything."""
    path, log = work.folder / "killed", work.folder / "killed.log"
    shutil.rmtree(path, ignore_errors=True)
    flags = work.flags(path.name, STEPS, **FLAGS)
    ended = forked_runs.finish(flags, log, work.folder / "seen", number)
    if ended.status != -signal.SIGKILL:
        return f"it was to be killed, and ended with {ended.status}: {ended.text[-500:]}"
    if metrics(path) and (path / checkpoint.SAVES).exists():
        try:
            newest, warnings = checkpoint.newest_whole(path)
        except InputError as error:
            return f"there is no whole checkpoint: {error}"
        if newest is None or warnings:
            return f"the newest checkpoint is {newest}: {warnings}"
    ended = forked_runs.finish(flags, log)
    if ended.status:
        return f"continued, it ended with {ended.status}: {ended.text[-500:]}"
    said = re.findall(
        r"^(?:continuing from step \d+ of \S+|starting from step 0)", ended.text, re.M
    )
    if len(said) != 1:
        return f"it said {said} of where it continues"
    result.starts[said[0].split(" of ")[0]] += 1
    if not same_bits(path, quiet):
        return "its weights are others"
    losses = [[line["loss/total"] for line in metrics(each)] for each in (path, quiet)]
    if losses[0] != losses[1]:
        return "its losses are others"
    if strange := _names(path) ^ _names(quiet):
        if not all(re.fullmatch(r"metrics-\d\.jsonl", name) for name in strange):
            return f"its folder differs in {sorted(strange)}"
        if " is metrics-1.jsonl now" not in ended.text:
            return "metrics were put aside in silence"
    return ""


def _names(path: Path) -> set[str]:
    """All files of a run; of those with a time in their names, that there are any."""
    names = {str(each.relative_to(path)) for each in path.rglob("*")}
    return {re.sub(r"(tensorboard)/.*", r"\1", name) for name in names}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole(1), default=100, help="how many")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of what is random")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Work(Path(folder)), args.kills, args.seed, args.kinds)
    kills = ", ".join(f"{n} at a {kind}" for kind, n in sorted(result.kills.items()))
    starts = ", ".join(f"{n} x {said}" for said, n in sorted(result.starts.items()))
    print(f"{platform.platform()}, {os.cpu_count()} CPUs")
    print(f"a run of {STEPS} steps and {STEPS // 2} checkpoints has {result.moments} moments")
    print(f"{sum(result.kills.values())} kills: {kills}")
    print(f"continued runs said: {starts}")
    print(f"FAIL: {len(result.faults)}" if result.faults else "PASS: same bits, nothing left over")
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    run(main)
