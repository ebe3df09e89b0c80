from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import BOS, EOS, RECIPE, S0, S1, SENTENCE, draw, ids, of_kind, split, text, words

from gem_ds import layout
from gem_ds.corpus.records import Skip
from gem_ds.corpus.sentence_breaks import Breaks
from gem_ds.errors import InputError
from gem_ds.shards import documents
from gem_ds.shards.documents import Draw, Pair


def test_plain() -> None:
    (made,) = split(3, RECIPE)
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, EOS]
    assert made.bounds == (0, 5, 5, 5)
    assert (made.kind, made.record) == ("plain", 7)


def test_reconstruction() -> None:
    (made,) = split(3, of_kind("reconstruction"))
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, S0, S1, 0, 1, 2, EOS]
    assert made.bounds == (0, 4, 6, 10)


def test_a_text_without_anything_to_predict_is_skipped() -> None:
    with pytest.raises(Skip, match="empty text"):
        split(0, RECIPE)
    bare = replace(RECIPE, bos=ids(), eos=ids())
    with pytest.raises(Skip, match="too short for a target"):
        split(1, bare)
    assert len(split(2, bare)) == 1


# Texts too long for a row.


@given(
    n=st.integers(1, 150),
    kind=st.sampled_from(["plain", "continuation", "reconstruction", None]),
    bos=st.booleans(),
    eos=st.booleans(),
    at_sentences=st.booleans(),
    copy=st.integers(0, 20),
    row_length=st.integers(9, 40),
)
def test_long_texts_are_split_without_loss(
    n: int, kind: str | None, bos: bool, eos: bool, at_sentences: bool, copy: int, row_length: int
) -> None:
    shares = {"plain": 0.4, "continuation": 0.4, "reconstruction": 0.2, "pair": 0.0}
    recipe = replace(
        RECIPE,
        kinds={kind: 1.0} if kind else shares,
        at_sentences=at_sentences,
        row_length=row_length,
        max_prefix=row_length,
        bos=RECIPE.bos[:bos],
        eos=RECIPE.eos[:eos],
    )
    notes: Counter[str] = Counter()
    if n + bos + eos < 2:
        with pytest.raises(Skip, match="too short for a target"):
            split(n, recipe, copy)
        return
    made = split(n, recipe, copy, notes)
    assert notes["texts_split"] == (len(made) > 1)
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
        prefix, rest = words(document)
        if document.kind == "reconstruction":
            assert prefix == rest
            rest = []
        elif document.kind == "continuation":
            assert len(prefix) >= recipe.min_prefix
            assert len(rest) >= recipe.min_suffix
        start = len(found)
        found += prefix + rest
        if not last and len(found) % SENTENCE and document.kind == kind:
            # Then no sentence ends in the second half of the room.
            room = row_length - bos - 2 * (kind != "plain")
            room = (room - eos) // 2 if kind == "reconstruction" else room
            late = range(start + room // 2 + 1, start + room)
            assert not [at for at in late if at % SENTENCE == 0]
    assert found == list(range(n))


@pytest.mark.parametrize("kind", ["plain", "continuation"])
def test_long_texts_are_split_where_a_sentence_ends(kind: str) -> None:
    made = split(50, of_kind(kind))
    assert [sum(map(len, words(document))) for document in made] == [14, 14, 14, 8]


def test_a_text_without_late_breaks_fills_the_room() -> None:
    few = Breaks({i: b".\n" if i in (3, 30) else b"w" for i in range(100)})
    made = split(60, of_kind("plain", breaks=few))
    assert [len(words(document)[0]) for document in made] == [19, 12, 19, 10]


def test_kinds_of_a_split_text_are_drawn_anew_and_are_never_pairs() -> None:
    shares = {"plain": 0.3, "continuation": 0.2, "reconstruction": 0.2, "pair": 0.3}
    kinds = {document.kind for document in split(400, replace(RECIPE, kinds=shares))}
    assert kinds == {"plain", "continuation", "reconstruction"}
    recipe = replace(RECIPE, kinds={"reconstruction": 0.1, "pair": 0.9})
    copies = [
        c for c in range(99) if documents.draw_kind(recipe.kinds, draw(c).random(0)) != "pair"
    ]
    assert len(copies) > 3
    kinds = {document.kind for copy in copies for document in split(400, recipe, copy)}
    assert kinds == {"reconstruction"}


# Pairs.


def pair(context: np.ndarray, answer: np.ndarray, whole: bool = False) -> Pair:
    return Pair(context, answer, whole)


def test_pair_and_its_limits() -> None:
    notes: Counter[str] = Counter()
    answer = text(2) + 50
    made = documents.of_pair(pair(text(3), answer), draw(), RECIPE, notes)
    assert made.input_ids.tolist() == [BOS, 0, 1, 2, S0, S1, 50, 51, EOS]
    assert made.bounds == (0, 4, 6, 9)
    assert (made.kind, made.record) == ("pair", 7)
    assert not notes["contexts_truncated"]
    made = documents.of_pair(pair(text(30), answer), draw(), RECIPE, notes)
    assert made.input_ids.tolist() == [BOS, *range(16, 30), S0, S1, 50, 51, EOS]
    assert notes["contexts_truncated"] == 1
    made = documents.of_pair(pair(text(30), text(15)), draw(), RECIPE, notes)
    assert made.input_ids.tolist() == [BOS, 29, S0, S1, *range(15), EOS]
    assert notes["contexts_truncated"] == 2
    with pytest.raises(Skip, match="answer too long for a row"):
        documents.of_pair(pair(text(30), text(16)), draw(), RECIPE, notes)
    for empty in (pair(text(0), answer), pair(answer, text(0))):
        with pytest.raises(Skip, match="empty text"):
            documents.of_pair(empty, draw(), RECIPE, notes)
    assert notes["contexts_truncated"] == 2


def test_long_pairs_are_left_out_where_that_is_asked_for() -> None:
    notes: Counter[str] = Counter()
    recipe = replace(RECIPE, skip_long_pairs=True)
    assert len(documents.of_pair(pair(text(14), text(2)), draw(), recipe, notes).input_ids) == 20
    for context, answer in ((15, 2), (1, 16), (30, 30)):
        with pytest.raises(Skip, match="pair longer than a row"):
            documents.of_pair(pair(text(context), text(answer)), draw(), recipe, notes)
    assert not notes


def test_a_whole_pair_has_its_controls_already() -> None:
    answer = ids(50, EOS)
    for recipe, context, expected in (
        (RECIPE, [BOS, 1, BOS, 2], [BOS, 1, BOS, 2]),
        (RECIPE, [1, 2], [BOS, 1, 2]),
        (replace(RECIPE, bos=ids()), [BOS, 1], [BOS, 1]),
        (RECIPE, [BOS, *range(30)], [BOS, *range(15, 30)]),
        (RECIPE, [BOS], [BOS]),
    ):
        made = documents.of_pair(pair(ids(*context), answer, True), draw(), recipe, Counter())
        assert made.input_ids.tolist() == [*expected, S0, S1, 50, EOS]
        assert made.bounds[1] == len(expected)
    full = pair(ids(BOS, *range(15)), answer, True)
    notes: Counter[str] = Counter()
    assert len(documents.of_pair(full, draw(), RECIPE, notes).input_ids) == 20
    assert not notes["contexts_truncated"]


# Chance.


def test_kinds_come_in_their_shares() -> None:
    kinds = {"plain": 0.7, "continuation": 0.2, "pair": 0.1}

    def drawn(seed: int, epoch: int = 0, copy: int = 0) -> list[str]:
        draws = [Draw(record, epoch, copy) for record in range(5000)]
        return [documents.draw_kind(kinds, d.random(seed)) for d in draws]

    found = drawn(0)
    assert found == drawn(0)
    others = [drawn(1), drawn(0, epoch=1), drawn(0, copy=1), drawn(0, epoch=1, copy=1)]
    for i, other in enumerate([found, *others]):
        assert other not in [found, *others][:i]
        for kind, share in kinds.items():
            assert other.count(kind) / 5000 == pytest.approx(share, abs=0.02)


def test_shares_are_read_and_checked() -> None:
    assert documents.parse_kinds("continuation=0.25, plain=0.75,pair=0") == {
        "plain": 0.75,
        "continuation": 0.25,
    }
    for wrong in (
        "plain",
        "plain=x",
        "plain=0.5",
        "plain=1.5,pair=-0.5",
        "other=1",
        "plain=nan",
        "",
    ):
        with pytest.raises(InputError, match=f"--kinds {wrong}"):
            documents.parse_kinds(wrong)
