"""Pieces of text join up to what the tokenizer makes of all tokens at once, cut at stop words."""

from pathlib import Path

import numpy as np
import pytest

from gem_ds import decoding, tokenization
from gem_ds.written import Written

TEXT = "A naïve café, 漢字 and 😀. The end of it? Not yet; the end."


def write(vocab, prompt, ids, stop=()):
    """(pieces while tokens come, the piece at the end, how many tokens were taken)"""
    written, pieces = Written(vocab, prompt, stop), []
    for token in ids:
        pieces.append(written.add(int(token)))
        if written.stopped:
            break
    return pieces, written.end()


@pytest.mark.parametrize("seam", [0, 2, 9, 30])
def test_pieces_join_up_to_the_text_behind_the_prompt(family_dir: Path, seam: int) -> None:
    vocab = tokenization.load(family_dir)
    ids = tokenization.encode(vocab, [TEXT])[0]
    pieces, rest = write(vocab, ids[:seam], ids[seam:])
    whole = vocab.backend.decode(ids.tolist())
    before = vocab.backend.decode(ids[:seam].tolist())
    assert "".join(pieces) + rest == whole[len(before) :]
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > len(pieces) / 3  # as they come, not at the end


def test_any_tokens_join_up_to_what_a_loop_makes_of_them(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    rng, none, n_whole = np.random.default_rng(0), np.array([], dtype=np.int32), 0
    for n in (1, 5, *[40] * 20):
        ids = rng.integers(2, 400, n)
        pieces, rest = write(vocab, none, ids)
        assert "".join(pieces) + rest == "".join(decoding.pieces(vocab, none, ids.tolist(), set()))
        n_whole += "".join(pieces) == vocab.backend.decode(ids.tolist())
    assert 0 < n_whole < 22  # others end within a character


def test_a_broken_prompt_changes_nothing(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    ids = tokenization.encode(vocab, ["é and è"])[0]
    pieces, rest = write(vocab, ids[:1], ids[1:])  # the prompt ends within a character
    assert ("".join(pieces) + rest).endswith(" and è")


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
    pieces, rest = write(vocab, np.array([], dtype=np.int32), ids, stop)
    assert "".join(pieces) + rest == before
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
    pieces, rest = write(vocab, np.array([0], dtype=np.int32), [*ids, 1, *ids])
    assert "".join(pieces) + rest == "a ba b"


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
