"""What a record yields: chat messages and pairs in the shapes that corpora have, or why nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import in_process, write_jsonl

from gem_ds.corpus import records
from gem_ds.corpus.records import Record, Skip
from gem_ds.shards.dataset import Shards


def record(content: Any) -> Record:
    return Record(0, 0, 1, 0, True, json.dumps(content).encode())


def messages(value: Any) -> list[dict[str, Any]]:
    return record({"m": value}).messages("m")


def test_sharegpt_is_roles_and_contents() -> None:
    said = [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "Hi", "weight": None},
        {"from": "GPT", "value": "Hello", "weight": 1},
        {"from": "observation", "value": "7"},
        {"role": "user", "content": "Mixed"},
    ]
    expected = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "weight": 1},
        {"role": "tool", "content": "7"},
        {"role": "user", "content": "Mixed"},
    ]
    assert messages(said) == expected
    assert messages(json.dumps(said)) == expected  # as tables often have them


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ([{"from": "narrator", "value": "x"}], "from is 'narrator', not one of human, user"),
        ([{"from": None, "value": "x"}], "each needs role and content.*; one has value"),
        ([{"from": "human", "text": "x"}], "one has role, text"),
        ([{"speaker": "human", "text": "x"}], "one has speaker, text"),
        ([{"role": "user", "content": ["x"]}], "as texts; one has role, content"),
        ([{}], "one has nothing"),
        (["x"], ""),
        ([], ""),
        ("x", ""),
        ({"role": "user"}, ""),
    ],
)
def test_messages_that_are_none(said: Any, hint: str) -> None:
    with pytest.raises(Skip, match="not a list of chat messages") as caught:
        messages(said)
    assert records.is_bad(str(caught.value))
    assert re.search(hint, caught.value.hint)


def pair(context: Any, answer: Any) -> tuple[str, list[str]]:
    return record({"query": context, "pos": answer}).pair("query", "pos")


@pytest.mark.parametrize(
    ("context", "answer", "expected"),
    [
        ("q", "a", ("q", ["a"])),
        ("q", ["a", "b"], ("q", ["a", "b"])),  # FlagEmbedding
        ("q", ["a", "", None, " "], ("q", ["a", "", "", ""])),
        ("q", [{"docid": "1", "title": "T", "text": "a"}], ("q", ["T a"])),  # Tevatron
        ("q", [{"title": "", "text": "a"}, {"text": "b"}], ("q", ["a", "b"])),
        (["Find it.", "q"], [["", "a"], ["Or", "b"]], ("Find it.\nq", ["a", "Or\nb"])),  # GritLM
    ],
)
def test_a_list_gives_an_answer_each(context: Any, answer: Any, expected: Any) -> None:
    assert pair(context, answer) == expected


@pytest.mark.parametrize(
    ("context", "answer", "reason"),
    [
        ("q", [], "empty text"),
        ("q", ["", " "], "empty text"),
        (" ", ["a"], "empty text"),
        ("q", None, "missing field 'pos'"),
        ("q", ["a", 7], "not a string"),
        ("q", [{"body": "a"}], "not a string"),
        ("q", [["a", "b", "c"]], "not a string"),
        (["i", "q"], ["i", "a"], "not a string"),  # MEDI: no list of positives
        ({"q": 1}, "a", "not a string"),
    ],
)
def test_pairs_that_are_none(context: Any, answer: Any, reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        pair(context, answer)


def pairs_of(shards: Shards) -> int:
    return shards.manifest.counts["documents"]["pair"]


def test_positives_become_documents(
    tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"query": "one", "pos": ["first", "second", ""], "neg": ["no"]},
        {"query": "two", "pos": "alone", "neg": []},
        {"query": "three", "pos": [], "neg": ["no"]},
    ]
    options = {"kinds": "pair=1", "context_field": "query", "answer_field": "pos"}
    made = in_process(
        write_jsonl(tmp_path / "a.jsonl", rows), tokenizer_dir, tmp_path / "a", **options
    )
    counts = made.manifest.counts
    assert (counts["documents_in"], counts["records_written"]) == (3, 2)
    assert counts["skipped"] == {"empty text": 1}
    assert pairs_of(made) == 3
    assert counts["notes"]["answers_of_lists_left_out"] == 1
    assert "1 records whose negatives are not used" in capsys.readouterr().out
    table = pa.Table.from_pylist([{"query": "one", "pos": ["first", "second"]}])
    pq.write_table(table, tmp_path / "b.parquet")
    assert (
        pairs_of(in_process(tmp_path / "b.parquet", tokenizer_dir, tmp_path / "b", **options)) == 2
    )


def test_names_that_are_near_are_told() -> None:
    assert records.names_there("txt", ["id", "text"]) == "id, text; did you mean text?"
    assert records.names_there("x", {}) == "none"
    assert records.names_there("x", [f"long{i}" for i in range(20)]).endswith("long11, …")
