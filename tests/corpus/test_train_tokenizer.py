"""The tokenizer from scratch: lossless, repeatable, loadable."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gem_ds.corpus import train_tokenizer
from gem_ds.errors import InputError

TEXTS = [f"The quick brown fox number {i} jumps over lazy dogs, é ü 漢字.\n" for i in range(300)]


def test_loads_in_transformers_and_gives_every_text_back(tmp_path: Path) -> None:
    tokenizer = train_tokenizer.train(TEXTS, 300)
    train_tokenizer.save(tokenizer, tmp_path / "tok")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tok")
    text = "  A text\twith \U0001f600, two  spaces , and 'quotes' .\n"
    ids = loaded(text)["input_ids"]
    assert ids[0] == loaded.bos_token_id == tokenizer.token_to_id(train_tokenizer.BOS)
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert (loaded.eos_token, loaded.pad_token, len(loaded)) == (
        train_tokenizer.EOS,
        train_tokenizer.PAD,
        300,
    )


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer.train(TEXTS, 300).to_str() == train_tokenizer.train(TEXTS, 300).to_str()


@pytest.mark.parametrize(
    ("vocab_size", "message"), [(258, "at least 259 tokens"), (5000, "give only")]
)
def test_impossible_sizes_are_refused(vocab_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_tokenizer.train(TEXTS, vocab_size)


@pytest.mark.parametrize("line", [b"not json", b'{"title": "x"}', b'{"text": "\xff"}', b"[1]"])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": ""}\n')
    assert list(train_tokenizer.texts_in([str(path)])) == ["fine"]
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"in\.jsonl, line 2"):
        list(train_tokenizer.texts_in([str(path)]))
