"""Arbitrary bases through training and export.

    python benchmarks/fuzz_bases.py --cases 300 --jobs 2
    python benchmarks/fuzz_bases.py --case 17 --keep /tmp/case-17

A case is a tiny random model of a family, written to a folder as one downloads it, with files of
any kind and faults such as people's files have. Either it trains by ``launch/train.py`` and exports
by ``launch/export.py``, and plain Transformers finds the export to be right (`bases_check`); or it
is refused in one line that begins with ``error`` and names what is wrong. A traceback, silence, a
refusal of what is good and a message that misleads are faults; the exit status is 1 then.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bases_run
from bases_cases import Case, draw

from gem_ds.errors import run
from gem_ds.flags import SEEDS, Parser, whole

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
# Looking for GPUs loads CUDA's driver else, which does not survive a fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "gem_ds.training.trainer",
        "gem_ds.export.export",
        "gem_ds.inference.gem_model",
        "gem_ds.checkpoints.zero_reader",
        "transformers",
    ]
)
SECONDS = 200.0  # that a case may take
Result = dict[str, Any]


def fuzz(cases: Sequence[Case], jobs: int, work: Path, keep: bool = False) -> Iterator[Result]:
    """What became of each case, in order: ``verdict``, ``why``, ``causes`` and ``seconds``."""
    first = _PROCESSES.Process(target=bases_run.prepare_work, args=(work,))
    first.start()
    first.join()
    if first.exitcode:
        raise RuntimeError("the rows could not be prepared, see above")
    running: dict[int, tuple[Any, float]] = {}
    done: dict[int, Result] = {}
    begun = told = 0
    try:
        while told < len(cases):
            while len(running) < jobs and begun < len(cases):
                args = (cases[begun], work, _folder(work, begun), keep)
                process = _PROCESSES.Process(target=bases_run.be_case, args=args)
                process.start()
                running[begun] = process, time.monotonic()
                begun += 1
            for i, (process, since) in list(running.items()):
                late = time.monotonic() - since > SECONDS
                if process.is_alive() and not late:
                    continue
                process.kill()
                process.join()
                del running[i]
                done[i] = _result(_folder(work, i), late)
            while told in done:
                yield done[told]
                told += 1
            time.sleep(0.02)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _folder(work: Path, i: int) -> Path:
    return work / f"case-{i}"


def _result(folder: Path, late: bool) -> Result:
    path = folder / "result.json"
    if path.exists():
        found: Result = json.loads(path.read_text())
        return found
    log = folder / "case.log"
    last = log.read_text(errors="replace")[-300:] if log.exists() else ""
    why = f"did not end in {SECONDS:.0f} s" if late else f"the process ended: {last!r}"
    return {"verdict": "FAULT", "why": why, "causes": [], "seconds": SECONDS}


@contextmanager
def _work(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep
        return
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cases", type=whole(1), default=300, help="how many")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of the cases")
    parser.add_argument("--jobs", type=whole(1, 1000), default=1, help="cases at once")
    parser.add_argument("--case", type=whole(0), metavar="N", help="this one alone")
    parser.add_argument("--keep", type=Path, help="a new folder, in which everything stays")
    args = parser.parse_args()
    numbers = [args.case] if args.case is not None else list(range(args.cases))
    cases = [draw(args.seed, number) for number in numbers]
    began, verdicts, faults = time.perf_counter(), Counter[str](), []
    with _work(args.keep) as work:
        results = fuzz(cases, args.jobs, work, bool(args.keep))
        for number, case, result in zip(numbers, cases, results, strict=True):
            line = f"{number:4} {result['verdict']:8} {case}"
            line += f"  -> {result['why']}" if result["why"] else ""
            print(f"{line}  [{result['seconds']:.1f} s]", flush=True)
            kind = "exact" if case.exact else "other"
            verdicts[
                f"{result['verdict']:8} {kind} families, {len(case.faults)} faults put in"
            ] += 1
            faults += [number] if result["verdict"] == "FAULT" else []
    print()
    for name, n in sorted(verdicts.items()):
        print(f"{n:5} {name}")
    seconds = time.perf_counter() - began
    print(f"{len(cases)} cases in {seconds:,.0f} s, {len(faults)} faults")
    if faults:
        shown = " ".join(map(str, faults))
        sys.exit(f"FAULT: {shown}; one alone: --seed {args.seed} --case {faults[0]}")


if __name__ == "__main__":
    run(main)
