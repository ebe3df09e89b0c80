"""Files of texts that somebody gives: one text a line, or a field of JSON or of a table; and the
flags of the commands that read them.

Every text counts, in its order, the empty ones too: there is an answer for each, so what cannot be
read is refused, not left out. Standard input is a file like any other; it may be compressed.
`record_reader` reads a corpus to train on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gem_ds.corpus import discovery, filesystem, record_reader, streams
from gem_ds.corpus.discovery import ARROW, CSV, JSONL, PARQUET, TEXT, Input
from gem_ds.corpus.records import NOT_TEXT, NOT_UTF8, Record, Skip, encodable
from gem_ds.errors import InputError
from gem_ds.flags import Parser, whole

FORMATS = (TEXT, JSONL, CSV, PARQUET, ARROW)
STDIN = "-"


class Text(NamedTuple):
    id: str  # of the id field, or the text's number from 0
    text: str


@dataclass(frozen=True)
class TextFile:
    """A file of texts, or standard input.

    `field` is where JSON and tables have the text, `id_field` where they have its id.
    """

    item: Input
    field: str
    id_field: str | None = None

    @classmethod
    def find(
        cls, path: str, form: str | None = None, field: str = "text", id_field: str | None = None
    ) -> "TextFile":
        """The file at a path or address, its format by its ending or as said.

        Standard input is text unless said otherwise. Raises `InputError` if there is no such file,
        or its format is unknown.
        """
        if path == STDIN:
            return cls(_standard_input(form or TEXT), field, id_field)
        if form is not None:
            return cls(discovery.as_input(path, form), field, id_field)
        found = discovery.find([path])
        if len(found) != 1 or found[0].format in (discovery.SAVED, discovery.STREAMED):
            raise InputError(f"{path} is not one file of texts; give one file")
        return cls(found[0], field, id_field)

    @property
    def path(self) -> str:
        return self.item.path

    @property
    def format(self) -> str:
        return self.item.format

    @property
    def is_standard_input(self) -> bool:
        return self.path == filesystem.STDIN

    def identity(self) -> dict[str, Any]:
        """What changes when the texts may have."""
        return {
            "path": self.path,
            "state": list(filesystem.state(self.path)),
            "format": self.format,
            "field": self.field,
            "id_field": self.id_field,
        }

    def texts(self) -> Iterator[Text]:
        """All of them. Raises `InputError` naming a line or row that has none."""
        n = -1
        for n, record in enumerate(self._records()):
            try:
                text = _string(record.value(self.field), self.field)
                name = str(n)
                if self.id_field is not None:
                    value = record.value(self.id_field)
                    name = str(value) if isinstance(value, int) else _string(value, self.id_field)
            except Skip as skip:
                row = "row" if self.format in (PARQUET, ARROW) else "line"
                raise InputError(
                    f"{self.path}, {row} {record.line}: {skip.told}; correct or remove the {row}"
                ) from None
            yield Text(name, text)
        if n < 0:
            raise InputError(f"{self.path} has no lines; give one text a line")

    def _records(self) -> Iterator[Record]:
        columns = [self.field, *([self.id_field] if self.id_field else [])]
        parts = record_reader.whole([self.item])
        if self.format != TEXT:
            for block in record_reader.blocks([self.item], parts, lambda _: columns):
                yield from block.records
            return
        reader = record_reader.Reader(self.item, parts[0])
        with filesystem.faults_named(self.path, reader.where):
            for raw in reader.lines():
                reader.line = raw.line
                ended = None if raw.item is None else raw.item.rstrip(b"\r")
                yield Record(0, 0, raw.line, raw.line - 1, False, ended)


def _standard_input(form: str) -> Input:
    """Standard input, of a format; whether it is compressed, its first bytes tell."""
    with filesystem.opened(filesystem.STDIN) as file:
        compressed = streams.of_head(file.read(8))
    return discovery.as_input(filesystem.STDIN, form, compressed)


def _string(value: Any, field: str) -> str:
    """As `Record.text`, but empty texts are texts."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Skip(NOT_UTF8) from None
    if not isinstance(value, str):
        raise Skip(f"{NOT_TEXT} ({field})")
    return encodable(value)


def parser(description: str | None) -> Parser:
    found = Parser(description)
    add = found.add_argument
    add("--model", required=True, metavar="FOLDER", help="what launch/export.py wrote")
    add("--input", default="-", metavar="FILE", help="default: standard input")
    add(
        "--format",
        choices=["text", "jsonl", "csv", "parquet", "arrow"],
        help="of the input: a text a line, or the field of a record; by its ending",
    )
    add("--field", default="text", metavar="NAME", help="default: %(default)s")
    add("--id-field", metavar="NAME", help="default: the text's number, from 0")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="what the model computes in; a GPU the weights' own, a CPU float32",
    )
    add("--verify", action="store_true", help="hash the whole model, not at its first load alone")
    add("--batch-tokens", type=whole(1), default=8192, metavar="N", help="tokens at once")
    return found
