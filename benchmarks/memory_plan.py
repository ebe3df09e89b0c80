"""The memory of a rank, counted tensor by tensor, against the plan's formulas.

    python benchmarks/memory_plan.py [--ranks 2] [--only zero3 ...] [--json out.json]

Real steps of a small model on CPU processes. Every tensor that torch's dispatcher makes is
followed until its storage is freed, beginning before the model is loaded. Compared with
`gem_ds.planning.memory_estimate` are the bytes that stay after a step, the peaks of the forward and
backward passes and of the optimizer's step, and what rank 0 copies to save a checkpoint. Exit
status 1 where they differ by more than 10 %.
"""

import gc
import json
import sys
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from planned import config_of, launch, parser, prepare, shape_of, start, trained_of, zero_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from gem_ds import distributed, errors
from gem_ds.checkpoints import writer
from gem_ds.flags import whole
from gem_ds.model import architecture
from gem_ds.planning import communication, memory_estimate
from gem_ds.planning.zero3_trace import Trace
from gem_ds.training.trainer import train_step

TOLERANCE = 0.10
MEASURED, REPEATED = 3, 3
SMALL_BUCKETS = {
    "stage3_param_persistence_threshold": 1000,
    "stage3_max_reuse_distance": 250_000,
    "stage3_max_live_parameters": 400_000,
    "stage3_prefetch_bucket_size": 20_000,
    "reduce_bucket_size": 100_000,
}
ZERO2 = {"reduce_bucket_size": 100_000}
SETTINGS: dict[str, dict[str, Any]] = {
    "zero3": {"file": "zero3.json", "zero": SMALL_BUCKETS},
    "zero3-bf16": {"file": "zero3.json", "zero": SMALL_BUCKETS, "bf16": True},
    "zero3-keeping": {
        "file": "zero3.json",
        "zero": SMALL_BUCKETS,
        "gradient_checkpointing": False,
    },
    "zero2": {"file": "zero2.json", "zero": ZERO2},
    "zero2-bf16": {"file": "zero2.json", "zero": ZERO2, "bf16": True},
    "lossless": {"file": "zero3.json", "recipe": "lossless", "zero": SMALL_BUCKETS},
    "lossless-zero2": {"file": "zero2.json", "recipe": "lossless", "zero": ZERO2},
    "kl": {"file": "zero3.json", "zero": SMALL_BUCKETS, "kl_to_base": 2.0},
}
SHARED = {"rows_per_step": 16, "rows_per_micro_batch": 4, "kl_to_base": 0.0, "alpha_start": 0}


