"""JSON that is no lines, read record by record, whatever its size and format."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import TEXTS, read, texts

from gem_ds.corpus import discovery, json_documents, records, streams
from gem_ds.corpus.discovery import JSON, JSONL
from gem_ds.errors import InputError

ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def save(path: Path, content: str | bytes) -> list[discovery.Input]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return discovery.find([str(path)])


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
def test_an_array_is_its_elements(tmp_path: Path, name: str, indent: Any) -> None:
    found = save(tmp_path / name, "\ufeff" + json.dumps(ROWS, indent=indent))
    assert found[0].format == JSON
    assert texts(found) == TEXTS


def test_records_have_their_place_and_line(tmp_path: Path) -> None:
    content = json.dumps(ROWS, indent=1)
    found = save(tmp_path / "a.json", content)
    begin = [i for i, sign in enumerate(content) if sign == "{"]
    lines = [content[:at].count("\n") + 1 for at in begin]
    expected = list(zip(begin, lines, TEXTS, strict=True))
    assert content.isascii()
    assert read(found) == expected


def test_an_object_with_one_list_of_objects_is_that_list(tmp_path: Path) -> None:
    whole = {"version": {"a": [1, {"b": 2}]}, "n": [1, [{}]], "data": ROWS, "x": [], "y": "}"}
    for indent in (None, 2):
        assert texts(save(tmp_path / "a.json", json.dumps(whole, indent=indent))) == TEXTS
    several = save(tmp_path / "b.json", json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(InputError, match=r"several lists of objects, \"train\" and \"test\"; wr"):
        texts(several)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_may_be_a_record(tmp_path: Path, indent: int | None) -> None:
    """It has a field that is asked for before such a list, or no such list."""
    for row in (
        {"text": "a", "spans": [{"from": 1}]},
        {"text": "a"},
        {"x": [1], "text": "a", "y": {"z": [{}]}},
    ):
        found = save(tmp_path / "a.json", json.dumps(row, indent=indent))
        assert texts(found) == ["a"]
    several = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert texts(save(tmp_path / "b.json", several)) == TEXTS
    assert texts(save(tmp_path / "b.jsonl", several)) == TEXTS


def test_lines_are_lines_whatever_they_are_called(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    for content in (lines, "no json\n" + lines, '["a"]\n' + lines, "\n\n" + lines + "\n"):
        for name in ("a.json", "a.jsonl"):
            found = save(tmp_path / name, content)
            assert found[0].format == JSONL, content
            assert [text for text in texts(found) if "skipped" not in text] == TEXTS
    assert save(tmp_path / "a.jsonl", '{"messages": [{"text": "a"}]}')[0].format == JSONL
    assert save(tmp_path / "a.json", "")[0].format == JSONL


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_only_the_beginning_of_a_file_tells(tmp_path: Path, name: str) -> None:
    """A file of 1 TiB without a line break is not read to its end."""
    with (tmp_path / name).open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(1 << 40)
    found = discovery.find([str(tmp_path / name)])
    assert found[0].format == (JSON if name == "a.json" else JSONL)


def test_a_bad_element_costs_itself(tmp_path: Path) -> None:
    elements = {
        b'{"text": "good"}': "good",
        b'{"text": "b\xffd"}': "skipped: invalid UTF-8",
        b'{"text" "a"}': "skipped: invalid JSON",
        b'["text"]': "skipped: not a JSON object",
        b'"{[,"': "skipped: not a JSON object",
        b"7": "skipped: not a JSON object",
        b'{"n": NaN, "text": "]}\\\\\\", "}': ']}\\", ',
        b"": "skipped: invalid JSON",
        b'{"txt": []}': "skipped: missing field 'text'",
        b'{"text": "last", "x": [[], {"a": [{}]}]}': "last",
    }
    content = b"[" + b",\n ".join(elements) + b", ]\n"  # a comma at the end leaves nothing out
    assert texts(save(tmp_path / "a.json", content)) == list(elements.values())


@pytest.mark.parametrize("content", ["[1, 2]]", "[{}] more", "]", "7 [{}]", "[] , [{}]"])
def test_what_is_more_than_values_is_counted(tmp_path: Path, content: str) -> None:
    assert "skipped: invalid JSON" in [
        text.replace("not a JSON object", "invalid JSON")
        for text in texts(save(tmp_path / "a.json", content))
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('[{"text": "a"}, {"text": "b"', "a bracket does not end"),
        ('[{"text": "a"}', "a bracket does not end"),
        ('{"data": [{"text": "a"}]', "a bracket does not end"),
        ('[{"text": "a"}, {"text": "b', "a string does not end"),
    ],
)
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, content: str, what: str) -> None:
    found = save(tmp_path / "a.json", content)
    with pytest.raises(InputError, match=rf"a\.json is damaged or cut short .*{what}"):
        texts(found)


def test_over_long_elements_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_documents, "MAX_RECORD", 40)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 16)
    rows = [{"text": "a"}, {"text": "x" * 100}, {"text": "b"}, {"text": "y" * 50}]
    long = f"skipped: {records.TOO_LONG}"
    assert texts(save(tmp_path / "a.json", json.dumps(rows, indent=1))) == ["a", long, "b", long]


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text('ab"\\[]{},:\n é\ud800', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('ab"\\[{:', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["text", "a", '"']), values), max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
    wrapped=st.booleans(),
    size=st.integers(1, 40),
)
@example([{"text": "\\"}], None, True, False, 1)
def test_any_json_is_read_as_it_was_written(
    tmp_path: Path, rows: list, indent: int | None, is_ascii: bool, wrapped: bool, size: int
) -> None:
    """In chunks of any size, which may end in an escape."""
    whole = {"v": [1], "rows": rows, "w": {"rows": []}} if wrapped and rows else rows
    text = json.dumps(whole, indent=indent, ensure_ascii=is_ascii)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK_BYTES", size)
        stream = streams.Stream(str(path), None, 0, path.stat().st_size)
        found = [raw.item for raw in json_documents.records(stream, ["text"])]
    decoded = [json.loads(item.decode("utf-8", "surrogatepass")) for item in found]
    assert json.dumps(decoded) == json.dumps(rows)
