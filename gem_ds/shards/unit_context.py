"""What every unit of a plan needs beside its part of the corpus: tokenizer, settings, receipts of
the units done, and how raw records become ids: texts, pairs and chats of a block are encoded
together."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gem_ds.corpus import tokenization
from gem_ds.corpus.chat_template import Chat, template_of
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.records import Record, Skip
from gem_ds.corpus.sentence_breaks import Breaks
from gem_ds.corpus.tokenization import Ids
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.shards import dataset, documents
from gem_ds.shards.documents import PAIR, Draw, Pair, Recipe, draw_kind
from gem_ds.shards.manifest import TOKENIZER
from gem_ds.shards.work_plan import Plan

UNITS = "units"  # the folder of receipts


@dataclass(frozen=True)
class Job:
    """The plan, and what every unit of it needs."""

    folder: Path
    plan: Plan
    vocab: tokenization.Vocabulary
    recipes: dict[str, Recipe]  # by source
    chat: Chat | None

    def fields(self, item: Input) -> list[str]:
        """The fields that an input's records are asked for."""
        return fields_of(self.plan.asked, set(self.recipes[item.source].kinds))

    def draws(self, record: Record, part: Part) -> list[Draw]:
        """The times that a record is drawn, epoch by epoch."""
        source = self.plan.mixture.get(self.plan.inputs[part.input].source)
        epochs = range(self.plan.asked["epochs"])
        if source is None:
            return [Draw(record.id, epoch, 0) for epoch in epochs]
        assert part.first is not None
        ordinal = part.first + record.ordinal
        return [
            Draw(record.id, epoch, copy)
            for epoch in epochs
            for copy in range(source.copies(ordinal, epoch))
        ]


def fields_of(asked: dict[str, Any], kinds: set[str]) -> list[str]:
    """The fields that records of these kinds are asked for."""
    texts = [asked["text_field"]] if kinds - {PAIR} else []
    if PAIR not in kinds:
        return texts
    pair = [asked["context_field"], asked["answer_field"]]
    return texts + ([asked["messages_field"]] if asked["messages_field"] else pair)


def shard_name(plan: Plan, unit: int, epoch: int) -> str:
    """The file that a unit writes in an epoch; those of an epoch follow each other."""
    return f"shard-{epoch * len(plan.units) + unit:05d}.parquet"


def receipt_path(folder: Path, unit: int) -> Path:
    """Where a unit's receipt is, or will be."""
    return folder / UNITS / f"{unit:05d}.json"


def skipped_path(folder: Path, unit: int) -> Path:
    """Where a unit lists the records that it left out, if there are any."""
    return folder / UNITS / f"{unit:05d}.skipped.jsonl"


def receipt(folder: Path, plan: Plan, unit: int) -> dict[str, Any] | None:
    """A unit's receipt, if the unit is done: its files are there, as long as they were."""
    try:
        found: dict[str, Any] = json.loads(receipt_path(folder, unit).read_text(encoding="utf-8"))
        if (found["plan"], found["unit"]) != (plan.digest, unit):
            return None
        for entry in found["files"]:
            if (folder / entry["name"]).stat().st_size != entry["bytes"]:
                return None
        if found["n_listed"] and not skipped_path(folder, unit).is_file():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def chat_template_sha256(vocab: tokenization.Vocabulary, date: str) -> str:
    """Of the chat template; raises `InputError` if there is none, or it needs a date."""
    return hashlib.sha256(template_of(vocab, date).encode()).hexdigest()


@lru_cache(1)
def load(folder: Path, digest: str) -> Job:
    """What a worker needs, loaded once: the guard of its tokenizer is set and tried here."""
    plan = Plan.load(folder)
    if plan.digest != digest:
        raise InputError(f"{folder} has another plan by now; run the command again")
    vocab = tokenizer(folder, plan)
    asked = plan.asked
    chat = Chat.of(vocab, asked["chat_date"]) if asked["messages_field"] else None
    return Job(folder, plan, vocab, recipes(asked, vocab), chat)


def tokenizer(folder: Path, plan: Plan) -> tokenization.Vocabulary:
    """The tokenizer in the folder. Raises `InputError` if it is not the plan's."""
    if not (folder / TOKENIZER).is_dir():
        raise InputError(f"{folder / TOKENIZER} is missing; {dataset.AGAIN}")
    vocab = tokenization.load(folder / TOKENIZER)
    if tokenization.fingerprint(vocab) != plan.asked["tokenizer"]:
        raise InputError(f"{folder / TOKENIZER} is not the tokenizer of the plan; {dataset.AGAIN}")
    return vocab


