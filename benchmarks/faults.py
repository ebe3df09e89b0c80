"""Training under faults, compared with a run that nobody disturbs: two ranks on this machine's CPU.

    python benchmarks/faults.py --json out.json [--only kills damage elastic slurm saving ...]

Kills at random moments, damaged checkpoints, other ranks and ZeRO stages, SLURM's signal, a stopped
rank; what saving and all guards cost. Exit status 1 where anything is not as it should be. The two
costs are times: measure them on a machine that does nothing else. Linux only.
"""

import functools
import importlib.metadata
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faults_runs import ROOT, SAVE_EVERY, Started, Work, metrics, same_bits, starts
from processes import until
from rows import Result, measure

from gem_ds.checkpoints import checkpoint
from gem_ds.errors import run
from gem_ds.flags import SEEDS, Parser, whole
from gem_ds.launcher import StopRequest
from gem_ds.training.monitoring import Health
from gem_ds.training.watchdog import Watchdog

STEPS = 40
TIMEOUT = 6.0  # seconds, of the watchdog
MOMENTS = RANDOM, SAVING, STEP = ("a random moment", "while saving", "after a step")


def kills(work: Work, n_kills: int, seed: int) -> Result:
    """Kill a rank or all, again and again; each run must end as if nothing had happened."""
    whole = work.finish("whole", STEPS)
    rng = random.Random(seed)
    made: list[Result] = []
    faults: list[str] = []
    repeated: list[int] = []
    n_runs = 0
    while len(made) < n_kills:
        run = work.folder / f"killed-{n_runs}"
        n_runs += 1
        kill: Result | None = {}
        while kill is not None:
            saved, logged = checkpoint.up_to_latest(run), len(metrics(run))
            n_starts = len(starts(run))
            begun = work.start(run.name, STEPS)
            kill = _kill(begun, rng) if len(made) < n_kills else None
            if kill:
                made.append(kill)
            if not begun.is_gone(300):
                begun.kill()
                faults.append(f"{run.name} did not end by itself within 300 s of {kill}")
            if len(starts(run)) > n_starts > 0:
                first = starts(run)[-1]["first_step"]
                repeated.append(logged - first)
                if first != (checkpoint.step_of(saved[-1]) if saved else 0):
                    faults.append(f"{run.name} went on from {first}, not from {saved[-1:]}")
        if begun.process.returncode:
            faults.append(f"{run.name} ended with an error: {begun.text()[-500:]}")
        elif not same_bits(whole, run):
            faults.append(f"{run.name} has other weights than the undisturbed run")
    return {
        "kills": made,
        "n_kills": len(made),
        "runs": n_runs,
        "faults": faults,
        "most_steps_repeated": max(repeated, default=0),
        "save_every": SAVE_EVERY,
        "good": not faults,
    }


def _kill(begun: Started, rng: random.Random) -> Result | None:
    """Kill at a moment of its life; nothing if it ended before."""
    moment, victim = rng.choice(MOMENTS), rng.choice((0, 1, None))
    began = time.monotonic()
    steps = len(metrics(begun.run)) + rng.randint(1, 12)
    seconds, saves = rng.uniform(0, 25), rng.randint(0, 1)
    seen: set[str] = set()
    while begun.process.poll() is None:
        time.sleep(0.002)
        if moment == RANDOM and time.monotonic() - began > seconds:
            break
        if moment == STEP and len(metrics(begun.run)) >= steps:
            break
        if moment == SAVING:
            seen |= {path.name for path in (begun.run / "checkpoints").glob("*.tmp")}
            if len(seen) > saves:
                time.sleep(rng.uniform(0, 0.05))
                break
    done = len(metrics(begun.run))
    if victim is not None and not begun.kill(rank=victim):
        victim = None  # there is no such rank yet
    if victim is None and not begun.kill():
        return None
    who = "all" if victim is None else f"rank {victim}"
    return {"victim": who, "moment": moment, "seconds": time.monotonic() - began, "steps": done}


