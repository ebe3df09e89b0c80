"""Who does the units: worker processes of this machine, SLURM's job arrays or Ray, through the
executors of datatrove; and who may write in a folder meanwhile.

Every task of a cluster does its share of the units with the same worker processes as one machine
would, so the shards are the same. What dies leaves units without a receipt; the same command does
them again. A folder is one run's alone, or that of several that do units of one plan, by a lock of
the file system, which ends with its process. Tasks of a cluster hold it too, so that a run of this
machine does not take the files that they are writing for leftovers.
"""

import fcntl
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gem_ds import process_pool
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.shards import finalize, unit_context, unit_worker
from gem_ds.shards.config import SLURM, PrepareConfig
from gem_ds.shards.work_plan import Plan

LOGS = "logs"
JOB = "slurm-job.json"
MAX_TASKS = 1000  # in one array: SLURM's usual limit


@dataclass(frozen=True)
class Share:
    """A datatrove pipeline step: task r of n does every n-th unit from the r-th on."""

    folder: Path
    numbers: tuple[int, ...]
    workers: int

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        with claimed(self.folder, alone=False):
            plan = Plan.load(self.folder)
            left = set(missing(plan, self.folder))
            mine = [n for n in self.numbers[rank::world_size] if n in left]
            do_units(plan, self.folder, mine, self.workers)


@dataclass(frozen=True)
class Finish:
    """A datatrove pipeline step: the manifest, or an error that says how much is missing."""

    folder: Path
    max_bad_fraction: float

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        with claimed(self.folder, alone=False):
            plan = Plan.load(self.folder)
            raise_if_missing(plan, self.folder)
            finalize.finish(plan, self.folder, self.max_bad_fraction)


def raise_if_missing(plan: Plan, folder: Path) -> None:
    """Raise `InputError` unless all units are done."""
    undone = missing(plan, folder)
    if undone:
        raise InputError(
            f"{len(undone):,} of {len(plan.units):,} units are not done, the first is "
            f"{plan.where(min(undone))}; {folder / LOGS} tells why; run the same command again"
        )


def run(config: PrepareConfig, plan: Plan, folder: Path, numbers: Sequence[int]) -> None:
    """Have a cluster do units. SLURM gets jobs and is not waited for; Ray is.

    Raises `InputError` if datatrove or the cluster is not there.
    """
    if not numbers:
        return
    folder = folder.resolve()
    share = Share(folder, tuple(numbers), config.workers or 1)
    tasks = min(len(numbers), config.tasks or MAX_TASKS)
    logs = folder / LOGS / time.strftime("%Y-%m-%d-%H%M%S")
    try:
        if config.executor == SLURM:
            _submit(config, plan, folder, share, tasks, logs)
        else:
            _ray(config, share, tasks, logs)
    except ImportError as error:
        raise InputError(
            f"--executor {config.executor} needs packages that are not installed; pip install "
            f"'gem_ds[cluster]' ({error})"
        ) from error


def _submit(
    config: PrepareConfig, plan: Plan, folder: Path, share: Share, tasks: int, logs: Path
) -> None:
    from datatrove.executor import SlurmPipelineExecutor
    from loguru import logger

    logger.disable("datatrove")  # the launcher's steps; the tasks' logs are in their files
    under_way = _under_way(folder)
    if under_way:
        done = len(plan.units) - len(share.numbers)
        print(f"{folder}: {done:,} of {len(plan.units):,} units done; job {under_way} is at it")
        return
    options = _options(config.slurm)
    common = {
        "time": options.pop("time", "24:00:00"),
        "partition": options.pop("partition"),
        "qos": options.pop("qos", None),
        "cpus_per_task": share.workers,
        "mem_per_cpu_gb": config.memory_gb,
        "env_command": f"export PATH={Path(sys.executable).parent}:$PATH",
        "srun_args": {"cpus-per-task": share.workers},
        "sbatch_args": options,
        "mail_type": "NONE",
    }
    units = SlurmPipelineExecutor(
        [share], tasks=tasks, logging_dir=str(logs / "units"), job_name="shard", **common
    )
    # afterany, not afterok: units that failed are to be named, not waited for.
    ending = SlurmPipelineExecutor(
        [Finish(folder, config.max_bad_fraction)],
        tasks=1,
        logging_dir=str(logs / "finish"),
        job_name="shard-finish",
        depends=units,
        run_on_dependency_fail=True,
        **common,
    )
    try:
        ending.run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"sbatch did not take the job ({error}); see --slurm") from error
    with replacing(folder / JOB) as temporary:
        temporary.write_text(json.dumps({"jobs": [units.job_id, ending.job_id]}) + "\n")
    print(
        f"{folder}: {len(share.numbers):,} units in {tasks:,} tasks of job {units.job_id}, the "
        f"manifest by job {ending.job_id}; logs in {logs}; the same command tells how far it is"
    )


