"""What documents a record becomes: kinds, cuts, splits, and where the summary tokens go in.

| kind | document |
|---|---|
| plain | ``bos text eos`` |
| continuation | ``bos text-up-to-a-cut summary rest-of-text eos`` |
| reconstruction | ``bos text summary text eos`` |
| pair | ``bos context summary answer eos`` |

A text too long for a row becomes several documents, cut where a sentence or line ends if one does
in the second half of the room. Each begins with bos, as a text that is to be embedded does; only
the last ends with eos, because the text ends there and not before (each reconstruction ends with
it). `packing` decides which documents share a row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gem_ds import layout
from gem_ds.corpus.mixture import Draws
from gem_ds.corpus.records import EMPTY, Skip
from gem_ds.corpus.sentence_breaks import Breaks
from gem_ds.corpus.tokenization import Ids
from gem_ds.errors import InputError

PLAIN, CONTINUATION, RECONSTRUCTION, PAIR = KINDS = (
    "plain",
    "continuation",
    "reconstruction",
    "pair",
)
NO_TARGET = "too short for a target"
PAIR_TOO_LONG = "pair longer than a row"
ANSWER_TOO_LONG = "answer too long for a row"
UNIFORM, SENTENCE = "uniform", "sentence"
LONG_PAIRS = TRUNCATE, SKIP = ("truncate", "skip")


class Document(NamedTuple):
    """input_ids (n,) int32, its four boundaries counted from 0, its kind and its record's id."""

    input_ids: Ids
    bounds: tuple[int, int, int, int]
    kind: str
    record: int


class Draw(NamedTuple):
    """One time that a record is drawn."""

    record: int
    epoch: int
    copy: int

    def random(self, seed: int) -> Draws:
        """The generator of its kind and its cuts: workers and order change nothing."""
        return Draws(seed, *self)


class Pair(NamedTuple):
    """Ids of a context and of its answer; of a `whole` one, the controls stand in it already."""

    context: Ids
    answer: Ids
    whole: bool


@dataclass(frozen=True)
class Recipe:
    """How texts become documents. Lengths are in tokens; `summary_tokens` are ids.

    A continuation is cut where prefix and suffix have at least `min_prefix` and `min_suffix` tokens
    of text and the prefix has at most `max_prefix`: anywhere, or (`at_sentences`) where a sentence
    or line ends if there is such a place. `breaks` finds them.
    """

    row_length: int
    kinds: Mapping[str, float]
    at_sentences: bool
    min_prefix: int
    max_prefix: int
    min_suffix: int
    skip_long_pairs: bool
    bos: Ids
    summary_tokens: Ids
    eos: Ids
    breaks: Breaks
    seed: int