class Storages(TorchDispatchMode):
    """Bytes of all storages that live, and the most there were since `peak` was set."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.see(tensor)
        return out

    def see(self, tensor: torch.Tensor) -> None:
        """Follow a tensor's storage, if it is not followed yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._freed, key)
        elif storage.nbytes() != self.sizes[key]:  # resized
            self.live += storage.nbytes() - self.sizes[key]
            self.sizes[key] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def measure(folder: Path, name: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a setting, counted and planned."""
    gc.collect()
    storages = Storages()
    with ExitStack() as stack, storages:
        run = start(config_of(folder, name, setting), stack)
        for step in range(MEASURED):
            train_step(run, step)
        gc.collect()
        stays = storages.live
        peaks: dict[str, int] = {}
        engine, take_step = run.engine, run.engine.step

        def stepping() -> None:
            peaks["computing"] = max(storages.peak, peaks.get("computing", 0))
            storages.peak = storages.live
            take_step()
            peaks["stepping"] = storages.peak
            storages.peak = storages.live

        engine.step = stepping
        of_steps = []
        for _ in range(REPEATED):  # with the same rows
            peaks = {}
            storages.peak = storages.live
            taken = train_step(run, MEASURED)
            of_steps.append(peaks)
        # What a busy machine's threads hold for a moment longer is none of the step's.
        peaks = {moment: min(of[moment] for of in of_steps) for moment in peaks}
        needed = plan(run, taken.batches[0])
        del taken
        gc.collect()
        storages.peak = before = storages.live
        save(run)
        copied = storages.peak - before
        stack.callback(gc.collect)
    states = sum(needed.states.values())
    computing = states + sum(needed.computing.values()) + max(needed.moments.values())
    # ZeRO-2 makes the accumulated gradients anew for each step.
    gone = needed.states["gradients"] if zero_of(run).stage == 2 else 0.0
    return {
        "counted": {"stays": stays, **peaks, "saving": copied},
        "planned": {
            "stays": states - gone + standing(run),
            "computing": computing,
            "stepping": states + standing(run) + sum(needed.stepping.values()),
            "saving": on_cpu(needed, run),
        },
        "parts": {k: v for k, v in vars(needed).items() if v},
    }


def save(run: Any) -> None:
    """Save a checkpoint as a run does."""
    save_config = run.engine.module.save_config
    saver = writer.Saver(run.engine, run.folder, save_config, writer.Retention(1), lambda _: None)
    saver.save(run.state_at(MEASURED + REPEATED))
    assert saver.finish()
    saver.close()


def on_cpu(needed: memory_estimate.Memory, run: Any) -> float:
    """What is planned for saving, less what only a GPU's frozen weights take on their way."""
    trace = Trace(shape_of(run), trained_of(run))
    frozen = sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if not t)
    twice = zero_of(run).weight_bytes * frozen if needed.first_host else 0
    return needed.host["copy of a checkpoint"] + sum(needed.first_host.values()) - twice


def standing(run: Any) -> float:
    """Of what is planned for computing, what stays between steps: ZeRO-3's bucket and what is small
    enough to stay whole."""
    zero = zero_of(run)
    if zero.stage == 2:
        return 0.0
    trace = Trace(shape_of(run), trained_of(run))
    small = (
        sum(n for n in trace.numels if n <= zero.persistence) if distributed.world_size() > 1 else 0
    )
    return float(zero.weight_bytes * (zero.reduce_bucket + small))


def plan(run: Any, batch: Any) -> memory_estimate.Memory:
    config = run.config
    shape, zero, ranks = shape_of(run), zero_of(run), distributed.world_size()
    base, chunks = None, 0
    if config.kl_to_base:
        chunks = batch.reference.n_chunks
        lm = run.engine.module.base._engine.module.lm
        base = communication.Base(architecture.of_config(lm.config.to_dict(), "base"), chunks)
    every = int(config.gradient_checkpointing)
    trace = Trace(shape, trained_of(run), every, chunks)
    traffic = communication.step(trace, zero, ranks, 1, len(batch.anchors), shape.hidden, base)
    work = memory_estimate.Work(
        batch.counts, len(batch.anchors), 1 + (config.negatives == "all"), every
    )
    return memory_estimate.of_rank(shape, trace, zero, ranks, work, traffic, base)


def worker(folder: Path, out: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    found = {name: measure(folder, name, setting) for name, setting in settings.items()}
    if distributed.rank() == 0:
        out.write_text(json.dumps(found))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--ranks", type=whole(1), default=2, help="processes")
    flags.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = flags.parse_args()
    if args.measure:
        return worker(args.measure, args.out)
    asked = {name: {**SHARED, **SETTINGS[name]} for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        results = launch("memory_plan.py", Path(folder), asked, args.ranks)
    print("| setting | moment | MiB counted | planned | difference |\n|---|---|---|---|---|")
    worst = 0.0
    for name, found in results.items():
        for moment, counted in found["counted"].items():
            planned = found["planned"][moment]
            difference = planned / counted - 1
            worst = max(worst, abs(difference))
            mib = f"{counted / 2**20:.2f} | {planned / 2**20:.2f}"
            print(f"| {name} | {moment} | {mib} | {difference:+.1%} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    errors.run(main)
