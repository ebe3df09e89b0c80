"""Texts that a model is writing, many at once: the keys and values of all their tokens, and steps.

A step is one flat stream of one token a text, in the same attention and with the same adapters'
switch as everything else here, so that a model embeds and writes in turns without being changed.
Texts come and go between steps. Their first tokens go through the model as a stream of plain
documents. Transformers' caches are for batches that begin and end together. Which token follows is
in `generation`, and `serving.scheduler` decides which text is next.

Shapes: B texts, R rows of the cache, L places in a row, T tokens in the stream, N heads, G heads of
keys and values, H head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gem_ds.attention import registry
from gem_ds.attention.backends import weighted
from gem_ds.attention.registry import Plan
from gem_ds.corpus.tokenization import Ids
from gem_ds.inference.encoder import stream
from gem_ds.layout import END, START

PLACES = 64  # that a row's length is a multiple of


class DecodingBatch:
    """The texts in the making of a Transformers causal language model, switched to this project's
    attention and to evaluation."""

    def __init__(self, lm: Any) -> None:
        registry.attach(lm)
        self.lm = lm.eval()
        self.backend = registry.choose("auto", lm, lm.device, lm.dtype)
        self.lengths: list[int] = []  # tokens in the cache, of each text
        self.final: list[int] = []  # tokens that each text may come to have
        self.kept: dict[Any, tuple[Tensor, Tensor]] = {}  # by attention module, (R, G, L, H) each

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def join(self, documents: Sequence[Ids], final: Sequence[int]) -> Tensor:
        """(documents, V) logits of what follows each document; the texts are the last ones now.

        `final` is the number of tokens that each may come to have.
        """
        first = len(self)
        self.final += final
        self._make_room(len(self.final), _rounded(max(self.final)))
        arguments, bounds_D4 = stream(documents, 0, self.lm.device, self.backend)
        arguments["gem_plan"] = _Joining(arguments["gem_plan"], self, first)
        last_D = torch.from_numpy(bounds_D4[:, END] - 1).to(self.lm.device).long()
        logits_DV: Tensor = self.lm(**arguments, logits_to_keep=last_D).logits[0]
        self.lengths += [len(document) for document in documents]
        return logits_DV

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> Tensor:
        """(B, V) logits of what follows when these tokens (B,) are the texts' next: of all texts,
        or of those with these numbers (B,)."""
        rows = range(len(self)) if rows is None else rows
        at = [self.lengths[row] for row in rows]
        at_B = torch.tensor(at, device=self.lm.device)
        ids_B = torch.tensor(tokens, device=self.lm.device)
        logits_BV: Tensor = self.lm(
            input_ids=ids_B[None],
            position_ids=at_B[None],
            gem_plan=_Step(self.kept, at_B, max(at) + 1, rows),
            use_cache=False,
        ).logits[0]
        for row in rows:
            self.lengths[row] += 1
        return logits_BV

    @torch.inference_mode()
    def leave(self, gone: Sequence[int]) -> None:
        """Take out the texts with these numbers; the others keep their order."""
        stay = [i for i in range(len(self)) if i not in set(gone)]
        moved = [(i, old) for i, old in enumerate(stay) if i != old]
        for kept in self.kept.values():
            for x in kept:
                for i, old in moved:  # from the front, so nothing is overwritten before it moved
                    x[i, :, : self.lengths[old]] = x[old, :, : self.lengths[old]]
        self.lengths = [self.lengths[i] for i in stay]
        self.final = [self.final[i] for i in stay]
        if not stay:
            self.kept = {}

    def _make_room(self, rows: int, places: int) -> None:
        """Give the cache so many rows and places, unless it has them."""
        n = len(self)
        used = max(self.lengths, default=0)
        for layer, (keys, values) in self.kept.items():
            if keys.shape[0] >= rows and keys.shape[2] >= places:
                return
            wider = [x.new_zeros(rows, x.shape[1], places, x.shape[3]) for x in (keys, values)]
            for new, old in zip(wider, (keys, values), strict=True):
                new[:n, :, :used] = old[:n, :, :used]
            self.kept[layer] = wider[0], wider[1]

    def _layer(self, layer: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, made when it is first met. Zeros, because what is masked must
        be a number too."""
        if layer not in self.kept:
            shape = len(self.final), like.shape[0], _rounded(max(self.final)), like.shape[2]
            self.kept[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self.kept[layer]


class _Joining:
    """The plan of documents that join: each attends itself, and its keys and values are kept."""

    def __init__(self, plan: Plan, texts: DecodingBatch, first: int) -> None:
        self.plan, self.texts, self.first = plan, texts, first
        self.length = plan.length
        self.summary_index = plan.summary_index

    def attend(self, layer: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        """As `attention.registry.Plan.attend`."""
        for kept, x_GTH in zip(self.texts._layer(layer, k), (k, v), strict=True):
            for row, bounds in enumerate(self.plan.bounds_D4.tolist(), start=self.first):
                document = x_GTH[:, bounds[START] : bounds[END]]
                kept[row, :, : document.shape[1]] = document
        return self.plan.attend(layer, q, k, v, *how)


class _Step:
    """The plan of one token a text: each attends its own text's, and is kept beside them."""

    def __init__(
        self,
        kept: dict[Any, tuple[Tensor, Tensor]],
        at_B: Tensor,
        longest: int,
        rows: Sequence[int],
    ) -> None:
        self.kept, self.at_B, self.longest = kept, at_B, longest
        self.first = list(rows) == list(range(len(rows)))  # then nothing is copied
        self.length = len(at_B)
        self.summary_index = at_B.new_empty(0)
        self.rows_B = torch.tensor(list(rows), device=at_B.device)
        self.places_L = torch.arange(longest, device=at_B.device)

    def attend(
        self,
        layer: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        scale: float,
        cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """(B, N, H), as `attention.registry.Plan.attend`."""
        n_texts, n_groups = self.length, k.shape[0]
        for kept, x_GBH in zip(self.kept[layer], (k, v), strict=True):
            kept[self.rows_B, :, self.at_B] = x_GBH.transpose(0, 1)
        rows = slice(n_texts) if self.first else self.rows_B
        keys, values = (x[rows, :, : self.longest] for x in self.kept[layer])
        mask_BL = self.places_L <= self.at_B[:, None]
        if window:
            mask_BL &= self.places_L > self.at_B[:, None] - window
        # The heads that share keys are the queries of these, so that no key is copied for them.
        q_BGQH = q.transpose(0, 1).reshape(n_texts, n_groups, -1, q.shape[2])
        if sinks is not None:
            sinks = sinks.view(n_groups, -1, 1)
        out = weighted(q_BGQH, keys, values, mask_BL[:, None, None], scale, cap, sinks)
        return out.flatten(1, 2)


def places(final: Sequence[int]) -> int:
    """Places that the cache must have for texts that may come to have so many tokens."""
    return len(final) * _rounded(max(final))


def _rounded(length: int) -> int:
    return -(-length // PLACES) * PLACES
