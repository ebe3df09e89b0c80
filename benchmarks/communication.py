"""The bytes that ranks send each other in a step, counted, against the plan's formula.

    python benchmarks/communication.py [--ranks 2 4] [--only zero3 ...] [--json out.json]

Real runs of a small model on CPU processes (gloo); every collective that reaches torch's
dispatcher in one optimizer step is counted as the whole tensor it gathers or reduces. The plan
(`gem_ds.planning.communication`) is given the shapes, the DeepSpeed file and the number of anchors.
Exit status 1 where they differ by more than 2 %.
"""

import json
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from planned import config_of, launch, parser, prepare, shape_of, start, trained_of, zero_of
from torch.utils._python_dispatch import TorchDispatchMode

from gem_ds import distributed, errors
from gem_ds.flags import whole
from gem_ds.model import architecture
from gem_ds.model.kl_reference import CHUNK
from gem_ds.planning import communication
from gem_ds.planning.zero3_trace import Trace
from gem_ds.training.trainer import train_step

TOLERANCE = 0.02
MEASURED = 3  # the first step by which DeepSpeed knows the order of modules
# What a large model is to the default sizes: they hold a layer, and no more than a part of all.
LARGE = {
    "stage3_param_persistence_threshold": 1000,
    "stage3_max_reuse_distance": 250_000,
    "stage3_max_live_parameters": 400_000,
    "stage3_prefetch_bucket_size": 20_000,
    "reduce_bucket_size": 100_000,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "zero3": {"file": "zero3.json", "zero": LARGE},
    "zero3-small": {"file": "zero3.json"},
    "zero3-keeping-activations": {
        "file": "zero3.json",
        "zero": LARGE,
        "gradient_checkpointing": False,
    },
    "zero2": {"file": "zero2.json"},
    "zero2-by-rank": {"file": "zero2.json", "zero": {"use_multi_rank_bucket_allreduce": False}},
    "lossless": {"file": "zero3.json", "recipe": "lossless", "zero": LARGE},
    "kl": {"file": "zero3.json", "zero": LARGE, "kl_to_base": 2.0},
    "paper": {"file": "zero3.json", "recipe": "paper", "zero": LARGE},
    "hpz": {"file": "zero3.json", "zero": {**LARGE, "zero_hpz_partition_size": 2}},
}
SHARED = {"rows_per_step": 16, "rows_per_micro_batch": 2, "kl_to_base": 0.0, "alpha_start": 0}


class Collectives(TorchDispatchMode):
    """Bytes of whole tensors by kind of collective and ranks that take part."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "c10d":
            self._count(func.__name__.partition(".")[0], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        if name == "allgather_":
            self._add("gathered", args[2], [t for part in args[0] for t in part])
        elif name == "_allgather_base_":
            self._add("gathered", args[2], [args[0]])
        elif name == "_reduce_scatter_base_":
            self._add("scattered", args[2], [args[1]])
        elif name == "reduce_":
            self._add("scattered", args[1], args[0])
        elif name == "allreduce_":
            self._add("reduced", args[1], args[0])
        elif name not in ("barrier", "broadcast_"):
            raise AssertionError(f"what does {name} send?")

    def _add(self, kind: str, group: Any, tensors: list[torch.Tensor]) -> None:
        n = torch.distributed.ProcessGroup.unbox(group).size()
        self.bytes[kind, n] += sum(t.numel() * t.element_size() for t in tensors)


def measure(folder: Path, name: str, setting: dict[str, Any]) -> dict[str, Any]:
    """One step of a setting: what was counted, and what the plan says."""
    with ExitStack() as stack:
        run = start(config_of(folder, name, setting), stack)
        for step in range(MEASURED):
            train_step(run, step)
        collectives = Collectives()
        with collectives:
            taken = train_step(run, MEASURED)
        each = zip(*distributed.gather([len(b.anchors) for b in taken.batches]), strict=True)
        planned = plan(run, len(taken.batches), statistics.mean(map(max, each)))
    inside = {key: n for key, n in collectives.bytes.items() if key[1] < distributed.world_size()}
    found = {
        kind: sum(n for key, n in collectives.bytes.items() if key[0] == kind and key not in inside)
        for kind in ("gathered", "scattered", "reduced")
    }
    found["inside"] = sum(inside.values())
    return {"counted": found, "planned": planned}


def plan(run: Any, micro_batches: int, anchors: float) -> dict[str, float]:
    config = run.config
    shape = shape_of(run)
    chunks = 0
    base = None
    if config.kl_to_base:
        chunks = -(-config.rows_per_micro_batch * run.loader.shards.manifest.row_length // CHUNK)
        lm = run.engine.module.base._engine.module.lm
        base = communication.Base(architecture.of_config(lm.config.to_dict(), "base"), chunks)
    trace = Trace(shape, trained_of(run), int(config.gradient_checkpointing), chunks)
    traffic = communication.step(
        trace, zero_of(run), distributed.world_size(), micro_batches, anchors, shape.hidden, base
    )
    return {**traffic.all_ranks._asdict(), "inside": traffic.weights_inside.gathered}


def worker(folder: Path, out: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    found = {name: measure(folder, name, setting) for name, setting in settings.items()}
    if distributed.rank() == 0:
        out.write_text(json.dumps(found))


def differences(found: dict[str, Any]) -> dict[str, float]:
    """By kind, how far the plan is from what was counted, as a share of all that was counted."""
    counted, planned = found["counted"], found["planned"]
    total = sum(counted.values())
    return {kind: (planned[kind] - counted[kind]) / total for kind in counted}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--ranks", type=whole(1), nargs="+", default=[2, 4], help="processes")
    flags.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = flags.parse_args()
    if args.measure:
        return worker(args.measure, args.out)
    results: dict[str, Any] = {}
    print("| setting | ranks | bytes counted | planned | difference |\n|---|---|---|---|---|")
    for ranks in args.ranks:
        asked = {name: {**SHARED, **SETTINGS[name]} for name in args.only}
        if ranks < 4:
            asked.pop("hpz", None)
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            for name, found in launch("communication.py", Path(folder), asked, ranks).items():
                results[f"{name}, {ranks} ranks"] = found
                counted, planned = (sum(found[x].values()) for x in ("counted", "planned"))
                worst = max(differences(found).values(), key=abs)
                print(f"| {name} | {ranks} | {counted:,} | {planned:,.0f} | {worst:+.2%} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    worst = max(abs(d) for found in results.values() for d in differences(found).values())
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    errors.run(main)