def recipes(asked: dict[str, Any], vocab: tokenization.Vocabulary) -> dict[str, Recipe]:
    """The recipe of each source of a plan."""

    def ids(*tokens: int | None) -> Ids:
        return np.array([token for token in tokens if token is not None], dtype=np.int32)

    at_sentences, least, most = documents.parse_cut(asked["cut"])
    common: dict[str, Any] = {
        "row_length": asked["row_length"],
        "at_sentences": at_sentences,
        "min_prefix": max(asked["min_prefix"], least),
        "max_prefix": asked["row_length"] if most is None else most,
        "min_suffix": asked["min_suffix"],
        "skip_long_pairs": asked["long_pairs"] == documents.SKIP,
        "bos": ids(vocab.bos_token_id),
        "summary_tokens": ids(*asked["summary_token_ids"]),
        "eos": ids(vocab.eos_token_id),
        "breaks": Breaks.of(vocab),
        "seed": asked["seed"],
    }
    return {name: Recipe(kinds=kinds, **common) for name, kinds in asked["kinds"].items()}


def save_receipt(folder: Path, unit: int, content: dict[str, Any]) -> None:
    """Write a unit's receipt: to be called last. The same unit has the same receipt."""
    with replacing(receipt_path(folder, unit)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Text(NamedTuple):
    """A record's ids, or those of its pairs, and the times it is drawn as a text or as pairs."""

    record: Record
    ids: Ids | list[Pair]
    draws: list[Draw]
    recipe: Recipe
    has_negatives: bool

    @property
    def n_tokens(self) -> int:
        """Of all its documents, controls left out."""
        length = len(self.ids)
        if isinstance(self.ids, list):
            length = sum(len(pair.context) + len(pair.answer) for pair in self.ids)
        return length * len(self.draws)


def encode(
    drawn: Sequence[tuple[Record, list[Draw]]],
    recipe: Recipe,
    job: Job,
    skip: Callable[[Record, Skip, int], None],
) -> list[Text]:
    """The texts of records, in order; `skip` is told of what is left out, and how many draws."""
    asked = job.plan.asked
    strings: list[str] = []
    todo: list[_Todo] = []
    for record, draws in drawn:
        for is_pair, chosen in _by_sort(draws, recipe):
            chat: Pair | None = None
            n_answers = 0
            try:
                if not is_pair:
                    strings.append(record.text(asked["text_field"]))
                elif job.chat:
                    messages = record.messages(asked["messages_field"])
                    chat = Pair(*job.chat.encode(messages), whole=True)
                else:
                    context, answers = record.pair(asked["context_field"], asked["answer_field"])
                    strings += [context, *answers]
                    n_answers = len(answers)
            except Skip as reason:
                skip(record, reason, len(chosen))
                continue
            has_negatives = is_pair and record.has_negatives
            todo.append(_Todo(record, chosen, chat, n_answers, has_negatives))
        record.item = None  # a block holds its bytes or its texts, not both
    encoded = iter(tokenization.encode(job.vocab, strings))
    found = []
    for record, chosen, chat, n_answers, has_negatives in todo:
        ids: Ids | list[Pair]
        if chat:
            ids = [chat]
        else:
            ids = next(encoded)
            if n_answers:
                ids = [Pair(ids, next(encoded), False) for _ in range(n_answers)]
        found.append(Text(record, ids, chosen, recipe, has_negatives))
    return found


class _Todo(NamedTuple):
    """A record whose strings are to be encoded: a text, or a context and so many answers."""

    record: Record
    draws: list[Draw]
    chat: Pair | None  # encoded already
    n_answers: int
    has_negatives: bool


def _by_sort(draws: list[Draw], recipe: Recipe) -> list[tuple[bool, list[Draw]]]:
    """The draws that want a text (False) and those that want a pair (True), where there are any."""
    if not draws:
        return []
    if PAIR not in recipe.kinds or len(recipe.kinds) == 1:
        return [(PAIR in recipe.kinds, draws)]
    kinds = [draw_kind(recipe.kinds, draw.random(recipe.seed)) for draw in draws]
    sorts = [
        (wanted, [d for d, kind in zip(draws, kinds, strict=True) if (kind == PAIR) == wanted])
        for wanted in (False, True)
    ]
    return [(wanted, chosen) for wanted, chosen in sorts if chosen]
