from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import TEXTS, jsonl, read, texts

from gem_ds.corpus import discovery, record_reader, streams, tables
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.records import Skip
from gem_ds.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For files of a dataset; what `datasets` keeps of it goes elsewhere."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def save(path: Path, columns: dict[str, Sequence | pa.Array], **options: object) -> list[Input]:
    pq.write_table(pa.table(columns), path, **options)
    return discovery.find([str(path)])


def damaged(strings: pa.Array) -> pa.Array:
    """The same with a byte of the last text that is not UTF-8: Arrow does not look."""
    *buffers, data = strings.buffers()
    data = pa.py_buffer(data.to_pybytes()[:-1] + b"\xff")
    return pa.Array.from_buffers(strings.type, len(strings), [*buffers, data])


def test_strings_are_checked_one_by_one(tmp_path: Path) -> None:
    """Also in dictionaries, and in datasets that were saved."""
    strings = damaged(pa.array(["good", None, "", "bad"]))
    expected = [
        "good",
        "skipped: missing field 'text'",
        "skipped: empty text",
        "skipped: invalid UTF-8",
    ]
    binary = strings.cast(pa.binary())
    large = binary.cast(pa.large_binary()).view(pa.large_string())
    indices = pa.array([0, None, 1, 2])
    dictionary = pa.DictionaryArray.from_arrays(indices, strings.filter(strings.is_valid()))
    for column in (strings, binary, large, dictionary):
        assert texts(save(tmp_path / "a.parquet", {"text": column})) == expected, column.type
    datasets.Dataset(pa.table({"text": strings})).save_to_disk(tmp_path / "saved")
    assert texts(discovery.find([str(tmp_path / "saved")])) == expected


def test_messages_are_checked_one_by_one(tmp_path: Path) -> None:
    contents = damaged(pa.array(["hello", "bye"]))
    message = pa.StructArray.from_arrays(
        [pa.array(["user", "user"]), contents], ["role", "content"]
    )
    column = pa.ListArray.from_arrays([0, 1, 2], message)
    found = save(tmp_path / "a.parquet", {"messages": column})
    (block,) = record_reader.blocks(found, record_reader.whole(found), lambda _: ["messages"])
    first, second = block.records
    assert first.messages("messages") == [{"role": "user", "content": "hello"}]
    with pytest.raises(Skip, match="invalid UTF-8"):
        second.messages("messages")


def test_values_that_are_no_text_are_named(tmp_path: Path) -> None:
    found = save(tmp_path / "a.parquet", {"text": [1, 2], "a.b": ["x", "y"]})
    assert texts(found) == ["skipped: not a string"] * 2
    assert texts(found, field="a.b") == ["x", "y"]
    with pytest.raises(
        InputError, match=r"has no column 'body' but text, a\.b; name the right one"
    ):
        texts(found, field="body")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has two columns 'text'; rename one of them"):
        texts(discovery.find([str(tmp_path / "a.parquet")]))


def test_tables_without_rows(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    with pq.ParquetWriter(tmp_path / "a.parquet", empty.schema) as writer:
        for n in (0, 2, 0, 1):
            writer.write_table(pa.table({"text": ["x"] * n}, schema=empty.schema))
    assert len(texts(discovery.find([str(tmp_path / "a.parquet")]))) == 3
    assert texts(save(tmp_path / "b.parquet", {"text": pa.array([], pa.string())})) == []


def test_blocks_are_of_bounded_size(tmp_path: Path) -> None:
    """By what lists and texts hold, not by how many they are."""
    chat = [{"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "y" * 5000}]
    found = save(tmp_path / "a.parquet", {"messages": [chat] * 300})
    sizes = [
        len(block.records)
        for block in record_reader.blocks(found, record_reader.whole(found), lambda _: ["messages"])
    ]
    assert sum(sizes) == 300
    assert max(sizes) <= streams.BLOCK_BYTES // 10_000 + 1


def test_saved_datasets_are_read_by_rows(tmp_path: Path) -> None:
    rows = [f"row {i}" for i in range(1000)]
    datasets.Dataset.from_dict({"n": range(1000), "text": rows}).save_to_disk(
        tmp_path / "saved", num_shards=3
    )
    found = discovery.find([str(tmp_path / "saved")])
    assert tables.extent(found[0]) == 1000
    whole = read(found)
    assert whole == [(i, i + 1, text) for i, text in enumerate(rows)]
    assert read(found, [Part(0, 300, 700, 1)]) == whole[300:700]
    with pytest.raises(InputError, match="saved has no column 'body' but n, text"):
        read(found, field="body")
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(InputError, match="saved cannot be read"):
        read(found)


def test_rows_that_were_chosen_are_read(tmp_path: Path) -> None:
    """A dataset may be saved as indices into another."""
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    whole.select([2, 0]).save_to_disk(tmp_path / "saved")
    assert texts(discovery.find([str(tmp_path / "saved")])) == [TEXTS[2], TEXTS[0]]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_streamed_datasets_are_read_by_shards(folder: Path, form: str) -> None:
    for i in range(3):
        lines = [f"{i} {text}" for text in TEXTS]
        if form == "jsonl":
            (folder / f"{i}.jsonl").write_bytes(jsonl(lines))
        else:
            save(folder / f"{i}.parquet", {"id": range(4), "text": lines})
    found = discovery.find([f"dataset:{folder}"])
    assert tables.extent(found[0]) == 3
    whole = read(found)
    assert [text for *_, text in whole] == [f"{i} {text}" for i in range(3) for text in TEXTS]
    assert [line for _, line, _ in whole] == list(range(1, 13))
    assert len({identity for identity, *_ in whole}) == 12
    for shard in range(3):
        part = read(found, [Part(0, shard, shard + 1, 1)])
        assert [(i, text) for i, _, text in part] == [
            (i, text) for i, _, text in whole[4 * shard : 4 * shard + 4]
        ]
        assert [line for _, line, _ in part] == [1, 2, 3, 4]  # `shards.finalize` adds those before
    with pytest.raises(InputError, match="has no column 'body' but id, text"):
        read(found, field="body")


def test_streamed_datasets_that_are_not_there(folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_bytes(jsonl(TEXTS))
    for name, message in {
        f"dataset:{folder}:test": "cannot be read .*Bad split: test",
        f"dataset:{folder}:fr:train": "cannot be read .*'fr' not found",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            record_reader.whole(discovery.find([name]))
        assert "\n" not in str(caught.value)
    path.write_bytes(jsonl(TEXTS) + b'{"text": \n')
    found = discovery.find([f"dataset:{folder}"])
    with pytest.raises(InputError, match=f"dataset:{folder} cannot be read .*JSON parse error"):
        read(found)


def test_a_streamed_dataset_has_so_many_shards_and_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(jsonl(TEXTS))
    found = discovery.find([f"dataset:{folder}"])
    monkeypatch.setattr(tables, "ROW_BITS", tables.OFFSET_BITS)
    with pytest.raises(InputError, match="has 2 shards; give its files in several inputs"):
        tables.extent(found[0])
    monkeypatch.setattr(tables, "ROW_BITS", 1)
    with pytest.raises(InputError, match="has a shard of more than 2 rows; split it"):
        read(found)
