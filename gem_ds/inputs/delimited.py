"""Rows of .csv and .tsv files, which begin with a line of the columns' names.

Cells may be quoted, and then hold line breaks and separators. What separates them is the first of
`SEPARATORS` with which the first line has every column that is asked for.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from gem_ds.errors import InputError
from gem_ds.inputs.records import MAX_RECORD, NOT_CSV, Skip, check_columns
from gem_ds.inputs.streams import Raw, Stream

SEPARATORS = (",", ";", "\t", "|")
LONGEST = MAX_RECORD >> 2  # characters of a cell, of four bytes each while it is read


def rows(stream: Stream, columns: Sequence[str]) -> Iterator[Raw]:
    """Each row as its cells by column; blank lines are none.

    With no `columns`, all are given. A row that has more or fewer cells than the first line, or
    wrong quotes, is a `Skip`. Raises `InputError` for a file without one of the columns, or whose
    quotes do not end.
    """
    begin: Raw | None = None

    def texts() -> Iterator[str]:
        nonlocal begin
        for raw in stream.lines():
            begin = begin or raw
            if raw.item is None:
                raise InputError(f"{stream.path}, line {raw.line} is too long; split the file")
            # Bytes that are no UTF-8 come back in `_cells`, to cost their row alone.
            yield raw.item.decode("utf-8", "surrogateescape") + "\n"

    lines = texts()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    begin = None
    csv.field_size_limit(LONGEST)
    separator, names = _head(stream.path, first, columns)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        cells: list[str] | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            assert begin
            if "unexpected end" in str(error) or "limit" in str(error):
                raise InputError(
                    f"{stream.path}, line {begin.line}: a quoted cell does not end; correct its "
                    'quotes (inside a cell, " is written twice)'
                ) from error
        assert begin
        at, begin = begin, None
        if cells == []:
            continue
        if cells is None or len(cells) != len(names):
            yield at._replace(item=Skip(NOT_CSV))
            continue
        whole = dict(zip(names, map(_cell, cells), strict=True))
        yield at._replace(item={name: whole[name] for name in columns or names})


def _head(path: str, first: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """What separates cells, and the columns' names. Raises `InputError`."""
    is_tabbed = ".tsv" in (suffix.lower() for suffix in PurePosixPath(path).suffixes)
    likely = sorted(SEPARATORS, key=lambda sign: (is_tabbed and sign != "\t", -first.count(sign)))
    try:
        names = {sign: next(csv.reader([first], delimiter=sign)) for sign in likely}
    except csv.Error as error:  # a carriage return, where old lines end; a name without an end
        raise InputError(
            f"{path}: its first line cannot be read ({error}); lines are to end in line feeds"
        ) from error
    found = next((sign for sign in likely if set(columns) <= set(names[sign])), likely[0])
    check_columns(f"{path} (first line)", columns or names[found], names[found])
    return found, names[found]


def _cell(text: str) -> Any:
    """A cell's text, or its bytes where those are no UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")
    return text
