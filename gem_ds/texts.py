"""From raw records to ids: texts, pairs and chats of a block are encoded together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gem_ds import tokenization
from gem_ds.documents import PAIR, Draw, Pair, Recipe, draw_kind
from gem_ds.job import Job
from gem_ds.records import Record, Skip
from gem_ds.tokenization import Ids


class Text(NamedTuple):
    """A record's ids, and the times it is drawn as a text or as a pair."""

    record: Record
    ids: Ids | Pair
    draws: list[Draw]
    recipe: Recipe

    @property
    def n_tokens(self) -> int:
        """Of all its documents, controls left out."""
        length = len(self.ids)
        if isinstance(self.ids, Pair):
            length = len(self.ids.context) + len(self.ids.answer)
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
    chats: list[Pair] = []
    todo: list[tuple[Record, list[Draw], bool]] = []
    for record, draws in drawn:
        for is_pair, chosen in _by_sort(draws, recipe):
            try:
                if not is_pair:
                    strings.append(record.text(asked["text_field"]))
                elif job.chat:
                    messages = record.messages(asked["messages_field"])
                    chats.append(Pair(*job.chat.encode(messages), whole=True))
                else:
                    fields = (asked["context_field"], asked["answer_field"])
                    strings += [record.text(field) for field in fields]
            except Skip as reason:
                skip(record, reason, len(chosen))
                continue
            todo.append((record, chosen, is_pair))
        record.item = None  # a block holds its bytes or its texts, not both
    encoded = iter(tokenization.encode(job.vocab, strings))
    pairs = iter(chats)
    found = []
    for record, chosen, is_pair in todo:
        ids: Ids | Pair
        if not is_pair:
            ids = next(encoded)
        elif job.chat:
            ids = next(pairs)
        else:
            ids = Pair(next(encoded), next(encoded), False)
        found.append(Text(record, ids, chosen, recipe))
    return found


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
