import gzip
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import TEXTS, jsonl, read, save_every_format

from gem_ds.corpus import discovery, mixture, record_reader, streams
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.errors import InputError
from gem_ds.shards import work_plan
from gem_ds.shards.work_plan import Plan

BOM = b"\xef\xbb\xbf"
PIECES = [
    *(b"\n", b"\n", b"\r\n", b"\n\n", b" \n", b"\t", b"\r", b"\0", BOM, b"\xff"),
    *(
        '{"text": "é"}'.encode(),
        b'{"text": "a b"}',
        b'{"text": ',
        b"x",
        b"x" * 40,
        b"\x0b",
        b"\x1c",
    ),
]
tolerant = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_plan, "MIN_UNIT", 1)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 16)


def cut(found: Sequence[Input], largest: int, unit: str = "paragraph") -> list[list[Part]]:
    return work_plan.cut(found, lambda _: ["text"], unit, largest)


def read_parts(
    found: Sequence[Input], parts: Sequence[Part], unit: str
) -> list[tuple[int, int, str]]:
    """As `reading.read`, each part by itself, with the lines that `shards.finalize` makes of
    those."""
    records, before = [], Counter[int]()
    for part in parts:
        *_, last = record_reader.blocks(found, [part], lambda _: ["text"], unit)
        lines = before[part.input]
        records += [(i, lines + line, text) for i, line, text in read(found, [part], unit=unit)]
        before[part.input] += last.n_lines
    return records


@pytest.mark.parametrize(("name", "unit"), [("a.jsonl", ""), ("a.txt", "paragraph")])
@tolerant
@given(pieces=st.lists(st.sampled_from(PIECES)), largest=st.integers(1, 60))
@example(pieces=[b"a\n\n", b" " * 9], largest=4)  # a blank line at the very end, without newline
@example(pieces=[b"a\n", b"x" * 40, b"\n", b"b"], largest=1)
@example(pieces=[BOM], largest=1)
def test_parts_together_are_the_file(
    tmp_path: Path, name: str, unit: str, pieces: list[bytes], largest: int
) -> None:
    path = tmp_path / name
    path.write_bytes(b"".join(pieces))
    found = discovery.find([str(path)])
    parts = [part for group in cut(found, largest, unit) for part in group]
    bounds = [0, *(part.end for part in parts)]
    assert [part.start for part in parts] == bounds[:-1]
    assert bounds[-1] == found[0].size
    assert all(part.n_bytes == part.end - part.start > 0 for part in parts)
    whole = read(found, unit=unit)
    assert read_parts(found, parts, unit) == whole
    counts = [work_plan.count(found[0], part, ["text"], unit) for part in parts]
    assert counts == [len(read(found, [part], unit=unit)) for part in parts]


