"""Time and memory of the attention backends against what one would otherwise write.

    python benchmarks/attention.py --json out.json

Forward and backward of one layer over one row of log-normally long documents, a fifth of them with
a summary token. The contestants beside our backends:

- ``mask``: SDPA with a dense 4-D mask, as one would write it with Transformers (CPU).
- ``documents``: causal attention of each document by itself, as if none had a summary: the floor.
  SDPA document by document on a CPU, one call of ``varlen_attn`` on a GPU.
- ``full``: causal FlashAttention over the whole row, as if it were one document (GPU).

Ratios are medians over rounds in which our backends and one other take turns in random order, so
that they hold when the machine's speed drifts, and no third one leaves its traces in caches and
memory. Memory is the peak of a forward and backward, what it is made from included, less what was
held before: on a CPU of a process that did it once already, on a GPU of the allocator. ``plan`` is
what a micro-batch costs once, as a share of the forward and backward of 32 layers. The machine is
the GPU where there is one.
"""

import json
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from gem_ds.attention import masks
from gem_ds.attention.registry import Backend, gem_attention, make_plan
from gem_ds.errors import run
from gem_ds.flags import Parser, whole
from gem_ds.layout import END, START, Bounds, plain

GEM_SHARE, SIGMA, LAYERS = 0.2, 1.0, 32
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Method = Callable[[Tensor, Tensor, Tensor], Tensor]  # (1, N, T, H) each; any order out


@dataclass(frozen=True)
class Case:
    """One row of the table: what is attended."""

    row: int  # tokens
    median: int  # of the documents, in tokens
    dtype: str
    heads: int
    kv_heads: int
    head_size: int

    @property
    def bounds(self) -> Bounds:
        """A full row of documents, one summary token in a fifth of them."""
        rng = np.random.default_rng(0)
        bounds, at = [], 0
        while at < self.row:
            n = min(max(int(rng.lognormal(np.log(self.median), SIGMA)), 1), self.row - at)
            if n >= 4 and rng.random() < GEM_SHARE:
                m = int(rng.integers(1, n - 1))
                bounds.append((at, at + m, at + m + 1, at + n))
            else:
                bounds.append(plain(at, at + n))
            at += n
        return np.array(bounds, dtype=np.int32)

    def inputs(self, device: str) -> list[Tensor]:
        """q, k, v as a model's projections lie in memory."""
        generator = torch.Generator().manual_seed(0)
        heads = (self.heads, self.kv_heads, self.kv_heads)
        made = (torch.randn(1, self.row, n, self.head_size, generator=generator) for n in heads)
        on_device = [x.to(device, DTYPES[self.dtype]).transpose(1, 2) for x in made]
        return [x.detach().requires_grad_() for x in on_device]


CPU_CASES = [Case(8192, median, dtype, 8, 8, 64) for median in (200, 30) for dtype in DTYPES]
GPU_CASES = [Case(row, 200, "bf16", 32, 8, 128) for row in (8192, 32768)]


def ours(bounds_D4: Bounds, backend: Backend, device: str) -> Method:
    plan = make_plan(bounds_D4, backend, device=device)
    module = torch.nn.Module()
    return lambda q, k, v: gem_attention(module, q, k, v, None, gem_plan=plan)[0]


def with_mask(bounds_D4: Bounds) -> Method:
    mask_11TT = masks.dense(bounds_D4)[None, None]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask_11TT)


def each_document(bounds_D4: Bounds) -> Method:
    lengths = (bounds_D4[:, END] - bounds_D4[:, START]).tolist()

    def method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Split, whose backward pass concatenates once; slices would each fill a row with zeros.
        documents = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat(
            [F.scaled_dot_product_attention(*qkv, is_causal=True) for qkv in documents], dim=2
        )

    return method


def varlen_documents(bounds_D4: Bounds) -> Method:
    offsets = torch.from_numpy(np.append(bounds_D4[:, START], bounds_D4[-1, END])).cuda()
    longest = int(offsets.diff().max())

    def method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        out = varlen_attn(
            *(q, k, v, offsets, offsets, longest, longest), window_size=(-1, 0), enable_gqa=True
        )
        assert isinstance(out, Tensor)
        return out

    return method


