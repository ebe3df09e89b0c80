"""States of a run's folder, and what the same command does with each.

    python benchmarks/resumes.py > out.txt

A small run takes six steps, with a checkpoint every two of which two stay. Then something happens
to a copy of its folder (`resumes_states`), and the command is given again, for eight steps. It must
continue from the step that docs/running.md says, or refuse with exit status 2, one sentence, and no
file changed. In no case may it be silent about where it starts. Exit status 1 where anything is not
so. One rank, on a CPU; real processes, forked from one that has imported everything.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import forked_runs
from faults_runs import Work, metrics
from resumes_states import STATES, State

from gem_ds.checkpoints import checkpoint
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser
from gem_ds.training.run_folder import LOCK
from gem_ds.training.watchdog import FOLDER

FLAGS = {"save_every": 2, "keep_last": 2, "alpha_start": 2, "rehearse": False}
STEPS, MORE = 6, 8


def base(work: Work) -> Path:
    """The run of which copies are made."""
    log = work.folder / "base.log"
    ended = forked_runs.finish(work.flags("base", STEPS, **FLAGS), log)
    if ended.status:
        raise InputError(f"the run of {STEPS} steps ended with {ended.status}: {ended.text}")
    return work.folder / "base"


def check(work: Work, name: str, state: State) -> tuple[str, str]:
    """What the command said of a state, and what is wrong, if anything."""
    path, log = work.copy(work.folder / "base", "state"), work.folder / "state.log"
    state.happens(path)
    before = _content(path)
    ended = forked_runs.finish(work.flags("state", **{"steps": MORE, **FLAGS, **state.flags}), log)
    lines = [line for line in ended.text.splitlines() if re.match(_TELLING, line)]
    said = " / ".join(lines).replace(f"{work.folder}/", "")
    if not re.search(state.says, said):
        return said, f"it does not say {state.says!r}: {ended.text[-600:]}"
    if state.start is None:
        after = _content(path)
        changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        if ended.status != 2 or said.count("error: ") != 1:
            return said, f"refused with status {ended.status}"
        return said, f"refused, and changed {sorted(changed)}" if changed else ""
    if ended.status:
        return said, f"it ended with {ended.status}: {ended.text[-600:]}"
    begins = f"continuing from step {state.start} of" if state.start else "starting from step 0"
    if begins not in said:
        return said, f"it does not say {begins!r}"
    steps = int(str(state.flags.get("steps", MORE)))
    latest = checkpoint.find(path)
    if checkpoint.step_of(latest) != steps or checkpoint.damage(latest):
        return said, f"its last checkpoint is {latest}"
    taken = [line["step"] for line in metrics(path) if line["step"] >= state.start]
    if taken != list(range(state.start, steps)):
        return said, f"its metrics are of the steps {taken}"
    left = {each.name for each in checkpoint.folder_of(path).iterdir()}
    strange = left - {"latest", *map(checkpoint.name_of, range(2, steps + 1, 2))}
    return said, f"left over: {strange - state.stays}" if strange - state.stays else ""


_TELLING = r"continuing|starting|error|WARNING|\S*(metrics\.jsonl|lock\.json)[, ]"


def _content(path: Path) -> dict[str, str]:
    """Every file with its hash, and every folder, but signs of life."""
    found = {}
    for each in path.rglob("*"):
        if each.name != LOCK and FOLDER not in each.relative_to(path).parts:
            data = each.read_bytes() if each.is_file() else b""
            found[str(each.relative_to(path))] = hashlib.sha256(data).hexdigest()
    return found


def survey(work: Work, names: Collection[str]) -> list[str]:
    """Try states, print what each led to; the faults."""
    base(work)
    faults = []
    for name in names:
        said, wrong = check(work, name, STATES[name])
        print(f"{name}\n    {said}", flush=True)
        if wrong:
            faults.append(f"{name}: {wrong}")
            print(f"    FAIL: {wrong}", flush=True)
        shutil.rmtree(work.folder / "state", ignore_errors=True)
    return faults


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=STATES, default=list(STATES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = survey(Work(Path(folder)), args.only)
    print(f"{platform.platform()}, {os.cpu_count()} CPUs")
    print(f"{len(args.only)} states: {f'FAIL {len(faults)}' if faults else 'PASS'}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    run(main)
