"""Pieces of text join up to what the tokenizer makes of all tokens at once, cut at stop words."""

from pathlib import Path

import numpy as np
import pytest
import tokenizer_families

from gem_ds.corpus import tokenization
from gem_ds.inference.generation import Written, pieces

TEXT = "A naïve café, 漢字 and 😀. The end of it? Not yet; the end."


def write(vocab, prompt, ids, stop=()):
    """(pieces while tokens come, the piece at the end, how many tokens were taken)"""
    written, found = Written(vocab, prompt, stop), []
    for token in ids:
        found.append(written.add(int(token)))
        if written.stopped:
            break
    return found, written.end()


@pytest.mark.parametrize("seam", [0, 2, 9, 30])
def test_pieces_join_up_to_the_text_behind_the_prompt(family_dir: Path, seam: int) -> None:
    vocab = tokenization.load(family_dir)
    ids = tokenization.encode(vocab, [TEXT])[0]
    found, rest = write(vocab, ids[:seam], ids[seam:])
    whole = vocab.backend.decode(ids.tolist())
    before = vocab.backend.decode(ids[:seam].tolist())
    assert "".join(found) + rest == whole[len(before) :]
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > len(found) / 3  # as they come, not at the end


def test_any_tokens_join_up_to_their_text(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    rng, none, n_whole = np.random.default_rng(0), np.array([], dtype=np.int32), 0
    for n in (1, 5, *[40] * 20):
        ids = rng.integers(2, 400, n)
        found, whole = "".join(write(vocab, none, ids)[0]), vocab.backend.decode(ids.tolist())
        assert found == whole[: len(found)]
        assert whole[len(found) :].strip("\ufffd") == "", "all but a character that has only begun"
        n_whole += found == whole
    assert 0 < n_whole < 22  # others end within a character


def test_a_broken_prompt_changes_nothing(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    ids = tokenization.encode(vocab, ["é and è"])[0]
    found, rest = write(vocab, ids[:1], ids[1:])  # the prompt ends within a character
    assert ("".join(found) + rest).endswith(" and è")


@pytest.mark.parametrize(
    ("stop", "before"),
    [
        (("end",), "A naïve café, 漢字 and 😀. The "),
        (("the end", "Not"), "A naïve café, 漢字 and 😀. The end of it? "),
        (("ends",), TEXT),
        (("A",), ""),
        ((".", "😀"), "A naïve café, 漢字 and "),
        (("the end.",), TEXT.removesuffix("the end.")),
        (("nothing", "the end of"), TEXT),
    ],
)
def test_it_ends_before_the_first_stop_word(tokenizer_dir: Path, stop, before) -> None:
    vocab = tokenization.load(tokenizer_dir)
    ids = tokenization.encode(vocab, [TEXT])[0]
    found, rest = write(vocab, np.array([], dtype=np.int32), ids, stop)
    assert "".join(found) + rest == before
    assert rest == "" or before == TEXT


def test_what_may_begin_a_stop_word_waits(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    ids = [*tokenization.encode(vocab, ["x", "<", "/", "s", "y"])]
    written = Written(vocab, np.array([], dtype=np.int32), ["</s>"])
    given = [written.add(int(i)) for one in ids for i in one]
    assert given == ["x", "", "", "", "</sy"]


def test_control_tokens_are_no_text(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    ids = tokenization.encode(vocab, ["a b"])[0].tolist()
    found, rest = write(vocab, np.array([0], dtype=np.int32), [*ids, 1, *ids])
    assert "".join(found) + rest == "a ba b"


def test_of_two_stop_words_in_one_token_the_first_counts(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    token, text = next(
        (i, text)
        for i in range(2, 400)
        if len(set(text := vocab.backend.decode([i]))) > 2 and text.isalpha()
    )
    written = Written(vocab, np.array([], dtype=np.int32), [text[2], text[1]])
    assert written.add(token) == text[:1]
    assert written.stopped


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "one two three"),
        (("two",), "one "),
        (("three", "two"), "one "),
        (("e two",), "on"),
        (("threes",), "one two three"),
        (("one",), ""),
    ],
)
def test_text_ends_before_a_stop_word_however_it_is_cut(
    tokenizer_dir: Path, stop, expected
) -> None:
    vocab, none = tokenization.load(tokenizer_dir), np.array([], dtype=np.int32)
    text = "one two three"
    for size in (1, 2, 5, 13):
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        ids = [i for one in tokenization.encode(vocab, parts) for i in one.tolist()]
        assert "".join(pieces(Written(vocab, none, stop), ids, set())) == expected


def test_an_end_token_ends_the_text_and_is_no_part_of_it(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    none, (ids,) = np.array([], dtype=np.int32), tokenization.encode(vocab, ["one two 漢"])
    tokens = iter([*ids.tolist(), 1, *ids.tolist()])
    assert "".join(pieces(Written(vocab, none), tokens, {1})) == "one two 漢"
    assert list(tokens) == ids.tolist(), "what comes behind is not asked for"
    begun = [*ids.tolist()[:-1], 1]  # within the last character
    assert "".join(pieces(Written(vocab, none), begun, {1})) == "one two "
    assert "".join(pieces(Written(vocab, none, ["two three"]), begun, {1})) == "one two "


def test_a_space_between_prompt_and_text_is_kept(tmp_path: Path) -> None:
    """Tokenizers that mark words drop the space before the first word of a text."""
    vocab = tokenization.load(tokenizer_families.save("llama2", tmp_path / "t"))
    before, behind = (vocab.backend.encode(t, add_special_tokens=False).ids for t in ("a", "of a"))
    for prompt, expected in ((before, " of a"), ([], "of a")):
        written = Written(vocab, np.array(prompt, dtype=np.int32))
        assert "".join(pieces(written, behind, set())) == expected
