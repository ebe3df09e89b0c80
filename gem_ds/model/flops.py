"""Floating-point operations of a step: what the GEM mask and the losses need, and nothing else.

Of a stream that is known, as in a training run, or one that `planning.expected_batch` describes, as
in a plan. A multiplication with its addition is two operations. What is counted, for the forward
pass:

    matrices of the decoder layers     2 x elements         a token
    attention                          4 x N x H            a pair of query and key, a layer
    head                               2 x C x V            a token with logits

Pairs are those that the rule lets attend (`segments`): not the triangle of a row, of which packed
documents, summary tokens and suffixes use a part. A backward pass is two of its forward, and one
where weights are frozen: the gradient of the input alone (of attention two: it has no weights).
Recomputation in the backward pass is no part of it: `Flops.recomputed` holds it apart, so
MFU = model operations / (seconds x peak), and what the hardware does is the sum. Embedding, norms,
rotations and the contrastive loss itself are left out, together below a hundredth.

Shapes: T tokens in the stream, N heads, H head size, C hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gem_ds import layout
from gem_ds.attention.segments import SummaryAttention, segments
from gem_ds.layout import Bounds
from gem_ds.model.architecture import Shape

# Logits that stand at once in the model's dtype, by device, and in fp32 (`model.cross_entropy`): so
# few that a CPU's cache holds them, so many that a GPU is busy. They are of at least `LEAST`
# tokens, and as many entries of the vocabulary.
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}
FLOATS_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}
LEAST = 64


Trained = Literal["all", "summary", "everywhere"]  # all weights, or adapters at some tokens or all


class Flops(NamedTuple):
    """Operations of one micro-batch of one rank; they add up over micro-batches and ranks."""

    model: float  # forward and backward once
    recomputed: float  # again, in the backward pass

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed


@dataclass(frozen=True)
class StreamCounts:
    """What of a stream costs operations."""

    tokens: int  # that go with a graph
    pairs: int  # of queries and keys among them, in a layer
    targets: int  # tokens with logits
    summary: int = 0  # summary tokens, where adapters are on at those alone
    first_tokens: int = 0  # that go first, without a graph (`attention.two_pass`)
    first_pairs: int = 0
    reference: int = 0  # tokens at which a base is compared with
    reference_pairs: int = 0


def count(
    bounds_D4: Bounds,
    n_targets: int,
    summary_attention: SummaryAttention = "isolated",
    window: int | None = None,
    frozen_text: bool = False,
    reference_D4: Bounds | None = None,
) -> StreamCounts:
    """The counts of a stream with these documents, padding included.

    `frozen_text` says that it goes in two passes; `reference_D4` are the documents of the rows
    alone, where a base is compared with.
    """
    tokens = int(bounds_D4[-1, layout.END]) if len(bounds_D4) else 0
    reference = reference_pairs = 0
    if reference_D4 is not None:
        _, texts = layout.prefixes(reference_D4)
        reference = int(texts[-1, layout.END]) if len(texts) else 0
        reference_pairs = pairs(texts, summary_attention, window)
    if not frozen_text:
        return StreamCounts(
            tokens,
            pairs(bounds_D4, summary_attention, window),
            n_targets,
            reference=reference,
            reference_pairs=reference_pairs,
        )
    _, texts = layout.prefixes(bounds_D4)
    first = int(texts[-1, layout.END])
    return StreamCounts(
        tokens - first,
        pairs(bounds_D4, summary_attention, window, rest=True),
        n_targets,
        summary=layout.summary_index(bounds_D4).size,
        first_tokens=first,
        first_pairs=pairs(texts, summary_attention, window),
    )


def pairs(
    bounds_D4: Bounds,
    summary_attention: SummaryAttention = "isolated",
    window: int | None = None,
    rest: bool = False,
) -> int:
    """Pairs of query and key that the rule lets attend, in one layer; as many as the mask has ones.

    With `rest` the queries are those at summary tokens and in suffixes alone.
    """
    if not len(bounds_D4):
        return 0
    parts = segments(bounds_D4, summary_attention, window, rest)
    # Query i of n attends the near keys up to its own place: `before` of them and i + 1.
    n, before = parts.n_queries, parts.start - parts.near
    near = n * before + n * (n + 1) // 2
    if window is not None:
        # Those of them that are too far: for queries past the window, one more for each.
        late = np.maximum(before + n - window, 0)
        early = np.maximum(before - window, 0)
        near = near - (late * (late + 1) // 2 - early * (early + 1) // 2)
    return int((near + n * (parts.far_end - parts.far)).sum())


def of_stream(
    shape: Shape,
    counts: StreamCounts,
    trained: Trained = "all",
    lora_rank: int = 0,
    recomputed_layers: float = 0.0,
) -> Flops:
    """Operations of one micro-batch.

    `recomputed_layers` is the share of decoder layers that are computed again in the backward pass.
    The logits of a comparison with a base are.
    """
    pair = 4.0 * shape.heads * shape.head_dim * shape.layers
    head = 2.0 * shape.hidden * shape.vocab
    linear = 2.0 * shape.layer_matrices
    matrices, attention = linear * counts.tokens, pair * counts.pairs
    backward = 2 if trained == "all" else 1
    adapted = {"all": 0, "summary": counts.summary, "everywhere": counts.tokens}[trained]
    lora = 2.0 * shape.lora(lora_rank) * adapted
    first = linear * counts.first_tokens + pair * counts.first_pairs
    base = linear * counts.reference + pair * counts.reference_pairs
    layers = matrices * (1 + backward) + 3 * attention + 3 * lora + first + base
    heads = head * (counts.targets + counts.reference) * (1 + backward) + head * counts.reference
    # A recomputation ends when all is there that the layer kept: before its last product, unless
    # an adapter follows on that.
    unneeded = 2.0 * shape.mlp * shape.hidden * shape.layers * counts.tokens
    again = recomputed_layers * (matrices + attention + lora - unneeded * (trained == "all"))
    again += head * 2 * counts.reference
    return Flops(layers + heads, again)


def tokens_at_once(vocabulary: int, device: str = "cuda") -> int:
    """Tokens whose logits stand at once."""
    return max(LOGITS_AT_ONCE[device] // vocabulary, LEAST)


def columns(tokens: int, device: str = "cuda") -> int:
    """Entries of the vocabulary whose logits of so many tokens stand in fp32 at once."""
    return max(FLOATS_AT_ONCE[device] // max(tokens, 1), LEAST)
