"""What holds a trained model to its base: the tokens at which they are compared, and the KL there.

Reference tokens are those that the base computes as well as the trained model does: all tokens of
plain documents and of the prefixes of GEM documents, which attend text alone. For the base they are
a stream of their own, of plain documents. The base itself is in `frozen_base`.

Shapes: T tokens in the trained model's stream, S in the base's, N reference tokens, n of a chunk,
C hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gem_ds import layout
from gem_ds.attention.backends import move
from gem_ds.attention.registry import Backend, Plan, make_plan
from gem_ds.layout import PAD_MULTIPLE, Bounds, plain
from gem_ds.model.loss_normalization import kl_divergence

CHUNK = 1024  # tokens whose logits are there at once


@dataclass(frozen=True)
class Reference:
    """The reference tokens of one micro-batch as the base reads them, then padding."""

    input_ids: Tensor  # (1, S)
    position_ids: Tensor  # (1, S)
    plan: Plan
    index: Tensor  # (N,) where the first N tokens of this stream stand in the trained model's
    n_chunks: int  # the same on all ranks, whatever N is

    def to(self, device: torch.device) -> "Reference":
        """The same on a device, copied without waiting."""
        moved = {n: move(x, device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        return Reference(**{**vars(self), **moved, "plan": self.plan.to(device)})


def make_reference(
    input_ids_T: np.ndarray[Any, Any], bounds_D4: Bounds, backend: Backend, capacity: int
) -> Reference:
    """The reference tokens of documents that tile a stream, on the CPU.

    `capacity` is the most tokens that any micro-batch of the run can hold: every rank computes as
    many chunks as that takes, since each is a collective under ZeRO-3.
    """
    index_N, bounds = layout.prefixes(bounds_D4)
    n = len(index_N)
    assert n <= capacity, (n, capacity)
    n_padding = -n % PAD_MULTIPLE
    if n_padding:
        padding = np.array([plain(n, n + n_padding)], dtype=np.int32)
        bounds = np.concatenate([bounds, padding])
    input_ids_S = np.append(input_ids_T[index_N], np.zeros(n_padding, dtype=np.int32))
    return Reference(
        input_ids=torch.from_numpy(input_ids_S.astype(np.int64))[None],
        position_ids=torch.from_numpy(layout.positions(bounds))[None],
        plan=make_plan(bounds, backend),
        index=torch.from_numpy(index_N),
        n_chunks=-(-capacity // CHUNK),
    )


class Base(Protocol):
    """A model that another is held to. Neither method leaves a gradient.

    Under ZeRO-3 both are collectives: all ranks call them equally often. `logits` is called in the
    backward pass too.
    """

    vocab_size: int  # entries of the vocabulary that are compared: those that the base trained

    def hidden(self, reference: Reference) -> Tensor:
        """(N, C) last hidden states of the reference tokens."""

    def logits(self, hidden_nC: Tensor) -> Tensor:
        """(n, at least `vocab_size`) next-token logits of hidden states."""


def kl_to_base(
    hidden_NC: Tensor, reference: Reference, base: Base, head: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum over the reference tokens of KL(base || trained model) in nats, with gradient.

    `hidden_NC` are the trained model's at the same tokens and `head` gives its logits. Both
    distributions are over the base's vocabulary: what the trained model gives to tokens that it has
    beside those is left out of its softmax. No more than `CHUNK` tokens have logits at a time;
    the backward pass computes them again.
    """
    base_NC = base.hidden(reference)

    def of_chunk(trained_nC: Tensor, base_nC: Tensor) -> Tensor:
        base_nV = base.logits(base_nC)[:, : base.vocab_size]
        return kl_divergence(base_nV, head(trained_nC)[:, : base.vocab_size])

    total = torch.zeros((), device=hidden_NC.device)
    for first in range(0, reference.n_chunks * CHUNK, CHUNK):
        part = slice(first, first + CHUNK)
        total = total + checkpoint(
            of_chunk,
            hidden_NC[part],
            base_NC[part],
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total
