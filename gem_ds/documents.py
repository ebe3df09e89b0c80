"""What documents a record becomes: kinds, cuts, splits, and where the summary tokens go in.

| kind | document |
|---|---|
| plain | ``bos text eos`` |
| continuation | ``bos text-up-to-a-cut summary rest-of-text eos`` |
| reconstruction | ``bos text summary text eos`` |
| pair | ``bos context summary answer eos`` |

A text too long for a row becomes several documents. Each begins with bos, as a text that is to be
embedded does; only the last ends with eos, because the text ends there and not before (each
reconstruction ends with it). How documents come to share a row is `packing`'s business.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gem_ds import layout, tokenization
from gem_ds.errors import InputError
from gem_ds.records import EMPTY, Record, Skip
from gem_ds.tokenization import Ids, Vocabulary

PLAIN, CONTINUATION, RECONSTRUCTION, PAIR = KINDS = (
    "plain",
    "continuation",
    "reconstruction",
    "pair",
)
NO_TARGET = "too short for a target"
ANSWER_TOO_LONG = "answer too long for a row"


class Document(NamedTuple):
    """input_ids (n,) int32, its four boundaries counted from 0, its kind and its record."""

    input_ids: Ids
    bounds: tuple[int, int, int, int]
    kind: str
    record: int


@dataclass(frozen=True)
class Recipe:
    """How records become documents. Lengths are in tokens.

    A continuation is cut uniformly where prefix and suffix have at least `min_prefix` and
    `min_suffix` tokens of text. `summary_tokens` are ids.
    """

    row_length: int
    kinds: dict[str, float]
    min_prefix: int
    min_suffix: int
    summary_tokens: tuple[int, ...]
    bos_token_id: int | None
    eos_token_id: int | None
    text_field: str
    context_field: str
    answer_field: str
    seed: int

    def fields(self) -> list[str]:
        """The fields that records are asked for."""
        texts = [self.text_field] if set(self.kinds) - {PAIR} else []
        return texts + ([self.context_field, self.answer_field] if PAIR in self.kinds else [])

    def ends(self) -> tuple[Ids, Ids, Ids]:
        """What goes in front of a text, between prefix and suffix, and behind: ids."""
        return (
            _ids([] if self.bos_token_id is None else [self.bos_token_id]),
            _ids(self.summary_tokens),
            _ids([] if self.eos_token_id is None else [self.eos_token_id]),
        )


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
    if unknown or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"--kinds {text}: give shares of {', '.join(KINDS)} that add up to 1, "
            "such as plain=0.8,continuation=0.2"
        )
    return {kind: shares[kind] for kind in KINDS if shares.get(kind)}


def draw(kinds: dict[str, float], rng: random.Random) -> str:
    """A kind, with the probability of its share among those given."""
    at = rng.random() * sum(kinds.values())
    for kind, share in kinds.items():
        at -= share
        if at < 0:
            return kind
    return list(kinds)[-1]  # the shares add up to a hair less than 1


def kind_of(record: int, recipe: Recipe) -> tuple[str, random.Random]:
    """The kind of a record's first document, and the generator for what else it draws.

    Both come from the seed and the record's ordinal alone, and use only ``random()``, whose values
    Python guarantees for all versions: what workers there are changes nothing.
    """
    rng = random.Random(f"{recipe.seed} {record}")
    return draw(recipe.kinds, rng), rng


def documents(records: Sequence[Record], recipe: Recipe, vocab: Vocabulary) -> "Batch":
    """All documents of some records, encoded together."""
    batch = Batch([], [], len(records), Counter())
    texts: list[str] = []
    todo: list[tuple[Record, str, random.Random, int]] = []
    for record in records:
        kind, rng = kind_of(record.ordinal, recipe)
        fields = (
            [recipe.context_field, recipe.answer_field] if kind == PAIR else [recipe.text_field]
        )
        try:
            texts += [record.text(field) for field in fields]
            todo.append((record, kind, rng, len(fields)))
        except Skip as skip:
            batch.skip(record, skip)
    encoded = iter(tokenization.encode(vocab, texts))
    for record, kind, rng, n_fields in todo:
        parts = [next(encoded) for _ in range(n_fields)]
        try:
            if not all(len(part) for part in parts):
                raise Skip(EMPTY)
            if kind == PAIR:
                batch.documents.append(
                    pair(parts[0], parts[1], record.ordinal, recipe, batch.notes)
                )
            else:
                batch.documents += split(parts[0], kind, rng, record.ordinal, recipe, batch.notes)
        except Skip as skip:
            batch.skip(record, skip)
    return batch


@dataclass
class Batch:
    """Documents, and what became of the `n_records` records that were to yield them.

    skipped: file, line and reason. notes: how often something else happened that is worth telling.
    """

    documents: list[Document]
    skipped: list[tuple[str, int, str]]
    n_records: int
    notes: Counter[str]

    def skip(self, record: Record, skip: Skip) -> None:
        """Leave a record out."""
        self.skipped.append((record.file, record.line, str(skip)))


def split(
    text: Ids, kind: str, rng: random.Random, record: int, recipe: Recipe, notes: Counter[str]
) -> list[Document]:
    """The documents of a text: as many as its length asks for, each of a kind of its own.

    Raises `Skip` if the text is so short that nothing in it is to be predicted.
    """
    bos, summary, eos = recipe.ends()
    if len(bos) + len(text) + len(eos) < 2:
        raise Skip(NO_TARGET)
    others = {kind: share for kind, share in recipe.kinds.items() if kind != PAIR}
    least = max(1, 2 - len(bos) - len(eos))  # tokens of text in a document that has a target
    made: list[Document] = []
    start = 0
    while start < len(text):
        left = len(text) - start
        room = recipe.row_length - len(bos)
        if kind == RECONSTRUCTION:
            room = (room - len(summary) - len(eos)) // 2 + len(eos)
        elif kind == CONTINUATION:
            room -= len(summary)
        n = left if left + len(eos) <= room else min(room, left - least)
        if kind == RECONSTRUCTION:
            n = min(n, room - len(eos))
        part = text[start : start + n]
        start += n
        tail = eos if start == len(text) or kind == RECONSTRUCTION else eos[:0]
        if kind == CONTINUATION and n < recipe.min_prefix + recipe.min_suffix:
            kind = PLAIN
            notes["too_short_to_cut"] += 1
        if kind == PLAIN:
            made.append(_document([bos, part, tail], None, kind, record))
        elif kind == RECONSTRUCTION:
            made.append(_document([bos, part, summary, part, tail], 2, kind, record))
        else:
            choices = n - recipe.min_suffix - recipe.min_prefix + 1
            cut = recipe.min_prefix + int(rng.random() * choices)
            made.append(_document([bos, part[:cut], summary, part[cut:], tail], 2, kind, record))
        if start < len(text):
            kind = draw(others, rng)
    notes["texts_split"] += len(made) > 1
    return made


def pair(context: Ids, answer: Ids, record: int, recipe: Recipe, notes: Counter[str]) -> Document:
    """The document of a context and its answer; a context too long loses its beginning.

    Raises `Skip` if the answer leaves no room for any of the context.
    """
    bos, summary, eos = recipe.ends()
    room = recipe.row_length - len(bos) - len(summary) - len(answer) - len(eos)
    if room < 1:
        raise Skip(ANSWER_TOO_LONG)
    notes["contexts_truncated"] += len(context) > room
    return _document([bos, context[-room:], summary, answer, eos], 2, PAIR, record)


def _document(parts: list[Ids], summary: int | None, kind: str, record: int) -> Document:
    """The parts joined; part number `summary` is the summary tokens."""
    ends = np.cumsum([len(part) for part in parts]).tolist()
    bounds = layout.plain(0, ends[-1])
    if summary is not None:
        bounds = (0, ends[summary - 1], ends[summary], ends[-1])
    return Document(np.concatenate(parts), bounds, kind, record)


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, dtype=np.int32)
