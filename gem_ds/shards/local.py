"""Units done by worker processes of this machine."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gem_ds import process_pool
from gem_ds.shards import unit_context, unit_worker
from gem_ds.shards.work_plan import Plan


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
