"""Next-token loss in blocks of tokens against the plain one: peak memory and time.

    python benchmarks/loss.py --json out.json [--device cuda]

Memory is counted, not measured: tensors without content go through forward and backward, and the
bytes of those that live at once are added up, so that shapes of any size fit any machine. Hidden
states, weight and targets are there before and are not counted; the gradients of both are. Time is
of this machine, on shapes that fit it, in turns; on a GPU beside Liger's, where that is installed.
"""

import importlib.metadata
import importlib.util
import json
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gem_ds.attention.forward import Shaping
from gem_ds.errors import run
from gem_ds.flags import Parser, whole
from gem_ds.model.cross_entropy import NextTokenLoss
from gem_ds.model.flops import FLOATS_AT_ONCE, LOGITS_AT_ONCE

LARGE = (16_384, 4_096, 128_256)  # tokens, hidden size, vocabulary: Llama 3.1 8B, two rows
SMALL = (4_096, 320, 8_256)
Loss = Callable[[Tensor, Tensor], Tensor]


class Living(TorchDispatchMode):
    """The most bytes of tensors, made within it, that live at once; those of `before` are not."""

    def __init__(self, before: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {x.untyped_storage()._cdata for x in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, n: int) -> None:
        self._known.discard(key)
        self.now -= n


def plain(head: torch.nn.Linear) -> Loss:
    return lambda hidden, targets: F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def ways(head: torch.nn.Linear) -> dict[str, Loss]:
    found: dict[str, Loss] = {"blocks": NextTokenLoss(head, Shaping()), "plain": plain(head)}
    if head.weight.is_cuda and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["liger"] = lambda hidden, targets: liger(head.weight, hidden, targets)
    return found


def given(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[torch.nn.Linear, Tensor, Tensor]:
    n, width, vocabulary = shape
    torch.manual_seed(0)
    with torch.device(device):
        head = torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        hidden = torch.randn(n, width, dtype=dtype, requires_grad=True)
        return head, hidden, torch.randint(vocabulary, (n,))


def memory(name: str, device: str = "cpu") -> int:
    """Peak bytes of forward and backward, in blocks of the size that is a device's."""
    sizes = LOGITS_AT_ONCE, FLOATS_AT_ONCE
    before = [each["cpu"] for each in sizes]
    for each in sizes:
        each["cpu"] = each[device]
    try:
        with FakeTensorMode():
            head, hidden, targets = given(LARGE, torch.bfloat16)
            with Living((head.weight, hidden, targets)) as living:
                ways(head)[name](hidden, targets).backward()  # type: ignore[no-untyped-call]
    finally:
        for each, value in zip(sizes, before, strict=True):
            each["cpu"] = value
    return living.peak


def seconds(rounds: int, device: str) -> dict[str, float]:
    shape = (SMALL, torch.float32) if device == "cpu" else (LARGE, torch.bfloat16)
    head, hidden, targets = given(*shape, device)
    losses = ways(head)
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 1):
        for name, loss in losses.items():
            began = time.perf_counter()
            loss(hidden, targets).backward()  # type: ignore[no-untyped-call]
            if device != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - began)
            head.weight.grad = hidden.grad = None
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--rounds", type=whole(1), default=7, help="of every measurement")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the times")
    args = parser.parse_args()
    peaks = {device: memory("blocks", device) for device in LOGITS_AT_ONCE}
    plain = memory("plain")
    times = seconds(args.rounds, args.device)
    result = {
        "memory": {
            "tokens, hidden size, vocabulary": LARGE,
            "plain_bytes": plain,
            **{f"blocks_of_{name}_bytes": peak for name, peak in peaks.items()},
            **{f"blocks_of_{name}_share": peak / plain for name, peak in peaks.items()},
            "good": max(peaks.values()) <= plain / 8,
        },
        "time": {
            "tokens, hidden size, vocabulary": SMALL if args.device == "cpu" else LARGE,
            "device": args.device,
            "threads": torch.get_num_threads(),
            **{f"{name}_seconds": value for name, value in times.items()},
            "ratio": times["blocks"] / times["plain"],
        },
        "torch": importlib.metadata.version("torch"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
