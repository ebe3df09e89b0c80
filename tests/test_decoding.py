"""Text comes in whole characters, stops where it is told to, and repeats with its seed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizer_families
import torch
from exports import tiny
from transformers import DynamicCache

from gem_ds import decoding, tokenization
from gem_ds.decoding import Sampling
from gem_ds.errors import InputError
from gem_ds.tokenization import Vocabulary


@pytest.fixture(scope="module")
def vocab(tokenizer_dir: Path) -> Vocabulary:
    return tokenization.load(tokenizer_dir)


def test_pieces_are_whole_characters_behind_the_prompt(vocab: Vocabulary) -> None:
    text = " 漢字 wörld 😀!"
    ids = vocab.backend.encode(text, add_special_tokens=False).ids
    before = np.array(vocab.backend.encode("é").ids)
    pieces = list(decoding.pieces(vocab, before, ids, {1}))
    assert "".join(pieces) == text
    assert len(pieces) < len(ids)
    assert all("�" not in piece for piece in pieces)
    cut = list(decoding.pieces(vocab, before, [*ids[:-2], 1, *ids], {1}))
    assert text.startswith("".join(cut))
    assert len("".join(cut)) < len(text) - 1


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "one two three"),
        (["two"], "one "),
        (["three", "two"], "one "),
        (["e two"], "on"),
        (["threes"], "one two three"),
        (["one"], ""),
    ],
)
def test_text_ends_before_a_stop_string(stop: list[str], expected: str) -> None:
    text = "one two three"
    for size in (1, 2, 5, 13):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert "".join(decoding.until(stop, pieces)) == expected


def test_what_cannot_begin_a_stop_string_does_not_wait() -> None:
    seen: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("ab", "cd", "ef"):
            yield piece
            seen.append(piece)

    found = decoding.until(["cx"], pieces())
    assert next(found) == "ab"
    assert seen == []
    assert list(found) == ["cd", "ef"]


def written(lm, sampling: Sampling, n: int = 30) -> list[int]:
    prompt = np.array([0, 5, 6], dtype=np.int32)
    return list(decoding.tokens(lm, prompt, DynamicCache(), 0, n, sampling))


def test_drawing_repeats_with_its_seed_and_follows_the_distribution() -> None:
    lm = tiny("llama", 400)
    assert written(lm, Sampling(1.0, seed=3)) == written(lm, Sampling(1.0, seed=3))
    torch.manual_seed(0)
    first = written(lm, Sampling(1.0))
    torch.manual_seed(0)
    assert first != written(lm, Sampling(1.0)), "without a seed, whatever the global one"
    assert written(lm, Sampling(1.0, top_p=1e-6, seed=1)) == written(lm, Sampling())
    assert written(lm, Sampling(1e-4, seed=1)) == written(lm, Sampling())
    with torch.inference_mode():
        p = lm(torch.tensor([[0, 5, 6]])).logits[0, -1].softmax(-1)
    best = int(p.argmax())
    drawn = [written(lm, Sampling(1.0, seed=s), 1)[0] for s in range(300)]
    assert abs(drawn.count(best) / 300 - float(p[best])) < 0.1


def test_sampling_that_cannot_be_is_refused() -> None:
    for wrong in ({"temperature": float("nan")}, {"top_p": 1.5}):
        with pytest.raises(InputError, match="it must be"):
            Sampling(**wrong)


def test_a_space_between_prompt_and_text_is_kept(tmp_path: Path) -> None:
    """Tokenizers that mark words drop the space before the first word of a text."""
    vocab = tokenization.load(tokenizer_families.save("llama2", tmp_path / "t"))
    before, behind = (vocab.backend.encode(t, add_special_tokens=False).ids for t in ("a", "of a"))
    assert "".join(decoding.pieces(vocab, np.array(before), behind, set())) == " of a"
    assert "".join(decoding.pieces(vocab, np.array([]), behind, set())) == "of a"