def damage(work: Work, n_ways: int, seed: int) -> Result:
    """Flip bytes and cut files of the latest checkpoint: the one before must be taken."""
    whole = work.finish("whole", STEPS)
    rng, ways, missed = random.Random(seed), [], []
    for number in range(n_ways):
        copy = work.copy(whole, "damaged")
        latest = checkpoint.find(copy)
        path = rng.choice([p for p in sorted(latest.rglob("*")) if p.is_file()])
        data, how = bytearray(path.read_bytes()), ("flipped", "cut", "longer")[number % 3]
        at = rng.randrange(len(data))
        if how == "flipped":
            data[at] ^= 1 << rng.randrange(8)
        path.write_bytes({"cut": data[:at], "longer": data + b"\0"}.get(how, data))
        way = f"{path.relative_to(latest)}: {how} at byte {at} of {len(data)}"
        ways.append(way)
        taken, _ = checkpoint.newest_whole(copy)
        if taken is None or taken.name == latest.name:
            missed.append(way)
    # The last of them as a user meets it: the run goes on from the one before, and ends the same.
    begun = work.start("damaged", STEPS)
    begun.process.wait()
    told = "is damaged" in begun.text()
    went_back = starts(copy)[-1]["first_step"] == STEPS - SAVE_EVERY
    good = not missed and told and went_back and same_bits(whole, copy)
    return {"ways": ways, "missed": missed, "resumed_from_the_one_before": went_back, "good": good}


def elastic(work: Work) -> Result:
    """2 ranks, 1 and 2 again; ZeRO 3, 2 and 3 again: the loss against that of the undisturbed."""
    whole = work.finish("whole", STEPS)
    zero2 = ROOT / "ds_configs" / "zero2.json"
    ways: dict[str, list[dict[str, Any]]] = {
        "ranks 2, 1, 2": [{"ranks": 1, "rows_per_micro_batch": 8}, {}],
        "ZeRO 3, 2, 3": [{"deepspeed": zero2}, {}],
    }
    result: Result = {"good": True}
    third = STEPS // 3 // SAVE_EVERY * SAVE_EVERY
    for name, changes in ways.items():
        run = work.copy(work.finish(f"first-{name[0]}", third), f"moved-{name[0]}")
        for number, change in enumerate(changes):
            work.finish(run.name, STEPS if number else 2 * third, **change)
        lines = metrics(run), metrics(whole)
        same_rows = all(
            a[key] == b[key]
            for a, b in zip(*lines, strict=True)
            for key in ("data/targets", "data/anchors")
        )
        apart = [abs(a["loss/total"] / b["loss/total"] - 1) for a, b in zip(*lines, strict=True)]
        result[name] = {"largest_relative_difference": max(apart), "same_counts": same_rows}
        result["good"] &= same_rows and max(apart) < 1e-3
    return result


def saving(work: Work) -> Result:
    """Step times while a checkpoint is written, in the background and not, beside quiet ones."""
    result: Result = {}
    for background in (True, False):
        name = "background" if background else "blocking"
        more = {"config": work.folder / "large", "background_save": background, "keep_last": 1}
        run = work.finish(name, STEPS, alpha_start=0, **more)
        assert SAVE_EVERY == 5
        lines = [line for line in metrics(run) if line["step"] > 4]
        # The loop's time of a step has the save in it that followed the step before.
        times = {
            kind: statistics.median(
                x["speed/loop_seconds"] for x in lines if x["step"] % 5 in which
            )
            for kind, which in {"saving": {0}, "next": {1}, "quiet": {2, 3, 4}}.items()
        }
        latest = checkpoint.find(run)
        result[name] = {
            **{f"{kind}_step_seconds": seconds for kind, seconds in times.items()},
            "ratio": max(times["saving"], times["next"]) / times["quiet"],
            "megabytes": sum(p.stat().st_size for p in latest.rglob("*") if p.is_file()) / 1e6,
        }
    result["good"] = result["background"]["ratio"] <= 1.2
    return result