def parse_kinds(text: str) -> dict[str, float]:
    """Shares of the kinds, in the order of `KINDS`, from ``plain=0.8,continuation=0.2``."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise InputError(f"--kinds {text}: {part!r} is not of the form plain=0.8") from None
    unknown = sorted(set(shares) - set(KINDS))
    if unknown or min(shares.values()) < 0 or not abs(sum(shares.values()) - 1) <= 1e-6:
        raise InputError(
            f"--kinds {text}: give shares of {', '.join(KINDS)} that add up to 1, "
            "such as plain=0.8,continuation=0.2"
        )
    return {kind: shares[kind] for kind in KINDS if shares.get(kind)}


def parse_cut(text: str) -> tuple[bool, int, int | None]:
    """(at sentences, least, most) from ``uniform``, ``sentence`` or ``32-256`` tokens of prefix."""
    if text in (UNIFORM, SENTENCE):
        return text == SENTENCE, 1, None
    least, _, most = text.partition("-")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise InputError(
            f"--cut {text}: give uniform, sentence, or the least and most tokens of a prefix "
            "such as 32-256"
        )
    return False, int(least), int(most)


def draw_kind(kinds: Mapping[str, float], rng: Draws) -> str:
    """A kind, with the probability of its share among those given."""
    at = rng.random() * sum(kinds.values())
    for kind, share in kinds.items():
        at -= share
        if at < 0:
            return kind
    return list(kinds)[-1]  # the shares add up to a hair less than 1


def of_text(text: Ids, draw: Draw, recipe: Recipe, notes: Counter[str]) -> list[Document]:
    """The documents of a text: as many as its length asks for, each of a kind of its own.

    Raises `Skip` if the text is so short that nothing in it is to be predicted.
    """
    bos, eos = recipe.bos, recipe.eos
    if not len(text):
        raise Skip(EMPTY)
    if len(bos) + len(text) + len(eos) < 2:
        raise Skip(NO_TARGET)
    rng = draw.random(recipe.seed)
    kind = draw_kind(recipe.kinds, rng)
    others = {kind: share for kind, share in recipe.kinds.items() if kind != PAIR}
    least = max(1, 2 - len(bos) - len(eos))  # tokens of text in a document that has a target
    breaks: layout.Index | None = None
    made: list[Document] = []
    start = 0
    while start < len(text):
        left = len(text) - start
        room = _room(kind, recipe)
        n = left
        if left + len(eos) > room + (len(eos) if kind == RECONSTRUCTION else 0):
            breaks = recipe.breaks.after(text) if breaks is None else breaks
            n = _split_at(breaks, start, min(room, left - least))
        made.append(_text_document(text, start, start + n, kind, draw.record, recipe, rng, notes))
        start += n
        if start < len(text):
            kind = draw_kind(others, rng)
    notes["texts_split"] += len(made) > 1
    return made


def _room(kind: str, recipe: Recipe) -> int:
    """Tokens of text that a document holds; if the text ends in it, eos counts as one of them."""
    room = recipe.row_length - len(recipe.bos)
    if kind == RECONSTRUCTION:
        return (room - len(recipe.summary_tokens) - len(recipe.eos)) // 2
    return room - (len(recipe.summary_tokens) if kind == CONTINUATION else 0)


def _split_at(breaks: layout.Index, start: int, most: int) -> int:
    """How many tokens from `start` on go into a document: `most`, or up to a late break."""
    at = int(np.searchsorted(breaks, start + most, side="right")) - 1
    if at >= 0 and breaks[at] - start > most // 2:
        return int(breaks[at]) - start
    return most


def _text_document(
    text: Ids,
    start: int,
    end: int,
    kind: str,
    record: int,
    recipe: Recipe,
    rng: Draws,
    notes: Counter[str],
) -> Document:
    part = text[start:end]
    tail = recipe.eos if end == len(text) or kind == RECONSTRUCTION else recipe.eos[:0]
    if kind == RECONSTRUCTION:
        return _document([recipe.bos, part, recipe.summary_tokens, part, tail], 2, kind, record)
    if kind == CONTINUATION:
        cut = _cut(part, recipe, rng, notes)
        if cut:
            parts = [recipe.bos, part[:cut], recipe.summary_tokens, part[cut:], tail]
            return _document(parts, 2, kind, record)
        notes["too_short_to_cut"] += 1
    return _document([recipe.bos, part, tail], None, PLAIN, record)


def _cut(part: Ids, recipe: Recipe, rng: Draws, notes: Counter[str]) -> int:
    """How many tokens of a text become the prefix; 0 if it is too short to be cut."""
    most = min(len(part) - recipe.min_suffix, recipe.max_prefix)
    if most < recipe.min_prefix:
        return 0
    if recipe.at_sentences:
        places = recipe.breaks.after(part)
        places = places[(places >= recipe.min_prefix) & (places <= most)]
        if len(places):
            return int(places[rng.below(len(places))])
        notes["no_sentence_to_cut_at"] += 1
    return recipe.min_prefix + rng.below(most - recipe.min_prefix + 1)


def of_pairs(
    pairs: Sequence[Pair], draw: Draw, recipe: Recipe, notes: Counter[str]
) -> list[Document]:
    """The documents of a context with each of its answers; raises `Skip` if there are none."""
    made: list[Document] = []
    reason: Skip | None = None
    for pair in pairs:
        try:
            made.append(of_pair(pair, draw, recipe, notes))
        except Skip as skip:
            reason = skip
    if reason and not made:
        raise reason
    if reason:
        notes["answers_of_lists_left_out"] += len(pairs) - len(made)
    return made


def of_pair(pair: Pair, draw: Draw, recipe: Recipe, notes: Counter[str]) -> Document:
    """The document of a context and its answer; a context too long loses its beginning.

    Raises `Skip` if the answer leaves no room for any of the context, and for every pair too long
    where the recipe says so.
    """
    context, answer, whole = pair
    if not len(context) or not len(answer):
        raise Skip(EMPTY)
    bos = recipe.bos
    if whole and len(bos) and context[0] == bos[0]:
        context = context[1:]
    eos = recipe.eos[:0] if whole else recipe.eos
    room = recipe.row_length - len(bos) - len(recipe.summary_tokens) - len(answer) - len(eos)
    if len(context) > room:
        if recipe.skip_long_pairs:
            raise Skip(PAIR_TOO_LONG)
        if room < 1:
            raise Skip(ANSWER_TOO_LONG)
        notes["contexts_truncated"] += 1
    parts = [bos, context[-room:], recipe.summary_tokens, answer, eos]
    return _document(parts, 2, PAIR, draw.record)


def _document(parts: list[Ids], summary: int | None, kind: str, record: int) -> Document:
    """The parts joined; part number `summary` is the summary tokens."""
    ids = np.concatenate(parts)
    bounds = layout.plain(0, len(ids))
    if summary is not None:
        before = sum(len(part) for part in parts[:summary])
        bounds = (0, before, before + len(parts[summary]), len(ids))
    return Document(ids, bounds, kind, record)
