"""What the ranks of a run say to each other. Without a process group everything is one rank."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gem_ds.errors import InputError
from gem_ds.launcher import ended_by_interrupt

T = TypeVar("T")


def initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if initialized() else 1


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is of a collective: another rank left, or the network did."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def meeting() -> Iterator[None]:
    """Where ranks wait for each other before they begin: Ctrl-C ends that, and where another rank
    has ended an `InputError` says so; what is wrong there, it says itself."""
    try:
        with ended_by_interrupt():
            yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise InputError("another rank ended before the run began; see its own message") from error


def barrier() -> None:
    if initialized():
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on all ranks; the argument is not changed."""
    total = values.clone()
    if initialized():
        dist.all_reduce(total)
    return total


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware of every rank multiplies bf16 itself. Emulated, it is several times as
    slow as fp32."""
    if device.type == "cuda":
        here = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities()
        here = any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return int(sum_over_ranks(torch.tensor(int(here), device=device))) == world_size()


def gather(value: T) -> list[T]:
    """A small object of every rank, by rank, on all ranks."""
    if not initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def same_on_all(make: Callable[[], T]) -> T:
    """What rank 0 makes, on all ranks. An `InputError` or `OSError` of rank 0 is raised on all."""
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except (InputError, OSError) as error:
            made[1] = error if isinstance(error, InputError) else InputError(str(error))
    if initialized():
        dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    value: T = made[0]
    return value


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, one after another; the gradient of each row returns to its owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([g[:n] for g, n in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)  # every rank's loss reads every row
        first = sum(ctx.counts[: rank()])
        return total[first : first + ctx.counts[rank()]], None


def gather_counts(counts: Sequence[int], device: torch.device) -> list[list[int]]:
    """What every rank counted, a list for each, as many numbers on all. The host waits for it."""
    if world_size() == 1:
        return [list(counts)]
    here = torch.tensor(counts, dtype=torch.int64, device=device)
    gathered = [torch.empty_like(here) for _ in range(world_size())]
    dist.all_gather(gathered, here)
    of_ranks: list[list[int]] = torch.stack(gathered).tolist()
    return of_ranks


def gather_rows(rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, int]:
    """Rows (n_r, C) of all ranks as (sum n_r, C) with gradient, and where this rank's begin.

    `counts` are the n_r of all ranks, none included: known before, so that no host waits for its
    device. All ranks must call.
    """
    if len(counts) != world_size() or counts[rank()] != len(rows):
        raise ValueError(f"{len(rows)} rows here, but ranks are said to hold {list(counts)}")
    if world_size() == 1 or max(counts) == 0:
        return rows, 0
    all_rows: Tensor = _GatherRows.apply(rows, counts)  # type: ignore[no-untyped-call]
    return all_rows, sum(counts[: rank()])
