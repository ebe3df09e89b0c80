import multiprocessing
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from helpers import write_file

from gem_ds import layout
from gem_ds.errors import InputError
from gem_ds.shards import dataset
from gem_ds.shards.dataset import Row, Shards
from gem_ds.shards.manifest import FileEntry, Manifest

ROW_LENGTH, VOCAB, SUMMARY = 64, 300, 299


def make_rows(n: int) -> list[Row]:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(n):
        length = int(generator.integers(8, ROW_LENGTH + 1))
        ids = generator.integers(0, VOCAB - 1, length).astype(np.int32)
        bounds = np.array([[0, 3, 4, 5], layout.plain(5, length)], dtype=np.int32)
        kinds = np.array([1, 0], dtype=np.int8)
        rows.append(Row(ids, bounds, np.array([2 * i, 2 * i + 1]), kinds))
    return rows


def manifest(files: list[FileEntry], **changes: object) -> Manifest:
    sums = {key: sum(file["n_" + key] for file in files) for key in ("rows", "documents", "tokens")}
    fields = {
        "row_length": ROW_LENGTH,
        "n_rows": sums["rows"],
        "n_documents": sums["documents"],
        "n_tokens": sums["tokens"],
        "n_targets": sum(file["n_targets"] for file in files),
        "summary_tokens": [SUMMARY],
        "bos_token_id": None,
        "eos_token_id": 1,
        "vocab_size": VOCAB,
        "base_tokenizer_sha256": "b",
        "tokenizer_sha256": "t",
        "seed": 0,
        "kinds": {"": {"plain": 1.0}},
        "epochs": 1,
        "counts": {},
        "files": files,
        "config": {},
        "versions": {},
    }
    return Manifest(**fields | changes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files, 40 and 7 rows, in groups of 16."""
    monkeypatch.setattr(dataset, "GROUP_TOKENS", 16 * ROW_LENGTH)
    rows = make_rows(47)
    entries = [
        write_file(tmp_path / "shard-00000.parquet", rows[:40], ROW_LENGTH),
        write_file(tmp_path / "shard-00001.parquet", rows[40:], ROW_LENGTH),
    ]
    manifest(entries).save(tmp_path)
    return tmp_path


def same(a: Row, b: Row) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def read_all(reader: Shards) -> list[Row]:
    return [reader.read(i) for i in range(len(reader))]


def test_rows_come_back_in_any_order(folder: Path) -> None:
    reader = Shards(folder)
    rows = make_rows(47)
    assert len(reader) == 47
    for i in np.random.default_rng(1).permutation(47):
        assert same(reader.read(int(i)), rows[i])
    reader.read(0).input_ids[:] = 0  # what is handed out is the caller's own
    assert same(reader.read(0), rows[0])
    with pytest.raises(IndexError):
        reader.read(47)


def test_threads_forks_and_pickles_read_the_same(folder: Path) -> None:
    reader = Shards(folder)
    rows = make_rows(47)
    with ThreadPoolExecutor(4) as pool:
        order = np.random.default_rng(2).integers(0, 47, 200).tolist()
        assert all(map(same, pool.map(reader.read, order), [rows[i] for i in order]))
    assert same(pickle.loads(pickle.dumps(reader)).read(46), rows[46])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(map(same, pool.map(reader.read, range(47)), rows))


def test_stock_readers_open_the_files(folder: Path) -> None:
    rows = make_rows(47)
    frame = pd.read_parquet(folder / "shard-00001.parquet")
    assert [list(ids) for ids in frame["input_ids"]] == [r.input_ids.tolist() for r in rows[40:]]
    stream = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True
    )
    assert [row["records"] for row in stream] == [r.records.tolist() for r in rows]


def test_the_same_rows_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    entry = write_file(tmp_path / "again.parquet", make_rows(40), ROW_LENGTH)
    assert entry["sha256"] == Manifest.load(folder).files[0]["sha256"]


def test_a_flipped_byte_is_never_read_silently(folder: Path) -> None:
    path = folder / "shard-00001.parquet"
    good, rows = path.read_bytes(), make_rows(47)[40:]
    messages = []
    places = range(0, len(good), 7)
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        reader = Shards(folder)
        try:
            assert all(map(same, [reader.read(i) for i in range(40, 47)], rows))
        except InputError as error:
            messages.append(str(error))
        assert same(reader.read(0), make_rows(1)[0])  # the other file is untouched
    assert all("shard-00001.parquet" in m and "shard.py again" in m for m in messages)
    assert len(messages) > 0.95 * len(places)  # the rest no reader looks at: the magic number


def test_missing_and_cut_files_are_found_at_opening(folder: Path) -> None:
    path = folder / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard-00001\.parquet has \d+ bytes"):
        Shards(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.parquet is missing"):
        Shards(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 200}, "row 0 has ids outside the vocabulary"),
        ({"row_length": 63}, r"row \d+ has more than 63 tokens"),
        ({"summary_tokens": [298, 299]}, "row 0: document 0 does not have 2 summary tokens"),
    ],
)
def test_rows_are_held_against_the_manifest(folder: Path, change: dict, message: str) -> None:
    manifest(Manifest.load(folder).files, **change).save(folder)
    with pytest.raises(InputError, match=rf"shard-00000\.parquet, {message}"):
        read_all(Shards(folder))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([[[0, 12, 12, 12]], [[2, 10, 10, 10]]], "row 0: the documents end at 12 .* 10 tokens"),
        ([[[0, 10, 10, 10]], []], "row 1 has no document"),
        ([[[0, 10, 10, 10]], [[0, 9, 9, 9]]], "row 1: the documents end at 9 .* 10 tokens"),
    ],
)
def test_rows_of_a_group_are_held_apart(tmp_path: Path, bounds: list, message: str) -> None:
    def each(n: int) -> tuple:
        return np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.int8)

    ids = np.arange(10, dtype=np.int32)
    rows = [Row(ids, np.array(b, dtype=np.int32).reshape(-1, 4), *each(len(b))) for b in bounds]
    manifest([write_file(tmp_path / "shard-00000.parquet", rows, ROW_LENGTH)]).save(tmp_path)
    with pytest.raises(InputError, match=message):
        read_all(Shards(tmp_path))


def test_kinds_are_those_that_there_are(tmp_path: Path) -> None:
    rows = make_rows(2)
    rows[1].kinds[0] = 4
    manifest([write_file(tmp_path / "shard-00000.parquet", rows, ROW_LENGTH)]).save(tmp_path)
    with pytest.raises(InputError, match="row 1 has kinds that there are not"):
        read_all(Shards(tmp_path))


def test_manifest_says_what_is_wrong_with_it(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_text()
    assert Manifest.load(folder) == Manifest.load(str(folder))
    for bad in (good[:-20], "[]", "{}", good.replace('"seed": 0', '"seed": 1')):
        path.write_text(bad)
        with pytest.raises(InputError, match=r"manifest\.json is damaged"):
            Manifest.load(folder)
    path.write_text(good.replace('"schema_version": 3', '"schema_version": 4'))
    with pytest.raises(InputError, match=r"schema version 4, this program reads 3"):
        Manifest.load(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no manifest\.json in .*did not finish"):
        Shards(folder)


def test_digest_is_of_the_content(folder: Path) -> None:
    files = Manifest.load(folder).files
    assert Manifest.load(folder).digest == manifest(files).digest
    assert manifest(files, seed=1).digest != manifest(files).digest


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_file(tmp_path / "shard-00000.parquet", make_rows(40), ROW_LENGTH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_row_groups_hold_many_short_rows_or_one_long_one() -> None:
    assert [dataset.group_rows(n) for n in (512, 8192, 1 << 17, 1 << 20)] == [192, 12, 1, 1]
