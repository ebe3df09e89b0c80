"""The contrastive loss: embeddings, their negatives and the temperature.

Shapes: A anchors on this rank, G on all ranks, k summary tokens, C width of an embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gem_ds import distributed

Aggregation = Literal["mean", "concat", "last"]
Negatives = Literal["views", "all"]


@dataclass(frozen=True)
class ContrastiveOptions:
    """How embeddings are made of the k states at the summary tokens, and compared.

    The cosines are multiplied with a scale that starts at `temperature` and stays within `scales`
    (the paper's: learned, 20, 1 to 100). See `info_nce` for `negatives` and `dimensions`.
    """

    temperature: float = 20.0
    learn_temperature: bool = True
    scales: tuple[float, float] = (1.0, 100.0)
    aggregation: Aggregation = "mean"
    negatives: Negatives = "views"
    dimensions: tuple[int, ...] = ()


def aggregate(states_AkC: Tensor, aggregation: Aggregation) -> Tensor:
    """(A, C), or (A, k C), the embeddings of the hidden states at the summary tokens, in fp32."""
    states = states_AkC.float()
    if aggregation == "concat":
        return states.flatten(1)
    return states[:, -1] if aggregation == "last" else states.mean(1)


class _ClampToRange(torch.autograd.Function):
    """Clamp whose gradient vanishes only where it points out of the range, so that a parameter
    that an optimizer's momentum carried past a bound can come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.range
        outward = ((x >= high) & (grads[0] < 0)) | ((x <= low) & (grads[0] > 0))
        return grads[0].masked_fill(outward, 0), None, None


class Contrastive(NamedTuple):
    """Sums over this rank's anchors, and the scale of the cosines; only the loss has a gradient."""

    loss: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor  # sum over anchors of the mean over their negatives
    scale: Tensor


def info_nce(
    anchors_AC: Tensor,
    views_AC: Tensor,
    names_A3: Tensor,
    of_ranks: Sequence[int],
    log_scale: Tensor,
    options: ContrastiveOptions,
) -> Contrastive:
    """InfoNCE of each anchor with its own view among the views of all ranks (paper, Section 3).
    `of_ranks` is how many anchors each rank has.

    Cosine similarity in fp32 times ``exp(log_scale)``, clamped. With negatives "all",
    an anchor meets the other anchors too, and each view is likewise told from the rest: the mean
    over both. Pairs that share a name (see `positives.Positive`) are no negatives of each other.
    With dimensions the loss is the mean over embeddings cut to so many dimensions and whole ones
    (Matryoshka, arXiv 2205.13147). All ranks must call, those without anchors too.
    """
    both_GC, first = distributed.gather_rows(torch.cat([views_AC, anchors_AC], 1).float(), of_ranks)
    names_G3, _ = distributed.gather_rows(names_A3, of_ranks)
    clamped: Tensor = _ClampToRange.apply(log_scale.float(), *map(math.log, options.scales))  # type: ignore[no-untyped-call]
    scale = clamped.exp()
    views_GC, anchors_GC = both_GC.chunk(2, 1)
    own = first + torch.arange(len(anchors_AC), device=anchors_AC.device)
    same_AG = _share_a_name(names_A3, names_G3)
    losses = []
    for size in (*options.dimensions, anchors_AC.shape[1]):
        of_size = (
            F.normalize(x[:, :size].float(), dim=-1)
            for x in (anchors_AC, views_AC, anchors_GC, views_GC)
        )
        anchors, views, all_anchors, all_views = of_size
        cosine_AG = anchors @ all_views.T
        if options.negatives == "views":
            losses.append(_cross_entropy(cosine_AG * scale, own, same_AG))
            continue
        there = torch.cat([cosine_AG, anchors @ all_anchors.T], 1)
        back = torch.cat([views @ all_anchors.T, views @ all_views.T], 1)
        same = torch.cat([same_AG, same_AG], 1)
        losses += [_cross_entropy(cosines * scale, own, same) for cosines in (there, back)]
    with torch.no_grad():
        positive_A = cosine_AG.gather(1, own[:, None]).squeeze(1)
        others_AG = cosine_AG.masked_fill(same_AG, 0).sum(1)
        negative = (others_AG / (~same_AG).sum(1).clamp(min=1)).sum()
    loss = torch.stack(losses).mean()
    return Contrastive(loss, positive_A.sum(), negative, scale.detach()[0])


def _share_a_name(names_A3: Tensor, names_G3: Tensor) -> Tensor:
    """(A, G) bool: the same record, or one says what one of the other says."""
    same_AG = names_A3[:, :1] == names_G3[:, 0]
    for one in (1, 2):
        for other in (1, 2):
            same_AG = same_AG | (names_A3[:, one, None] == names_G3[:, other])
    return same_AG


def _cross_entropy(logits_AJ: Tensor, own_A: Tensor, same_AJ: Tensor) -> Tensor:
    """Sum over anchors; what is the same as the anchor, its own view apart, is no negative."""
    hidden = same_AJ.scatter(1, own_A[:, None], False)
    return F.cross_entropy(logits_AJ.masked_fill(hidden, -math.inf), own_A, reduction="sum")
