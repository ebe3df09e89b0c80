"""CSV and its relatives: quotes, separators, and what is refused."""

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read, texts

from gem_ds.corpus import discovery, tables
from gem_ds.corpus.records import NOT_CSV
from gem_ds.errors import InputError

BAD = f"skipped: {NOT_CSV}"


def save(path: Path, content: str | bytes) -> list[discovery.Input]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return discovery.find([str(path)])


def test_cells_may_hold_anything_in_quotes(tmp_path: Path) -> None:
    content = '\ufeffid,text\r\n1,"a ""b"", c\r\n\r\nd"\r\n\r\n2,é\r\n3,\r\n'
    assert read(save(tmp_path / "a.csv", content)) == [
        (12, 2, 'a "b", c\r\n\r\nd'),
        (35, 6, "é"),
        (41, 7, "skipped: empty text"),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_that_of_the_first_line(tmp_path: Path, name: str, separator: str) -> None:
    others = "".join({",", ";", "\t", "|"} - {separator})
    content = f"n{separator}text\n1{separator}a{others}b\n"
    assert texts(save(tmp_path / name, content)) == [f"a{others}b"]


def test_a_column_alone(tmp_path: Path) -> None:
    assert texts(save(tmp_path / "a.csv", "text\none\n\ntwo\n")) == ["one", "two"]
    assert texts(save(tmp_path / "b.csv", "\n\ntext\n")) == []
    assert texts(save(tmp_path / "c.csv", "")) == []


def test_a_bad_row_costs_itself(tmp_path: Path) -> None:
    content = b'text,n\na,1\nb\xff,2\nc\nd,4,4\n"e"e,5\nf\x00,6\n'
    found = ["a", "skipped: invalid UTF-8", BAD, BAD, BAD, "f\0"]
    assert texts(save(tmp_path / "a.csv", content)) == found


def test_what_makes_a_file_no_table_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LONGEST", 1000)
    for content, message in {
        "body,texts\na,b\n": r"\(first line\) has no column 'text' but body, texts; did you mean t",
        "just,a row\nb,c\n": "no column 'text' but just, a row",
        "text,text\na,b\n": "has two columns 'text'; rename one of them",
        "text,n\ra,1\rb,2\r": r"first line cannot be read .* lines are to end in line feeds",
        'text\na\n"b\nc\n': r"a\.csv, line 3: a quoted cell does not end",
        'text\n"' + "x" * 2000 + '"\n': r"a\.csv, line 2: a quoted cell does not end",
    }.items():
        found = save(tmp_path / "a.csv", content)
        with pytest.raises(InputError, match=message):
            texts(found)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text('ab,;"\n\r\t é', max_size=6), st.text("x,", max_size=2))),
    separator=st.sampled_from([",", ";", "\t"]),
)
def test_what_pythons_writer_writes_comes_back(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str
) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "x"), *rows])
    expected = [a if a.strip() else "skipped: empty text" for a, _ in rows]
    assert texts(discovery.find([str(path)])) == expected