def _options(text: str) -> dict[str, str]:
    """The options for sbatch, by name."""
    parts = [part.strip().partition("=") for part in text.split(",")]
    options = {name: value for name, _, value in parts}
    if "partition" not in options or not all(equals for _, equals, _ in parts):
        raise InputError(
            f"--slurm {text!r}: give sbatch's options with the partition among them, such as "
            "partition=cpu,time=04:00:00"
        )
    return options


def _under_way(folder: Path) -> str:
    """The job that does the folder's units at the moment, or nothing."""
    try:
        jobs = json.loads((folder / JOB).read_text())["jobs"]
    except (OSError, ValueError, KeyError):
        return ""
    for job in jobs:
        asked = ["squeue", "--noheader", "--format", "%i", "--jobs", str(job)]
        try:
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip():
                return str(job)
        except OSError as error:
            raise InputError(f"--executor slurm needs SLURM's commands here ({error})") from error
    return ""


def _ray(config: PrepareConfig, share: Share, tasks: int, logs: Path) -> None:
    from datatrove.executor import RayPipelineExecutor

    # It does not raise when tasks fail: who calls looks at the receipts.
    RayPipelineExecutor(
        [share],
        tasks=tasks,
        logging_dir=str(logs),
        cpus_per_task=share.workers,
        mem_per_cpu_gb=config.memory_gb,
    ).run()


def in_order(plan: Plan) -> list[int]:
    """All units, largest first, so that none is left over at the end."""
    return sorted(range(len(plan.units)), key=lambda n: (-plan.weight(n), n))


def missing(plan: Plan, folder: Path) -> list[int]:
    """The units without a receipt, largest first."""
    return [n for n in in_order(plan) if unit_context.receipt(folder, plan, n) is None]


def do_units(plan: Plan, folder: Path, numbers: Sequence[int], workers: int) -> None:
    """Do units in worker processes; see `process_pool.run` for what it raises."""
    task = functools.partial(unit_worker.write_unit, folder=folder, digest=plan.digest)
    bar = tqdm(
        total=sum(map(plan.weight, numbers)),
        unit="B",
        unit_scale=True,
        desc="sharding",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar:
        warn = functools.partial(tqdm.write, file=sys.stderr)
        for _ in process_pool.run(task, numbers, workers, plan.where, bar.update, warn):
            pass


LOCK = "lock"


@contextmanager
def claimed(output: Path, alone: bool) -> Iterator[Callable[[], None]]:
    """The folder, ours: alone, or beside others. What it yields lets others in from then on.

    Raises `InputError` if it holds files that are not ours, or if another run writes there that
    this one must not share it with.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK
    if any(output.iterdir()) and not path.exists():  # ours begin with the lock
        raise InputError(f"{output} holds files that are not ours; give a new --output")
    with path.open("a") as lock:

        def share() -> None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {output}; wait for it") from error
        except OSError:
            pass  # a file system without locks: two runs would do the same work twice, no worse
        yield share
