from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gem_ds.corpus import tokenization
from gem_ds.corpus.sentence_breaks import Breaks
from gem_ds.corpus.tokenization import Vocabulary

CLOSING = "\"'”’»)]」』）】"  # noqa: RUF001
WORDS = ["He", "left", "3", "e.g", "don't", "吾輩", "猫である", "जल", "😀", "e\u0301", "<|eot_id|>"]
MARKS = [".", "!", "?", "…", "...", "。", "！", "？", "।", ",", *CLOSING, '."', ".)", "。」"]  # noqa: RUF001
SPACE = [" ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2009"]
TEXTS = st.lists(st.sampled_from(WORDS) | st.sampled_from(MARKS) | st.sampled_from(SPACE))


@pytest.fixture(scope="module")
def vocab(family_dir: Path) -> Vocabulary:
    return tokenization.load(family_dir)


@pytest.fixture(scope="module")
def breaks(vocab: Vocabulary) -> Breaks:
    return Breaks.of(vocab)


def is_break(text: str, at: int) -> bool:
    """Whether a sentence or line of the text ends before this character: slow and obvious."""
    before, after = text[:at], text[at]
    said = before.rstrip(CLOSING)
    if before.endswith("\n"):
        return True
    if said.endswith((".", "!", "?", "…")):
        return after.isspace()
    return said.endswith(("。", "！", "？", "।")) and after not in CLOSING  # noqa: RUF001


@settings(max_examples=60, deadline=None)
@given(parts=TEXTS)
@example(['He said "Stop. Go!" (Really?) Then: 3.14 (e.g. this).) "So."'])
@example(["吾輩は猫である。名前はまだ無い。「どこ。」本当？はい！\n\n次の行\r\n😀。😀"])  # noqa: RUF001
def test_breaks_are_those_of_the_text(vocab: Vocabulary, breaks: Breaks, parts: list[str]) -> None:
    (ids,) = tokenization.encode(vocab, ["x" + "".join(parts)])

    def decoded(n: int) -> str:
        return vocab.backend.decode(ids[:n].tolist(), skip_special_tokens=False)

    text = decoded(len(ids))
    places = [(n, decoded(n)) for n in range(1, len(ids))]
    between = [(n, len(before)) for n, before in places if text.startswith(before)]  # characters
    expected = [n for n, at in between if at and is_break(text, at)]
    assert breaks.after(ids).tolist() == expected


@pytest.mark.parametrize(
    "sentences",
    [
        ["He left.", " She stayed!", ' "Why?"', " (Nobody knows.)", " He said “so.”", " The end"],
        ["A line\n", "another\r\n", " the last"],
        ["wait...", " what?!", " e.g.", " 3.14 and a.b are whole…", " yes"],
        ["吾輩は猫である。", "「名前は？」", "「まだ無い！」", "はい"],  # noqa: RUF001
        ["वह गया।", " फिर"],
    ],
)
def test_what_a_sentence_is(vocab: Vocabulary, breaks: Breaks, sentences: list[str]) -> None:
    (ids,) = tokenization.encode(vocab, ["".join(sentences)])
    parts = [spelled(breaks, part) for part in np.split(ids, breaks.after(ids))]
    assert parts[0].removeprefix(" ") == sentences[0]
    assert parts[1:] == sentences[1:]


def spelled(breaks: Breaks, ids: np.ndarray) -> str:
    return b"".join(breaks.spelled[i] for i in ids.tolist()).decode()


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1))
@example("\ufffd 日本語 😀 \0")
def test_tokens_spell_the_text(vocab: Vocabulary, breaks: Breaks, text: str) -> None:
    (ids,) = tokenization.encode(vocab, ["x" + text])
    found = spelled(breaks, ids)
    assert found.removeprefix(" ") == vocab.backend.decode(ids.tolist(), skip_special_tokens=False)


def test_ids_without_a_token_and_the_end_of_a_text_are_no_breaks() -> None:
    breaks = Breaks({0: b"", 1: b"Yes.", 2: b" No.\n", 3: b"."})
    for ids, expected in (
        ([1], []),
        ([2], []),
        ([1, 2], [1]),
        ([0, 1, 0, 2, 0], [2]),
        ([2, 2, 3, 3], [1, 2]),
        ([1, 3, 2], [2]),
    ):
        assert breaks.after(np.array(ids, dtype=np.int32)).tolist() == expected, ids
