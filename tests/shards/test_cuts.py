"""Where a continuation is cut."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from recipes import S0, S1, draw, of_kind, split, words

from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.shards import documents, unit_context
from gem_ds.shards.documents import Recipe


def cuts(n: int, recipe: Recipe, times: int = 400) -> Counter[int]:
    """How often the prefix has how many tokens of text; 0 where there is no cut."""
    found: Counter[int] = Counter()
    for copy in range(times):
        (made,) = split(n, recipe, copy)
        _, summary, suffix, _ = made.bounds
        is_cut = made.kind == "continuation"
        assert made.input_ids[summary:suffix].tolist() == [S0, S1] * is_cut
        found[len(words(made)[0]) if is_cut else 0] += 1
    return found


def test_a_continuation_is_cut_at_every_allowed_place() -> None:
    found = cuts(8, of_kind("continuation"))
    assert sorted(found) == [2, 3, 4, 5]  # tokens of text before the cut: at least 2, 3 after it
    assert min(found.values()) > 60


def test_a_prefix_has_at_most_so_many_tokens() -> None:
    found = cuts(15, of_kind("continuation", min_prefix=4, max_prefix=6))
    assert sorted(found) == [4, 5, 6]
    assert min(found.values()) > 90
    assert sorted(cuts(8, of_kind("continuation", min_prefix=4, max_prefix=6))) == [4, 5]
    assert sorted(cuts(7, of_kind("continuation", min_prefix=5, max_prefix=6))) == [0]


def test_a_continuation_is_cut_where_a_sentence_ends() -> None:
    recipe = of_kind("continuation", at_sentences=True, row_length=60, max_prefix=60)
    found = cuts(30, recipe)
    assert sorted(found) == [7, 14, 21]  # 28 leaves too little
    assert min(found.values()) > 90
    assert sorted(cuts(30, replace(recipe, min_prefix=8, max_prefix=20), 50)) == [14]


def test_without_a_sentence_to_cut_at_any_place_will_do() -> None:
    notes: Counter[str] = Counter()
    recipe = of_kind("continuation", at_sentences=True)
    assert {len(words(split(7, recipe, copy, notes)[0])[0]) for copy in range(99)} == {2, 3, 4}
    assert notes["no_sentence_to_cut_at"] == 99
    split(17, recipe, 0, notes)
    split(7, of_kind("continuation"), 0, notes)
    assert notes["no_sentence_to_cut_at"] == 99


def test_a_text_too_short_to_cut_becomes_plain() -> None:
    notes: Counter[str] = Counter()
    (made,) = split(4, of_kind("continuation"), notes=notes)
    assert made.kind == "plain"
    assert notes["too_short_to_cut"] == 1


def test_cuts_are_read_and_checked() -> None:
    assert documents.parse_cut("uniform") == (False, 1, None)
    assert documents.parse_cut("sentence") == (True, 1, None)
    assert documents.parse_cut("32-256") == (False, 32, 256)
    assert documents.parse_cut("5-5") == (False, 5, 5)
    for wrong in ("", "32", "32-", "-5", "0-5", "6-5", "a-b", "1-2-3", "Sentence", "1.5-3", "²-³"):
        with pytest.raises(InputError, match=f"--cut {wrong}"):
            documents.parse_cut(wrong)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("uniform", (False, 8, 64)),
        ("sentence", (True, 8, 64)),
        ("3-9", (False, 8, 9)),
        ("16-99", (False, 16, 99)),
    ],
)
def test_a_recipe_is_made_of_the_flags(
    tokenizer_dir: Path, cut: str, expected: tuple[bool, int, int]
) -> None:
    vocab, summary = tokenization.add_summary_tokens(tokenization.load(tokenizer_dir), 2)
    asked = {"cut": cut, "row_length": 64, "min_prefix": 8, "min_suffix": 4, "seed": 3}
    asked |= {"long_pairs": "skip", "summary_token_ids": summary}
    asked |= {"kinds": {"a": {"plain": 1.0}, "b": {"pair": 1.0}}}
    made = unit_context.recipes(asked, vocab)
    assert {name: recipe.kinds for name, recipe in made.items()} == asked["kinds"]
    recipe = made["a"]
    assert (recipe.at_sentences, recipe.min_prefix, recipe.max_prefix) == expected
    assert (recipe.min_suffix, recipe.skip_long_pairs, recipe.seed) == (4, True, 3)
    assert (recipe.bos, recipe.eos, recipe.summary_tokens.tolist()) == ([0], [1], summary)
    # What the flags promise, on text.
    sentences = "The path is a string. It has parts. They are joined. " * 2
    (encoded,) = tokenization.encode(vocab, [sentences])
    recipe = replace(recipe, kinds={"continuation": 1.0}, row_length=200)
    for copy in range(20):
        (document,) = documents.of_text(encoded, draw(copy), recipe, Counter())
        if cut == "sentence":
            prefix = vocab.backend.decode(document.input_ids[: document.bounds[1]].tolist())
            assert prefix.endswith(".")
            assert sentences.startswith(prefix)
