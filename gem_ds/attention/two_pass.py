"""A stream in two passes, where its text is computed by a base that training does not change.

What a summary token reads of its document's prefix is the base's, whatever has been learned. So the
prefixes go through the model first, by themselves and without a graph, and leave their keys and
values in every layer; then summary tokens and suffixes alone go through it and attend those. No
activation of the prefixes is kept and nothing flows back through them, which is most of what
training costs. It is also what a server does: one prefill, then a few tokens.

Shapes: T tokens in the stream, S of them in prefixes, R the others, N heads, G key-value heads, H
head size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gem_ds import layout
from gem_ds.attention.backends import move
from gem_ds.attention.registry import Backend, Plan, make_plan
from gem_ds.layout import Bounds

KeysValues = dict[Any, tuple[Tensor, Tensor]]  # by attention module, (G, T, H) each


@dataclass(frozen=True)
class Split:
    """Which tokens of a stream go first: those of the prefixes, as a stream of plain documents.

    The stream has summary tokens, and no plain documents (nothing in those could be trained).
    """

    first: Tensor  # (S,) where the prefixes' tokens stand in the stream
    rest: Tensor  # (R,) where the others do
    rest_summary: Tensor  # (documents, k) where among the others the summary tokens stand
    plan: Plan  # of the prefixes

    @classmethod
    def of(cls, bounds_D4: Bounds, backend: Backend) -> "Split":
        """Of a stream, on the CPU."""
        first_S, prefixes = layout.prefixes(bounds_D4)
        rest_R = np.flatnonzero(layout.after_text(bounds_D4))
        rest_summary = np.searchsorted(rest_R, layout.summary_index(bounds_D4))
        first, rest, summary = map(torch.from_numpy, (first_S, rest_R, rest_summary))
        return cls(first, rest, summary, make_plan(prefixes, backend))

    def to(self, device: torch.device) -> "Split":
        """The same on a device, copied without waiting."""
        first, rest, summary = (move(x, device) for x in (self.first, self.rest, self.rest_summary))
        return Split(first, rest, summary, self.plan.to(device))


class FirstPass:
    """The plan that the prefixes go with: each attends itself, and keys and values are kept."""

    def __init__(self, split: Split, whole: Plan) -> None:
        self.split, self.n_whole = split, whole.length
        self.length = split.plan.length
        self.summary_index = split.plan.summary_index
        self.kept: KeysValues = {}

    def attend(self, layer: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        """As `registry.Plan.attend`."""
        self.kept[layer] = self._placed(k), self._placed(v)
        return self.split.plan.attend(layer, q, k, v, *how)

    def _placed(self, x_GSH: Tensor) -> Tensor:
        placed = x_GSH.new_zeros(x_GSH.shape[0], self.n_whole, x_GSH.shape[2])
        return placed.index_copy_(1, self.split.first, x_GSH.detach())


class SecondPass:
    """The plan that all other tokens go with: they attend what the first pass kept, and each other,
    by the rule of the whole stream. `whole` is its plan for those queries (`rest`)."""

    def __init__(self, split: Split, whole: Plan, kept: KeysValues) -> None:
        self.rest, self.whole, self.kept = split.rest, whole, kept
        self.length = len(split.rest)
        self.summary_index = split.rest_summary

    def attend(self, layer: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        """As `registry.Plan.attend`."""
        k_GTH, v_GTH = (
            kept.index_copy(1, self.rest, own)
            for kept, own in zip(self.kept[layer], (k, v), strict=True)
        )
        return self.whole.attend(layer, q, k_GTH, v_GTH, *how)
