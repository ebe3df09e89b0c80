"""Texts and chats of one corpus, from files to rows."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from gem_ds.corpus.records import place_of
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.dataset import Shards
from gem_ds.shards.prepare import prepare

N = 40


def talk(i: int) -> list[dict[str, Any]]:
    contents = [f"What is {i}?", f"It is {i}.", f"And {i} + 1?", f"{i + 1}!", "Thank you."]
    roles = ["user", "assistant", "user", "assistant", "user"]
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def records(last: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of them has no chat that any of the templates takes."""
    return [
        {"text": f"Text {i}.", "messages": [*map(talk, range(N)), last][i]} for i in range(N + 1)
    ]


def jsonl(path: Path) -> list[int]:
    """Write them; where in the file each begins."""
    lines = [json.dumps(record) + "\n" for record in records(talk(0)[:1])]
    path.write_text("".join(lines))
    return [sum(map(len, lines[:i])) for i in range(len(lines))]


def parquet(path: Path) -> list[int]:
    """Where the last has tool calls, all others have null."""
    calls = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    pq.write_table(pa.Table.from_pylist(records([*talk(0)[:1], calls])), path, row_group_size=7)
    return list(range(N + 1))


@pytest.mark.parametrize("family_dir", ["llama2_json", "llama3", "qwen"], indirect=True)
@pytest.mark.parametrize("write", [jsonl, parquet])
def test_each_record_becomes_its_text_or_its_chat(
    family_dir: Path, tmp_path: Path, write: Callable[[Path], list[int]]
) -> None:
    path, output = tmp_path / f"corpus.{write.__name__}", tmp_path / "out"
    places = write(path)
    options = {"kinds": "plain=0.8,pair=0.2", "messages_field": "messages", "epochs": 3}
    options |= {"row_length": 512, "workers": 1, "max_bad_fraction": 0.0}
    prepare(PrepareConfig([str(path)], str(family_dir), str(output), **options))
    shards = Shards(output)
    stock: Any = AutoTokenizer.from_pretrained(family_dir)
    drawn: Counter[int] = Counter()
    for row in map(shards.read, range(len(shards))):
        for record, (start, summary, suffix, end) in zip(row.records, row.bounds, strict=True):
            i = places.index(place_of(int(record))[1])
            ids = row.input_ids[start:summary].tolist() + row.input_ids[suffix:end].tolist()
            if summary < suffix:
                assert ids == stock.apply_chat_template(talk(i)[:4], return_dict=False)
            else:
                assert ids == [*stock(f"Text {i}.").input_ids, shards.manifest.eos_token_id]
            drawn[i] += 1
    assert 0 < shards.manifest.counts["documents"]["pair"] < N
    assert {drawn[i] for i in range(N)} == {3}
    assert drawn[N] == 3 - sum(shards.manifest.counts["skipped"].values())
