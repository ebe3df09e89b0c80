"""What to change where a plan does not fit: other flags, or more GPUs.

Each advice is tried as a user would follow it: the same flags with that change are planned anew.
"""

import argparse
import math
from dataclasses import replace
from typing import Any

from gem_ds import hardware
from gem_ds.errors import InputError
from gem_ds.planning.plan import Fixed, best
from gem_ds.planning.plan_flags import plan_of
from gem_ds.planning.strategy import Job, Plan

Changes = dict[str, Any]  # flags and their values; None leaves a flag out
OPEN: Changes = {
    "deepspeed": None,
    "zero_stage": None,
    "offload": None,
    "rows_per_micro_batch": None,
    "checkpoint_every": 1,
    "bf16_states": False,
}
LOSSLESS: Changes = {
    "recipe": "lossless",
    **dict.fromkeys(("adapter", "lora_rank", "alpha", "kl_to_base", "positives")),
}
SINGLE: list[Changes] = [
    {"checkpoint_every": 1},
    {"rows_per_micro_batch": 1},
    {"zero_stage": 3},
    {"offload": "none"},
    {"offload": "optimizer"},
    {"offload": "all"},
    {"zero_stage": 3, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "all"},
    {"bf16_states": True, "offload": None},
    {"deepspeed": None},
    LOSSLESS,
]
SHORTEST = 128  # tokens of a row that are still worth advice


def cures(args: argparse.Namespace, plan: Plan) -> dict[str, Plan]:
    """Changes that make the job of `plan`, which does not fit, fit, by their names.

    Single ones if there are, else several at once, else larger machines.
    """
    found = _that_fit(args, SINGLE)
    found = found or _that_fit(args, [OPEN, {**OPEN, **LOSSLESS}, *_shorter_rows(args)])
    return found or _that_fit(args, [_larger(plan)])


def _that_fit(args: argparse.Namespace, tries: list[Changes]) -> dict[str, Plan]:
    found: dict[str, Plan] = {}
    enough: list[Changes] = []
    for changes in tries:
        changed = {k: v for k, v in changes.items() if getattr(args, k) != v}
        if not changed or any(less.items() <= changed.items() for less in enough):
            continue
        try:
            plan = plan_of(argparse.Namespace(**{**vars(args), **changed}))
        except InputError:  # it contradicts another flag
            continue
        if plan.fits:
            found[_name(changed)] = plan
            enough.append(changed)
    return found


def _shorter_rows(args: argparse.Namespace) -> list[Changes]:
    """The longest rows that fit, with all else open."""
    length = args.row_length // 2
    while not args.shards and length >= SHORTEST:
        changes = {**OPEN, "row_length": length}
        if (args.document_length or 0) > length:
            changes["document_length"] = None
        if _that_fit(args, [changes]):
            return [changes]
        length //= 2
    return []


def _larger(plan: Plan) -> Changes:
    """Machines on which the plan fits."""
    gpu = {} if plan.fits_gpu else {"gpu_memory": math.ceil(plan.gib / hardware.MEMORY)}
    host = {} if plan.fits_host else {"host_memory": math.ceil(plan.host_gib)}
    return {**gpu, **host}


def _name(changed: Changes) -> str:
    flags = {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    given = [
        flag if value is True else f"{flag} {value}"
        for flag, value in flags.items()
        if value not in (None, False)
    ]
    left = [flag for flag, value in flags.items() if value is None or value is False]
    return " ".join([*given, *(["without " + ", ".join(left)] if left else [])])


def smallest(job: Job, fixed: Fixed, most: int = 1024) -> Plan | None:
    """The plan on as few GPUs as suffice, whole machines beyond one; None where `most` do not."""
    per_node, rows = job.cluster.per_node, fixed.rows_per_micro_batch or 1
    sizes = [n for n in range(1, per_node + 1) if per_node % n == 0]
    sizes += range(2 * per_node, most + 1, per_node)
    for gpus in sizes:
        # As many rows as it takes: a step on more GPUs cannot have fewer than one micro-batch each.
        together = gpus * rows
        config = replace(
            job.config, rows_per_step=-(-job.config.rows_per_step // together) * together
        )
        cluster = replace(job.cluster, gpus=gpus)
        try:
            found = best(replace(job, cluster=cluster, config=config), fixed)
        except InputError:  # a DeepSpeed file that settles the rows of a step
            continue
        if found.fits:
            return found
    return None
