"""Files of texts that somebody gives: one text a line, or a field of JSON lines or of a table.

Every text counts, in its order, the empty ones too: there is an answer for each, so what cannot be
read is refused, not left out. A corpus to train on is the business of `sources`.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from gem_ds import inputs, sources, stores
from gem_ds.errors import InputError
from gem_ds.inputs import JSONL, PARQUET, TEXT, Input
from gem_ds.records import NO_FIELD, NOT_TEXT, NOT_UTF8, Record, Skip, encodable

FORMATS = (TEXT, JSONL, PARQUET)
STDIN = "-"


class Text(NamedTuple):
    id: str  # of the id field, or the text's number from 0
    text: str


@dataclass(frozen=True)
class TextFile:
    """A file of texts, or standard input, in which there is a text a line.

    `field` is where JSON lines and tables have the text, `id_field` where they have its id.
    """

    path: str
    format: str
    field: str
    id_field: str | None = None
    given: bytes | None = None  # standard input, all of it

    @classmethod
    def find(
        cls, path: str, form: str | None = None, field: str = "text", id_field: str | None = None
    ) -> "TextFile":
        """The file at a path or address, its format by its ending or as said.

        Raises `InputError` if there is none, or of a format unknown.
        """
        if path == STDIN:
            if form == PARQUET:
                raise InputError("a table cannot be read from standard input; name a file")
            return cls("standard input", form or TEXT, field, id_field, sys.stdin.buffer.read())
        if form is None:
            found = inputs.find([path])
            if len(found) != 1 or found[0].format not in FORMATS:
                raise InputError(f"{path} is not one file of texts; give one file")
            form = found[0].format
        stores.state(path)
        return cls(path, form, field, id_field)

    def identity(self) -> dict[str, Any]:
        """What changes when the texts may have."""
        if self.given is not None:
            state: tuple[Any, ...] = (hashlib.sha256(self.given).hexdigest(),)
        else:
            state = stores.state(self.path)
        return {
            "path": self.path,
            "state": list(state),
            "format": self.format,
            "field": self.field,
            "id_field": self.id_field,
        }

    def texts(self) -> Iterator[Text]:
        """All of them. Raises `InputError` naming a line or row that has none."""
        records = self._given_records() if self.given is not None else self._records()
        n = -1
        for n, record in enumerate(records):
            try:
                text = _string(record.value(self.field))
                name = str(n) if self.id_field is None else _name(record.value(self.id_field))
            except Skip as skip:
                row = "row" if self.format == PARQUET else "line"
                asked = self.field if self.id_field is None else f"{self.field}, {self.id_field}"
                what = f"{skip} ({asked})" if str(skip) in (NO_FIELD, NOT_TEXT) else str(skip)
                raise InputError(
                    f"{self.path}, {row} {record.line}: {what}; mend or remove the {row}"
                ) from None
            yield Text(name, text)
        if n < 0:
            raise InputError(f"{self.path} has no lines; give one text a line")

    def _records(self) -> Iterator[Record]:
        compression = inputs.COMPRESSIONS.get(PurePosixPath(self.path).suffix)
        item = Input(self.path, self.format, compression, *stores.state(self.path))
        columns = [self.field, *([self.id_field] if self.id_field else [])]
        if self.format != TEXT:
            for block in sources.blocks([item], sources.whole([item]), lambda _: columns):
                yield from block.records
            return
        reader = sources.Reader(item, sources.whole([item])[0])
        with stores.faults_named(self.path, reader.where):
            for raw in reader.lines():
                reader.line = raw.line
                yield _line(raw.line, raw.item, is_json=False)

    def _given_records(self) -> Iterator[Record]:
        assert self.given is not None
        lines = self.given.split(b"\n")
        for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
            if self.format == TEXT or line.strip():
                yield _line(number, line, is_json=self.format == JSONL)


def _line(number: int, line: bytes | None, is_json: bool) -> Record:
    ended = line if is_json or line is None else line.rstrip(b"\r")
    return Record(0, 0, number, number - 1, is_json, ended)


def _string(value: Any) -> str:
    """As `Record.text`, but empty texts are texts."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Skip(NOT_UTF8) from None
    if not isinstance(value, str):
        raise Skip(NOT_TEXT)
    return encodable(value)


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int) else _string(value)