def full_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def contestants(bounds_D4: Bounds, device: str) -> dict[str, Callable[[], Method]]:
    """How to make each, so that the memory of one is without the others'."""
    if device == "cuda":
        return {
            "varlen": lambda: ours(bounds_D4, "varlen", device),
            "flex": lambda: ours(bounds_D4, "flex", device),
            "documents": lambda: varlen_documents(bounds_D4),
            "full": lambda: full_causal,
        }
    return {
        "sdpa": lambda: ours(bounds_D4, "sdpa", device),
        "documents": lambda: each_document(bounds_D4),
        "mask": lambda: with_mask(bounds_D4),
    }


def seconds(method: Method, qkv: list[Tensor]) -> float:
    """One forward and backward."""
    if qkv[0].is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    out = method(*qkv)
    torch.autograd.grad(out, qkv, torch.ones_like(out))
    if qkv[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _cpu_peak(name: str, case: Case, answer: "multiprocessing.Queue[float]") -> None:
    qkv = case.inputs("cpu")
    seconds(contestants(case.bounds, "cpu")[name](), qkv)  # threads, compiled kernels
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before = _resident("VmRSS")
    seconds(contestants(case.bounds, "cpu")[name](), qkv)
    answer.put(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{field}:")[1].split()[0]) / 1024


def peak_mib(name: str, case: Case, device: str) -> float:
    """Peak memory of one forward and backward, what it is made from included."""
    if device == "cuda":
        qkv = case.inputs(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds(contestants(case.bounds, device)[name](), qkv)
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_cpu_peak, args=(name, case, answer))
    process.start()
    mib = answer.get(timeout=600)
    process.join()
    return mib


def plan_seconds(bounds_D4: Bounds, backend: Backend, device: str, qkv: list[Tensor]) -> float:
    """Making a plan, and what a plan's first use makes for the later ones."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        method = ours(bounds_D4, backend, device)
        if device == "cuda":
            torch.cuda.synchronize()
        made = time.perf_counter() - began
        first, later = seconds(method, qkv), seconds(method, qkv)
        times.append(made + first - later)
    return statistics.median(times)


def measure(case: Case, device: str, rounds: int) -> dict[str, Any]:
    bounds_D4, qkv = case.bounds, case.inputs(device)
    methods = {name: make() for name, make in contestants(bounds_D4, device).items()}
    for method in methods.values():
        seconds(method, qkv)
    backends: list[Backend] = ["varlen", "flex"] if device == "cuda" else ["sdpa"]
    result: dict[str, Any] = {
        **asdict(case),
        "documents": len(bounds_D4),
        "ms": {},
        "mib": {name: peak_mib(name, case, device) for name in methods},
        "time": {},
        "memory": {},
        "plan": {},
    }
    order = random.Random(0)
    for other in [name for name in methods if name not in backends]:
        names = [*backends, other]
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                times[name].append(seconds(methods[name], qkv))
        for backend in backends:
            pair = f"{backend} / {other}"
            ratios = [a / b for a, b in zip(times[backend], times[other], strict=True)]
            result["time"][pair] = statistics.median(ratios)
            result["memory"][pair] = result["mib"][backend] / result["mib"][other]
        for name in names:
            result["ms"].setdefault(name, 1e3 * statistics.median(times[name]))
    for backend in backends:
        of_layers = LAYERS * result["ms"][backend] / 1e3
        result["plan"][backend] = plan_seconds(bounds_D4, backend, device, qkv) / of_layers
    return result


def report(results: list[dict[str, Any]]) -> str:
    """A line of Markdown for each figure."""
    lines = ["| row | median | dtype | heads | what | figure |", "|---|---|---|---|---|---|"]
    for r in results:
        case = f"| {r['row']} | {r['median']} | {r['dtype']} | {r['heads']}/{r['kv_heads']} x "
        case += f"{r['head_size']} |"
        lines += [f"{case} {name}, ms | {ms:.2f} |" for name, ms in r["ms"].items()]
        for kind in ("time", "memory"):
            lines += [f"{case} {kind} {name} | {x:.3f} |" for name, x in sorted(r[kind].items())]
        lines += [
            f"{case} plan of {n}, of {LAYERS} layers | {x:.2%} |" for n, x in r["plan"].items()
        ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=whole(1), default=15, help="of every measurement")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = GPU_CASES if device == "cuda" else CPU_CASES
    results = [measure(case, device, args.rounds) for case in cases]
    print(report(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"machine": machine(), "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    run(main)
