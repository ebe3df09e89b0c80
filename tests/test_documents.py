import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_ds import documents, layout
from gem_ds.documents import Document, Recipe
from gem_ds.errors import InputError
from gem_ds.records import Skip

BOS, EOS, S0, S1 = 1000, 1001, 1002, 1003
RECIPE = Recipe(
    row_length=20,
    kinds={"plain": 1.0},
    min_prefix=2,
    min_suffix=3,
    summary_tokens=(S0, S1),
    bos_token_id=BOS,
    eos_token_id=EOS,
    text_field="text",
    context_field="context",
    answer_field="answer",
    seed=0,
)


def text(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def split(n: int, kind: str, recipe: Recipe = RECIPE, seed: int = 0) -> list[Document]:
    return documents.split(text(n), kind, random.Random(seed), 7, recipe, Counter())


def test_plain() -> None:
    (made,) = split(3, "plain")
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, EOS]
    assert made.bounds == (0, 5, 5, 5)
    assert (made.kind, made.record) == ("plain", 7)


def test_reconstruction() -> None:
    (made,) = split(3, "reconstruction")
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, S0, S1, 0, 1, 2, EOS]
    assert made.bounds == (0, 4, 6, 10)


def test_continuation_is_cut_at_every_allowed_place() -> None:
    cuts = Counter()
    for seed in range(400):
        (made,) = split(8, "continuation", seed=seed)
        _, summary, suffix, _ = made.bounds
        assert made.input_ids[summary:suffix].tolist() == [S0, S1]
        cuts[summary - 1] += 1
    assert sorted(cuts) == [2, 3, 4, 5]  # tokens of text before the cut: at least 2, 3 after it
    assert min(cuts.values()) > 60


def test_a_text_too_short_to_cut_becomes_plain() -> None:
    notes = Counter()
    (made,) = documents.split(text(4), "continuation", random.Random(0), 7, RECIPE, notes)
    assert made.kind == "plain"
    assert notes["too_short_to_cut"] == 1


def test_pair_and_its_limits() -> None:
    notes: Counter[str] = Counter()
    context, answer = text(3), text(2) + 50
    made = documents.pair(context, answer, 7, RECIPE, notes)
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, S0, S1, 50, 51, EOS]
    assert made.bounds == (0, 4, 6, 9)
    assert not notes["contexts_truncated"]
    made = documents.pair(text(30), answer, 7, RECIPE, notes)
    assert made.input_ids.tolist() == [BOS, *range(16, 30), S0, S1, 50, 51, EOS]
    assert notes["contexts_truncated"] == 1
    assert len(documents.pair(text(30), text(15), 7, RECIPE, notes).input_ids) == 20
    with pytest.raises(Skip, match="answer too long"):
        documents.pair(text(30), text(16), 7, RECIPE, notes)


@given(
    n=st.integers(1, 150),
    kind=st.sampled_from(["plain", "continuation", "reconstruction"]),
    bos=st.booleans(),
    eos=st.booleans(),
    seed=st.integers(0, 20),
    row_length=st.integers(9, 40),
)
def test_long_texts_are_split_without_loss(
    n: int, kind: str, bos: bool, eos: bool, seed: int, row_length: int
) -> None:
    shares = {"plain": 0.4, "continuation": 0.4, "reconstruction": 0.2}
    recipe = replace(
        RECIPE,
        kinds=shares,
        row_length=row_length,
        bos_token_id=BOS if bos else None,
        eos_token_id=EOS if eos else None,
    )
    if n + bos + eos < 2:
        with pytest.raises(Skip, match="too short for a target"):
            split(n, kind, recipe, seed)
        return
    made = split(n, kind, recipe, seed)
    found = []
    for i, document in enumerate(made):
        bounds = np.array([document.bounds], dtype=np.int32)
        layout.check(bounds, len(document.input_ids), k=2)
        assert len(document.input_ids) <= row_length
        assert layout.n_targets(bounds) > 0
        assert (document.input_ids == BOS).sum() == bos
        last = i == len(made) - 1
        ends = (document.input_ids == EOS).sum()
        assert ends == (eos and (last or document.kind == "reconstruction"))
        _, summary, suffix, end = document.bounds
        prefix, rest = document.input_ids[:summary], document.input_ids[suffix:end]
        parts = [[t for t in part.tolist() if t < BOS] for part in (prefix, rest)]
        if document.kind == "reconstruction":
            assert parts[0] == parts[1]
            parts.pop()
        elif document.kind == "continuation":
            assert len(parts[0]) >= recipe.min_prefix
            assert len(parts[1]) >= recipe.min_suffix
        found += [token for part in parts for token in part]
    assert found == list(range(n))


def test_kinds_come_in_their_shares_from_seed_and_ordinal() -> None:
    recipe = replace(RECIPE, kinds={"plain": 0.7, "continuation": 0.2, "pair": 0.1})
    kinds = [documents.kind_of(record, recipe)[0] for record in range(5000)]
    assert kinds == [documents.kind_of(record, recipe)[0] for record in range(5000)]
    assert kinds != [documents.kind_of(r, replace(recipe, seed=1))[0] for r in range(5000)]
    for kind, share in recipe.kinds.items():
        assert kinds.count(kind) / 5000 == pytest.approx(share, abs=0.02)


def test_shares_are_read_and_checked() -> None:
    assert documents.parse_kinds("continuation=0.25, plain=0.75,pair=0") == {
        "plain": 0.75,
        "continuation": 0.25,
    }
    for wrong in ("plain", "plain=x", "plain=0.5", "plain=1.5,pair=-0.5", "other=1", ""):
        with pytest.raises(InputError, match=f"--kinds {wrong}"):
            documents.parse_kinds(wrong)