def test_parts_are_about_as_large_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x" * 50] * 1000))
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\n\n" * 5000)
    found = discovery.find([str(tmp_path)])
    for largest in (1000, 5000, 10_000_000):
        size = min(largest, sum(item.size for item in found) // work_plan.SHARE + 1)
        for group in cut(found, largest):
            assert sum(part.n_bytes for part in group) < size + 100
    assert len(cut(found, 10_000_000)) >= work_plan.SHARE


def test_small_inputs_share_units_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.jsonl").write_bytes(b'{"text": "a"}\n' * (1 + i % 3))
    (tmp_path / "05a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 40))
    (tmp_path / "06a.txt").touch()
    found = discovery.find([str(tmp_path)])
    monkeypatch.setattr(work_plan, "MIN_UNIT", 100)
    groups = cut(found, 100)
    assert [part.input for group in groups for part in group] == [
        i for i, item in enumerate(found) if item.size
    ]
    large = [group for group in groups if sum(part.n_bytes for part in group) > 100]
    assert [[found[part.input].compression for part in group] for group in large] == [["gzip"]]
    assert 3 < len(groups) < 12
    assert cut(found, 100) == groups
    monkeypatch.setattr(work_plan, "OFFSET_BITS", 59)
    with pytest.raises(InputError, match="there are 22 inputs; join them"):
        cut(found, 100)


@tolerant
@given(
    groups=st.lists(st.integers(0, 5), max_size=12),
    largest=st.integers(1, 400),
)
def test_row_groups_together_are_the_table(tmp_path: Path, groups: list[int], largest: int) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema({"text": pa.string(), "other": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for n in groups:
            texts = [f"{n} {i}" for i in range(n)]
            writer.write_table(pa.table({"text": texts, "other": ["x" * 999] * n}, schema=schema))
    found = discovery.find([str(path)])
    parts = [part for group in cut(found, largest) for part in group]
    assert read_parts(found, parts, "") == read(found)
    assert [work_plan.count(found[0], part, ["text"], "") for part in parts] == [
        len(read(found, [part])) for part in parts
    ]
    assert sum(part.n_bytes for part in parts) <= 200 * len(groups)  # not of the other column


@pytest.mark.parametrize("largest", [1, 300, 10_000])
def test_other_tables_and_compressed_files_are_cut_where_they_can_be(
    tmp_path: Path, largest: int
) -> None:
    names = save_every_format(tmp_path / "files")
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(100)]})
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    streamed = tmp_path / "streamed"
    streamed.mkdir()
    for name in "abc":
        (streamed / f"{name}.jsonl").write_bytes(jsonl(TEXTS))
    named = [str(tmp_path / "files" / name) for name in names]
    found = discovery.find([*named, str(tmp_path / "saved"), f"dataset:{streamed}"])
    parts = [part for group in cut(found, largest) for part in group]
    assert read_parts(found, parts, "paragraph") == read(found)
    n_parts = Counter(part.input for part in parts)
    assert [p.n_bytes for p in parts if p.input == 12] == [found[-1].size // 3] * 3
    assert n_parts[len(names)] == (100 if largest == 1 else n_parts[len(names)])
    assert all(n_parts[i] == 1 for i, item in enumerate(found) if item.compression)
    assert all(
        work_plan.count(found[-2], p, ["text"], "") == p.end - p.start
        for p in parts
        if p.input == 11
    )
    with pytest.raises(InputError, match="has to be counted for --mix; download it"):
        work_plan.count(found[-1], parts[-1], ["text"], "")


def test_text_without_a_blank_line_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * ((1 << 24) - 1) + b"\n")
    found = discovery.find([str(path)])
    began = time.process_time()
    assert cut(found, 1 << 12) == [[Part(0, 0, 1 << 24, 1 << 24)]]
    assert time.process_time() - began < 10


def test_only_large_compressed_inputs_cannot_be_cut() -> None:
    found = [
        Input("a.jsonl", discovery.JSONL, None, 10**12, ""),
        Input("b.jsonl.gz", discovery.JSONL, "gzip", 63_000_000, ""),
        Input("c.jsonl.gz", discovery.JSONL, "gzip", 65_000_000, ""),
        Input("d.parquet", discovery.PARQUET, None, 10**12, ""),
    ]
    assert [item.path for item in work_plan.uncut(found, 256_000_000)] == ["c.jsonl.gz"]


def test_an_input_that_cannot_be_cut_is_named(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_bytes(jsonl(TEXTS))
    table.write_bytes(b"PAR1 and no more")
    found = discovery.find([str(lines), str(table)])
    with pytest.raises(InputError, match=r"b\.parquet is damaged or cut short"):
        cut(found, 50)
    with pytest.raises(InputError, match=r"b\.parquet is damaged or cut short"):
        work_plan.count(found[1], Part(1, 0, 1, 1), ["text"], "")
    lines.write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.jsonl is damaged or cut short"):
        cut(found, 50)
    lines.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        cut(found, 50)


def plan(folder: Path) -> Plan:
    save_every_format(folder / "corpus")
    found = discovery.find([str(folder / "corpus")])
    source = mixture.Source(3, 4, 5)
    return Plan({"seed": 1, "mix": "a=1"}, found, cut(found, 50), {"a": source}, {"python": "3"})


def test_a_plan_comes_back(tmp_path: Path) -> None:
    saved = plan(tmp_path)
    saved.mixture["a"].copies(0, 0)  # which keeps an order, that is no part of the plan
    saved.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded == saved
    assert loaded.digest == saved.digest
    assert sum(map(saved.weight, range(len(saved.units)))) > 500
    assert saved.where(0) == f"unit 0 ({tmp_path}/corpus/a.jsonl from 0)"
    assert replace(saved, asked={"seed": 2}).digest != saved.digest
    saved.check_same(tmp_path, saved.inputs, saved.asked)


def test_a_plan_that_was_touched_is_refused(tmp_path: Path) -> None:
    plan(tmp_path).save(tmp_path)
    path = tmp_path / "plan.json"
    good = path.read_text()
    edited = good.replace('"seed": 1', '"seed": 2')
    for bad in (good[:-30], "[]", "{}", '{"plan_version": 1}', edited, ""):
        path.write_text(bad)
        with pytest.raises(InputError, match=r"plan\.json is damaged or was edited; remove"):
            Plan.load(tmp_path)
    content = json.loads(good)
    path.write_text(json.dumps(content | {"plan_version": 0}))
    with pytest.raises(InputError, match=r"plan\.json is of another version"):
        Plan.load(tmp_path)


def test_what_changed_since_the_plan_is_said(tmp_path: Path) -> None:
    made = plan(tmp_path)
    first, second, *rest = made.inputs
    grown = replace(first, size=first.size + 1)
    for found, asked, message in [
        ([grown, second, *rest], {}, rf"{first.path} has changed .size was 145 and is 146"),
        ([replace(first, modified="later"), second, *rest], {}, r"changed .modified was '\d+' and"),
        ([replace(first, source="web"), second, *rest], {}, r"changed .source was '' and is 'w"),
        ([second, *rest], {}, rf"{first.path} is gone"),
        ([*made.inputs, replace(first, path="/new")], {}, "/new is new"),
        ([second, first, *rest], {}, "the order of the inputs has changed"),
        (made.inputs, {"seed": 7}, "--seed was 1 and is 7"),
        (made.inputs, {"row_length": 7}, "--row-length was None and is 7"),
        ([], {}, r"is gone; .* and 6 more; give another --output"),
    ]:
        with pytest.raises(InputError, match=message):
            made.check_same(tmp_path, found, made.asked | asked)
