"""What an embedding is to agree with: pairs of texts that say the same, as *views*.

A view is a text of its own with the summary tokens behind it and nothing after them. It stands in
the stream as another document, so no positive attends what it is compared with.

| positive | of documents | anchor | view |
|---|---|---|---|
| dropout | with summary tokens | the document's summary | its prefix, tokens dropped at random |
| continuation | of that kind | the document's summary | its suffix as a text of its own |
| pair | of that kind | its context, or a span of it | its answer, or a span of it |
| crops | all | a span of its text | another span of the same text |

A pair of crops is drawn from each stretch of `crop_every` tokens of a text; the spans may overlap.
So many times its two sides are drawn of a pair, of a long side another span each time.
`contrastive` decides which negatives a positive meets.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gem_ds.layout import Index
from gem_ds.shards.dataset import Row
from gem_ds.shards.documents import CONTINUATION, KINDS, PAIR, PLAIN, RECONSTRUCTION

Tokens = npt.NDArray[np.int32]
Kind = Literal["dropout", "continuation", "pair", "crops"]
SHORTEST = 4  # tokens of a text that crops are taken from
LARGEST = 0.75  # of a stretch is the longest crop, so that two are seldom the same


@dataclass(frozen=True)
class PositiveOptions:
    """Which positives, and how they are drawn. Lengths are in tokens; the ids are the shards'."""

    kinds: tuple[Kind, ...] = ("dropout",)
    prefix_dropout: float = 0.2
    crop_tokens: tuple[int, int] = (16, 64)
    crop_every: int = 128
    pair_tokens: tuple[int, int] = (32, 256)
    summary_tokens: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_token_id: int | None = None


class View(NamedTuple):
    """A text with its summary tokens and nothing after them."""

    input_ids: Tokens
    positions: Index
    summary: int  # where the summary tokens begin


class Positive(NamedTuple):
    """Two texts whose embeddings are to agree.

    Without an `anchor` it is the document itself up to its summary tokens. Pairs that share one of
    the `names` are no negatives of each other: the record, and what anchor and view say.
    """

    document: int  # its number in the row
    anchor: View | None
    view: View
    names: tuple[int, int, int]


def positives(row: Row, options: PositiveOptions, rng: np.random.Generator) -> Iterator[Positive]:
    """All positives of a row, document by document."""
    for d, (start, summary, suffix, end) in enumerate(row.bounds.tolist()):
        kind = KINDS[row.kinds[d]]
        ids = row.input_ids[start:end]
        head = ids[: int(ids[0] == options.bos_token_id)]
        prefix = ids[len(head) : summary - start]
        rest = _without_eos(ids[suffix - start :], options)
        record = int(row.records[d])
        for wanted in options.kinds:
            if wanted == "dropout" and kind != PLAIN:
                name = fingerprint(prefix)
                view = dropout_view(ids[: suffix - start], suffix - summary, options, rng)
                yield Positive(d, None, view, (record, name, name))
            elif wanted == kind == CONTINUATION and len(rest):
                names = record, fingerprint(prefix), fingerprint(rest)
                yield Positive(d, None, text_view(head, rest, options), names)
            elif wanted == kind == PAIR and len(rest):
                for one, other in sides(prefix, rest, options, rng):
                    names = record, fingerprint(one), fingerprint(other)
                    anchor = text_view(head, one, options) if len(one) < len(prefix) else None
                    yield Positive(d, anchor, text_view(head, other, options), names)
            elif wanted == "crops":
                for text in _texts(kind, _without_eos(prefix, options), rest):
                    for one, other in crops(text, options, rng):
                        names = record, fingerprint(one), fingerprint(other)
                        anchor, view = (text_view(head, x, options) for x in (one, other))
                        yield Positive(d, anchor, view, names)


def fingerprint(text: Tokens) -> int:
    """A number (int64) that texts of the same tokens share."""
    digest = hashlib.blake2b(text.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def own_view(row: Row, document: int) -> View:
    """A document up to its summary tokens, as a text of its own."""
    start, summary, suffix, _ = row.bounds[document].tolist()
    ids = row.input_ids[start:suffix]
    return View(ids, np.arange(len(ids)), summary - start)


def dropout_view(ids: Tokens, k: int, options: PositiveOptions, rng: np.random.Generator) -> View:
    """``prefix | summary`` with tokens of the prefix dropped at random (paper, Section 3).

    The others keep their position ids, which is the same as masking the dropped ones. The first
    token (BOS, where the family has one) always stays.
    """
    m = len(ids) - k
    kept = np.append(True, rng.random(m - 1) >= options.prefix_dropout)
    place = np.append(np.flatnonzero(kept), np.arange(m, len(ids)))
    return View(ids[place], place.astype(np.int64), int(kept.sum()))


def text_view(head: Tokens, text: Tokens, options: PositiveOptions) -> View:
    """A text as it is embedded: BOS where `head` holds it, no EOS, the summary tokens behind."""
    summary = np.array(options.summary_tokens, dtype=np.int32)
    ids = np.concatenate([head, text, summary])
    return View(ids, np.arange(len(ids)), len(head) + len(text))


def crops(
    text: Tokens, options: PositiveOptions, rng: np.random.Generator
) -> Iterator[tuple[Tokens, Tokens]]:
    """Two spans of each stretch of a text, their lengths log-uniform."""
    if len(text) < SHORTEST:
        return
    n = max(1, round(len(text) / options.crop_every))
    for stretch in np.array_split(text, n):
        one, other = (_span(stretch, options.crop_tokens, rng) for _ in range(2))
        yield one, other


def sides(
    context: Tokens, answer: Tokens, options: PositiveOptions, rng: np.random.Generator
) -> Iterator[tuple[Tokens, Tokens]]:
    """Context and answer, either cut to a length that is drawn log-uniformly where it is longer: to
    its beginning or, as often, to a span from anywhere."""
    for _ in range(max(1, round(max(len(context), len(answer)) / options.crop_every))):
        yield _part(context, options.pair_tokens, rng), _part(answer, options.pair_tokens, rng)


def _part(text: Tokens, lengths: tuple[int, int], rng: np.random.Generator) -> Tokens:
    length = min(_log_uniform(lengths, rng), len(text))
    start = int(rng.integers(len(text) - length + 1)) if rng.random() < 0.5 else 0
    return text[start : start + length]


def _log_uniform(lengths: tuple[int, int], rng: np.random.Generator) -> int:
    least, most = map(math.log, lengths)
    return round(math.exp(rng.uniform(least, most)))


def _span(stretch: Tokens, lengths: tuple[int, int], rng: np.random.Generator) -> Tokens:
    length = min(_log_uniform(lengths, rng), math.ceil(LARGEST * len(stretch)))
    start = int(rng.integers(len(stretch) - length + 1))
    return stretch[start : start + length]


def _texts(kind: str, prefix: Tokens, rest: Tokens) -> Sequence[Tokens]:
    """What a document's kind says its texts are."""
    if kind == CONTINUATION:
        return [np.concatenate([prefix, rest])]
    return [prefix] if kind in (PLAIN, RECONSTRUCTION) else [prefix, rest]


def _without_eos(text: Tokens, options: PositiveOptions) -> Tokens:
    return text[:-1] if len(text) and text[-1] == options.eos_token_id else text
