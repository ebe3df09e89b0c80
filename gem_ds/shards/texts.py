"""From raw records to ids: texts, pairs and chats of a block are encoded together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Ids
from gem_ds.inputs.records import Record, Skip
from gem_ds.shards.documents import PAIR, Draw, Pair, Recipe, draw_kind
from gem_ds.shards.unit_context import Job


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
