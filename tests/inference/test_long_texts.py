"""Given texts become documents that fit; what is left out is said, windows leave nothing out."""

import re
from pathlib import Path

import numpy as np
import pytest
from exports import run_tokenizer

from gem_ds.corpus.tokenization import Vocabulary, encode
from gem_ds.errors import InputError
from gem_ds.inference import long_texts

SUMMARY = np.array([400, 401], dtype=np.int32)
LIMIT = 23  # 20 tokens of text, with bos and two summary tokens
LONG = "Split the string at every occurrence of the separator, and return a list of the parts."


@pytest.fixture(scope="module")
def vocab(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return run_tokenizer(tokenizer_dir, tmp_path_factory.mktemp("vocab"), 2)[0]


def test_a_text_is_between_bos_and_summary(vocab: Vocabulary) -> None:
    read = long_texts.read(vocab, ["a b", ""], SUMMARY, LIMIT)
    ids = encode(vocab, ["a b"])[0].tolist()
    assert [d.tolist() for d in read.documents] == [[0, *ids, 400, 401], [0, 400, 401]]
    assert read.lengths_N.tolist() == [len(ids), 0]
    assert read.shares_D.tolist() == [1, 1]


def test_a_prompt_is_read_with_the_text_behind_it(vocab: Vocabulary) -> None:
    read = long_texts.read(vocab, ["ing a"], SUMMARY, LIMIT, "str")
    assert read.documents[0][1:-2].tolist() == encode(vocab, ["string a"])[0].tolist()
    with pytest.raises(InputError, match=r"the prompt has .* leaves none of 23 to a text; shorten"):
        long_texts.read(vocab, ["a"], SUMMARY, LIMIT, LONG)


def test_a_long_text_is_cut_and_that_is_said(
    vocab: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    read = long_texts.read(vocab, [LONG, "a"], SUMMARY, LIMIT)
    ids = encode(vocab, [LONG])[0]
    assert read.documents[0].tolist() == [0, *ids[:20], 400, 401]
    assert capsys.readouterr().err == "1 of 2 texts are longer than 23 tokens and were cut there\n"


def test_windows_hold_all_of_a_text_in_equal_parts(
    vocab: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    read = long_texts.read(vocab, ["a", LONG, "b"], SUMMARY, LIMIT, "p ", "windows")
    (prompt,) = encode(vocab, ["p "])
    parts = [d[1 + len(prompt) : -2] for d in read.documents[1:-1]]
    assert np.concatenate(parts).tolist() == encode(vocab, [LONG])[0].tolist()
    assert all(d[1 : 1 + len(prompt)].tolist() == prompt.tolist() for d in read.documents[1:-1])
    assert max(map(len, read.documents)) <= LIMIT
    assert len(parts) == -(-len(np.concatenate(parts)) // (20 - len(prompt)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert read.owners_D.tolist() == [0, *[1] * len(parts), 2]
    assert read.shares_D[1:-1].sum() == pytest.approx(1)
    expected = [len(p) + len(prompt) for p in parts]
    assert read.shares_D[1:-1] == pytest.approx(np.array(expected) / sum(expected))
    assert capsys.readouterr().err == ""


def test_what_is_no_text_is_refused(vocab: Vocabulary) -> None:
    for texts, said in [
        (["a", "b\udc80"], "text 2 is not valid Unicode: a lone surrogate at character 2"),
        ([b"a"], "text 1 is a bytes; give strings"),
    ]:
        with pytest.raises(InputError, match=said):
            long_texts.read(vocab, texts, SUMMARY, LIMIT)
    with pytest.raises(InputError, match=re.escape("long texts 'split': choose cut or windows")):
        long_texts.read(vocab, ["a"], SUMMARY, LIMIT, "", "split")
