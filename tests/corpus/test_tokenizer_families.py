"""What holds of the tokenizers of every family (`family_dir`)."""

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Vocabulary


@pytest.fixture(scope="module")
def extended(family_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, Any]:
    """A family's vocabulary with summary tokens, saved and read again, and Transformers' of it."""
    base = tokenization.load(family_dir)
    vocab, ids = tokenization.add_summary_tokens(base, 2)
    assert ids == [base.size, base.size + 1]
    folder = tmp_path_factory.mktemp("saved") / family_dir.name
    tokenization.save(vocab, folder)
    return tokenization.load(folder), AutoTokenizer.from_pretrained(folder)


def is_plain(text: str, vocab: Vocabulary) -> bool:
    added = vocab.backend.get_added_tokens_decoder().values()
    return not any(token.content in text for token in added)


def test_bos_and_eos_are_the_familys(family_dir: Path, extended: tuple[Vocabulary, Any]) -> None:
    vocab, saved = extended
    for stock in (AutoTokenizer.from_pretrained(family_dir), saved):
        bare = stock("a", add_special_tokens=False).input_ids
        before = [] if vocab.bos_token_id is None else [vocab.bos_token_id]
        assert stock("a").input_ids == before + bare
        assert vocab.eos_token_id == stock.eos_token_id is not None
        assert vocab.bos_token_id in (None, stock.bos_token_id)
    assert (vocab.bos_token_id is None) == (family_dir.name == "qwen")


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=80))
@example(" leading")
@example("  a\t\tb \r\n\r\n  c   ")
@example("a\0b 😀👨\u200d👩 e\u0301 \u1100\u1161 \ufeff\u200b 日本語。 don't I'LL 12345 3.14")
def test_ids_are_those_of_transformers(
    family_dir: Path, extended: tuple[Vocabulary, Any], text: str
) -> None:
    vocab, saved = extended
    assume(is_plain(text, vocab))
    (ids,) = tokenization.encode(vocab, [text])
    for stock in (_stock(family_dir), saved):
        assert stock(text, add_special_tokens=False).input_ids == ids.tolist()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_spells_no_control_token(
    extended: tuple[Vocabulary, Any], data: st.DataObject
) -> None:
    vocab, _ = extended
    tokens = vocab.backend.get_added_tokens_decoder()
    controls = {i: token.content for i, token in tokens.items() if token.special}
    names = st.sampled_from(sorted(controls.values()))
    text = "x" + "".join(data.draw(st.lists(names | st.sampled_from([" ", "\n", "x", "<"]))))
    (ids,) = tokenization.encode(vocab, [text])
    assert not controls.keys() & set(ids.tolist())
    assert vocab.backend.decode(ids.tolist(), skip_special_tokens=False) == text


@settings(max_examples=60, deadline=None)
@given(text=st.text())
@example("a\0b\r\n\r\n e\u0301\u0323 😀👨\u200d👩\u200d👧 \U0001f1e9\U0001f1ea \ufffd \u2028")
def test_text_survives(family_dir: Path, extended: tuple[Vocabulary, Any], text: str) -> None:
    vocab, _ = extended
    (ids,) = tokenization.encode(vocab, ["x" + text])  # some families lose a space at the beginning
    decoded = vocab.backend.decode(ids.tolist(), skip_special_tokens=False)
    composed = unicodedata.normalize("NFC", "x" + text)
    assert decoded == (composed if family_dir.name == "qwen" else "x" + text)


@cache
def _stock(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)