def watchdog(work: Work) -> Result:
    """Stop a rank with SIGSTOP: it is named in time, and no process is left."""
    begun = work.start("stopped", 10**6, timeout_minutes=TIMEOUT / 60)
    while len(metrics(begun.run)) < 3:
        time.sleep(0.05)
    pid = begun.pid(1)
    began = time.monotonic()
    begun.kill(signal.SIGSTOP, rank=1)
    name = f"rank 1 (process {pid} on {platform.node()}) is stopped"
    until(lambda: name in begun.text(), 5 * TIMEOUT)
    named = time.monotonic() - began
    gone = begun.is_gone(5 * TIMEOUT)
    ended = time.monotonic() - began
    begun.kill()
    return {
        "timeout_seconds": TIMEOUT,
        "seconds_until_named": named,
        "seconds_until_all_ended": ended,
        "nothing_left": gone,
        "good": named <= TIMEOUT and gone,
    }


def overhead(work: Work) -> Result:
    """Time of everything that guards do in a step, beside the time of a quiet step."""
    run = work.finish("whole", STEPS)
    lines = metrics(run)
    rounds = 2000
    with Watchdog(work.folder / "guards", 0, 1, 600.0) as guard:
        health, request = Health(work.folder), StopRequest()
        began = time.perf_counter()
        for step in range(rounds):
            values = lines[step % len(lines)]
            guard.move("in a step, reading rows")
            guard.move("in a step, computing")
            [float(flag) for flag in (request.made, False)]
            health.see(step, values, ())
        seconds = (time.perf_counter() - began) / rounds
        began = time.perf_counter()
        for _ in range(200):
            guard._sign()
        sign = (time.perf_counter() - began) / 200
    quiet = statistics.median(x["speed/step_seconds"] for x in lines[3:])
    share = seconds / quiet + sign / guard._tick
    return {
        "guard_seconds_a_step": seconds,
        "sign_of_life_seconds": sign,
        "seconds_between_signs": guard._tick,
        "quiet_step_seconds": quiet,
        "share": share,
        "good": share <= 0.01,
    }


def slurm(work: Work) -> Result:
    """launch/slurm/train.sbatch with a time limit that the run reaches, on two nodes."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from slurm_cluster import slurm as cluster
    from slurm_cluster import submit, wait

    run, steps = work.folder / "requeued", 400
    whole = work.finish("whole-long", steps, save_every=1000)
    flags = work.flags("requeued", steps, save_every=1000, resume="never")
    options = ["--nodes=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1"]
    options += ["--time=1", "--signal=B:USR1@20", f"--output={work.folder}/slurm.log"]
    with cluster() as env:
        env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        script = ROOT / "launch" / "slurm" / "train.sbatch"
        job = submit(env, *options, script, *flags, cwd=ROOT)
        states = wait(env, job, 900)
    losses = [[line["loss/total"] for line in metrics(path)] for path in (run, whole)]
    same = losses[0] == losses[1] and same_bits(run, whole)
    n_starts = len(starts(run))
    good = states == ["COMPLETED"] and same and n_starts > 1
    return {"states": states, "starts": n_starts, "same_losses_and_bits": same, "good": good}


ROWS = {
    "kills": lambda work, args: kills(work, args.kills, args.seed),
    "damage": lambda work, args: damage(work, args.ways, args.seed),
    "elastic": lambda work, args: elastic(work),
    "slurm": lambda work, args: slurm(work),
    "saving": lambda work, args: saving(work),
    "watchdog": lambda work, args: watchdog(work),
    "overhead": lambda work, args: overhead(work),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="file for the result; what is in it stays")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--kills", type=whole(1), default=25, help="of a run")
    parser.add_argument("--ways", type=whole(1), default=20, help="to damage a checkpoint")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of what is random")
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    args = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        work = Work(args.work or Path(temporary))
        rows = {name: functools.partial(ROWS[name], work, args) for name in args.only}
        measure(rows, args.json, {"versions": versions})


if __name__ == "__main__":
    run(main)
