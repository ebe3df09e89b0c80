"""Texts of numbered tokens, and recipes for them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from gem_ds.corpus.sentence_breaks import Breaks
from gem_ds.shards import documents
from gem_ds.shards.documents import Document, Draw, Recipe

BOS, EOS, S0, S1 = 1000, 1001, 1002, 1003
SENTENCE = 7  # tokens: the last of them is a full stop


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


RECIPE = Recipe(
    row_length=20,
    kinds={"plain": 1.0},
    at_sentences=False,
    min_prefix=2,
    max_prefix=20,
    min_suffix=3,
    skip_long_pairs=False,
    bos=ids(BOS),
    summary_tokens=ids(S0, S1),
    eos=ids(EOS),
    breaks=Breaks({i: b"." if i % SENTENCE == SENTENCE - 1 else b" w" for i in range(1000)}),
    seed=0,
)


def text(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def draw(copy: int = 0) -> Draw:
    return Draw(7, 0, copy)


def of_kind(kind: str, **changes: Any) -> Recipe:
    return replace(RECIPE, kinds={kind: 1.0}, **changes)


def split(
    n: int, recipe: Recipe, copy: int = 0, notes: Counter[str] | None = None
) -> list[Document]:
    return documents.of_text(text(n), draw(copy), recipe, Counter() if notes is None else notes)


def words(document: Document) -> tuple[list[int], list[int]]:
    """The text before the summary tokens, and after them."""
    _, summary, suffix, end = document.bounds
    parts = document.input_ids[:summary], document.input_ids[suffix:end]
    return tuple([t for t in part.tolist() if t < BOS] for part in parts)
