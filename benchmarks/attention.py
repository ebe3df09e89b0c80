"""Time and memory of the attention backends against what one would otherwise write.

    python benchmarks/attention.py --json out.json

Forward and backward of one layer over one row of log-normally long documents, a fifth of them with
a summary token. ``mask`` is SDPA with a dense 4-D mask; ``documents`` is causal SDPA document by
document, as if no document had a summary: the floor. Times are medians of several rounds in which
all take turns, so that ratios hold when the machine's speed drifts. Memory is the peak of a fresh
process, less what it held before.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gem_ds import masks
from gem_ds.attention import gem_attention, make_plan
from gem_ds.evaluate import table
from gem_ds.layout import END, START, Bounds, plain

HEADS, HEAD_SIZE, GEM_SHARE, SIGMA = 8, 64, 0.2, 1.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def row(length: int, median: int, seed: int = 0) -> Bounds:
    """A full row of documents, one summary token in a fifth of them."""
    rng = np.random.default_rng(seed)
    bounds, at = [], 0
    while at < length:
        n = min(max(int(rng.lognormal(np.log(median), SIGMA)), 1), length - at)
        if n >= 4 and rng.random() < GEM_SHARE:
            m = int(rng.integers(1, n - 1))
            bounds.append((at, at + m, at + m + 1, at + n))
        else:
            bounds.append(plain(at, at + n))
        at += n
    return np.array(bounds, dtype=np.int32)


def methods(bounds_D4: Bounds) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The contestants: functions of q, k, v, each (1, N, T, H)."""
    plan = make_plan(bounds_D4, backend="sdpa")
    module = torch.nn.Module()
    dense: list[Tensor] = []  # built at first use, so that others' memory is without it

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gem_attention(module, q, k, v, None, gem_plan=plan)[0]

    def mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not dense:
            dense.append(masks.dense(bounds_D4)[None, None])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=dense[0])

    def documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [
            F.scaled_dot_product_attention(*(x[:, :, a:b] for x in (q, k, v)), is_causal=True)
            for a, b in bounds_D4[:, [START, END]].tolist()
        ]
        return torch.cat(parts, dim=2)

    return {"ours": ours, "mask": mask, "documents": documents}


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, length, HEADS, HEAD_SIZE)  # as a model's projections lie in memory
    made = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    return [x.transpose(1, 2).detach().requires_grad_() for x in made]


def seconds(method: Callable[..., Tensor], qkv: list[Tensor]) -> float:
    for x in qkv:
        x.grad = None
    began = time.perf_counter()
    method(*qkv).sum().backward()
    return time.perf_counter() - began


def _peak(
    name: str, bounds_D4: Bounds, dtype: torch.dtype, answer: "multiprocessing.Queue"
) -> None:
    qkv = inputs(int(bounds_D4[-1, END]), dtype)
    method = methods(bounds_D4)[name]
    warm = row(64, 30)
    seconds(methods(warm)[name], inputs(64, dtype))  # kernels and threads are no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(method, qkv)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_mib(name: str, bounds_D4: Bounds, dtype: torch.dtype) -> float:
    """Peak memory of one forward and backward, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(name, bounds_D4, dtype, answer))
    process.start()
    mib = answer.get(timeout=600)
    process.join()
    return float(mib)


def measure(length: int, median: int, dtype_name: str, rounds: int) -> dict[str, object]:
    bounds_D4 = row(length, median)
    qkv = inputs(length, DTYPES[dtype_name])
    contestants = methods(bounds_D4)
    for method in contestants.values():
        seconds(method, qkv)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, method in contestants.items():
            times[name].append(seconds(method, qkv))
    began = time.perf_counter()
    for _ in range(10):
        make_plan(bounds_D4, backend="sdpa")
    result: dict[str, object] = {
        "row": length,
        "median_document": median,
        "documents": len(bounds_D4),
        "dtype": dtype_name,
        "ms": {name: 1e3 * statistics.median(t) for name, t in times.items()},
        "mib": {name: peak_mib(name, bounds_D4, DTYPES[dtype_name]) for name in ("ours", "mask")},
        "plan_ms": 1e2 * (time.perf_counter() - began),
    }
    for other in ("mask", "documents"):
        ratios = [a / b for a, b in zip(times["ours"], times[other], strict=True)]
        result[f"time_to_{other}"] = statistics.median(ratios)
    result["memory_to_mask"] = result["mib"]["ours"] / result["mib"]["mask"]  # type: ignore[index]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--row-length", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    results = [
        measure(args.row_length, median, dtype, args.rounds)
        for median in (200, 30)
        for dtype in DTYPES
    ]
    header = ["median", "dtype", "ours ms", "mask ms", "documents ms", "plan ms"]
    header += ["time / mask", "time / documents", "memory / mask"]
    lines = [
        [str(r["median_document"]), str(r["dtype"])]
        + [f"{r['ms'][name]:.1f}" for name in ("ours", "mask", "documents")]  # type: ignore[index]
        + [f"{r['plan_ms']:.2f}"]
        + [f"{r[k]:.3f}" for k in ("time_to_mask", "time_to_documents", "memory_to_mask")]
        for r in results
    ]
    print(
        f"{HEADS} heads x {HEAD_SIZE}, row {args.row_length}, {GEM_SHARE:.0%} with a summary token"
    )
    print(table(header, lines))
    if args.json:
        machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
        machine["threads"] = str(torch.get_num_threads())
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
