"""What the ranks of a run send each other in a step, in bytes.

A volume is the size of the whole tensor that a collective gathers or reduces. What crosses a rank's
network for it depends on the algorithm; a ring moves, of W ranks, (W - 1) / W of the volume for a
gather or a reduction to parts, and twice that for a reduction that all get (`wire`).

| | ZeRO-2 | ZeRO-3 |
|---|---|---|
| weights gathered a micro-batch | - | b x elements of each fetch (`gathering`) |
| weights gathered a step | b x trained elements | b x persistent elements |
| gradients reduced a micro-batch | b x trained elements, to all ranks | the same, to parts |
| contrastive, a micro-batch | gathered 2 x 4 C x anchors of all ranks, and reduced back as much | |

b is 2 in bf16, 4 in fp32: DeepSpeed reduces gradients in the precision of the weights and adds them
up in fp32. Each parameter is padded to a multiple of the ranks (ZeRO-3), each of the two parameter
groups to one of twice the ranks (ZeRO-2). With hpZ the first fetch after an optimizer step crosses
machines and all others stay inside a group of `zero_hpz_partition_size` ranks; so do all fetches of
weights that are not trained. Left out are the counts and norms of a step, some hundred bytes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gem_ds.model.architecture import Shape
from gem_ds.planning import zero3_trace
from gem_ds.planning.zero3_trace import BaseTrace, Trace
from gem_ds.planning.zero_settings import Zero


class Volume(NamedTuple):
    """Bytes of whole tensors."""

    gathered: float = 0.0
    scattered: float = 0.0  # reduced, to parts
    reduced: float = 0.0  # reduced, to all ranks

    def plus(self, other: "Volume", times: float = 1.0) -> "Volume":
        return Volume(*(a + times * b for a, b in zip(self, other, strict=True)))

    def wire(self, ranks: int) -> float:
        """Bytes that a rank sends, and receives, in a ring of so many."""
        share = (ranks - 1) / ranks
        return share * (self.gathered + self.scattered + 2 * self.reduced)


@dataclass(frozen=True)
class Traffic:
    """Of one optimizer step: among all ranks, and inside the groups of hpZ."""

    weights: Volume
    weights_inside: Volume
    gradients: Volume
    contrastive: Volume
    live: int  # most elements of weights that are whole at once, persistent ones apart
    persistent: int  # elements of the persistent ones
    gathers_each: float  # times that a micro-batch gathers the average element

    @property
    def all_ranks(self) -> Volume:
        return self.weights.plus(self.gradients).plus(self.contrastive)


@dataclass(frozen=True)
class Base:
    """The frozen model that the trained one is compared with."""

    shape: Shape
    chunks: int  # that go through its head, and again in the backward pass


def step(
    trace: Trace,
    zero: Zero,
    ranks: int,
    micro_batches: int,
    anchors: float,
    width: int,
    base: Base | None = None,
) -> Traffic:
    """The traffic of a step of `micro_batches` on each of `ranks`.

    `anchors` are those of a micro-batch of one rank, `width` the size of their embeddings.
    """
    everywhere = anchors * ranks if ranks > 1 else 0
    both, names = 2 * 4.0 * width * everywhere, 3 * 8.0 * everywhere
    contrastive = Volume(gathered=both + names, reduced=both)
    contrastive = Volume().plus(contrastive, micro_batches)
    if zero.stage == 2:
        return _zero2(trace, zero, ranks, micro_batches, contrastive)
    b = zero.weight_bytes
    found = zero3_trace.micro_batch(trace, zero)
    kept = zero3_trace.persistent(trace, zero)
    every = sum(_padded(trace.numels[p], ranks) for p in found.parameters)
    once_kept = b * sum(_padded(trace.numels[p], ranks) for p in kept)
    trained = sum(_padded(n, ranks) for n, t in zip(trace.numels, trace.trained, strict=True) if t)
    outside = inside = 0.0
    if zero.hpz > 1:
        first = {p for p in found.parameters if trace.trained[p]}
        outside = b * sum(_padded(trace.numels[p], ranks) for p in first)
        inside = micro_batches * b * every - outside
    else:
        outside = micro_batches * b * every
    live = found.peak
    persistent = sum(trace.numels[p] for p in kept)
    if base is not None:
        trace_of_base = _base_trace(base.shape, base.chunks)
        of_base = zero3_trace.micro_batch(trace_of_base, zero)
        gathered = b * sum(_padded(trace_of_base.numels[p], ranks) for p in of_base.parameters)
        if zero.hpz > 1:
            inside += micro_batches * gathered
        else:
            outside += micro_batches * gathered
        live += of_base.peak
        whole = zero3_trace.persistent(trace_of_base, zero)
        persistent += sum(trace_of_base.numels[p] for p in whole)
    reduced = micro_batches * b * trained if ranks > 1 else 0
    if ranks == 1:
        outside, inside, once_kept = 0.0, 0.0, 0
    return Traffic(
        Volume(gathered=outside + once_kept),
        Volume(gathered=inside),
        Volume(scattered=reduced),
        contrastive,
        live,
        persistent,
        sum(trace.numels[p] for p in found.parameters) / sum(trace.numels),
    )


_base_trace = lru_cache(maxsize=64)(BaseTrace)


def _zero2(
    trace: Trace, zero: Zero, ranks: int, micro_batches: int, contrastive: Volume
) -> Traffic:
    numels = zip(trace.numels, trace.trained, strict=True)
    trained = sum(n for n, is_trained in numels if is_trained)
    b = zero.weight_bytes if ranks > 1 else 0
    volume = micro_batches * b * trained
    return Traffic(
        Volume(gathered=b * trained),
        Volume(),
        Volume(reduced=volume) if zero.multi_rank_allreduce else Volume(scattered=volume),
        contrastive,
        live=0,
        persistent=0,
        gathers_each=0.0,
    )


def _padded(numel: int, ranks: int) -> int:
    return -(-numel // ranks) * ranks
