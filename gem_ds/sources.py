"""Reading a corpus: files in, blocks of raw records out.

Each record has its ordinal in the corpus and its line. Decoding one is left to `records`, so that
it can run in other processes and one bad byte costs its record, never its file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds.errors import InputError
from gem_ds.records import MAX_RECORD, Record

BLOCK_BYTES = 1 << 18  # raw text in a block, unless one record is longer
JSONL, PARQUET, TEXT = "jsonl", "parquet", "text"
FORMATS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".parquet": PARQUET,
    ".txt": TEXT,
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BOM = b"\xef\xbb\xbf"
UNITS = ("paragraph", "file")


@dataclass(frozen=True)
class Block:
    """Raw records that follow each other in one file.

    items holds a record each: bytes (a JSON line or a text), a dict from column to bytes or None
    (Parquet), or None (longer than `MAX_RECORD`). `lines` (1-based; in Parquet, rows) says where
    each begins; the first has the ordinal `first` in the corpus. `position` is how many bytes of
    the corpus, as it lies on disk, had been read by then.
    """

    file: str
    is_json: bool
    first: int
    lines: Sequence[int]
    items: Sequence[Any]
    position: int

    def __str__(self) -> str:
        return f"{self.file}:{self.lines[0]}"

    def records(self) -> Iterator[Record]:
        """The block's records, in order."""
        for i, (line, item) in enumerate(zip(self.lines, self.items, strict=True)):
            yield Record(self.file, line, self.first + i, self.is_json, item)


def find(inputs: Sequence[str]) -> list[Path]:
    """The corpus files among `inputs`; a folder stands for those it holds, in order of names.

    A bare ``.json`` in a folder is left out: there it mostly describes the data.
    Raises `InputError` for a path that is missing, and for a file whose format is not known.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _format(p) and p.suffix != ".json")
            if not inside:
                raise InputError(f"the folder {path} holds no corpus file ({_known()})")
            files += inside
        elif not path.is_file():
            raise InputError(f"there is no corpus file {path}; correct --input")
        elif not _format(path):
            raise InputError(f"{path} is of no known format; rename it to one of {_known()}")
        else:
            files.append(path)
    return files


def _known() -> str:
    return f"{', '.join(FORMATS)}; all but .parquet also with {' or '.join(COMPRESSIONS)}"


def is_compressed(path: Path) -> bool:
    """Whether a file is to be decompressed while reading."""
    return path.suffix in COMPRESSIONS


def _format(path: Path) -> str | None:
    form = FORMATS.get(path.with_suffix("").suffix if is_compressed(path) else path.suffix)
    return None if form == PARQUET and is_compressed(path) else form


def blocks(
    files: Sequence[Path], columns: Sequence[str], unit: str = "paragraph"
) -> Iterator[Block]:
    """All records of all files, in order, in blocks of about `BLOCK_BYTES`.

    `columns` are the fields that will be asked for; a Parquet file without one of them raises
    `InputError`, as does a damaged file. A record of plain text is a paragraph (what lies between
    blank lines) or a file, as `unit` says. An empty file has no records.
    """
    first = before = 0
    for path in files:
        form = str(_format(path))
        raw = _parquet_records(path, columns) if form == PARQUET else READERS[form, unit](path)
        lines: list[int] = []
        items: list[Any] = []
        size = position = 0
        for line, item, position in _named(path, raw):
            lines.append(line)
            items.append(item)
            parts = item.values() if isinstance(item, dict) else [item]
            size += sum(len(part) for part in parts if part)
            if size >= BLOCK_BYTES or len(items) >= 1 << 14:
                yield Block(str(path), form == JSONL, first, lines, items, before + position)
                first += len(items)
                lines, items, size = [], [], 0
        if items:
            yield Block(str(path), form == JSONL, first, lines, items, before + position)
            first += len(items)
        before += path.stat().st_size


Raw = Iterator[tuple[int, Any, int]]  # line, record, position on disk


def _named(path: Path, raw: Raw) -> Raw:
    """The same, with faults of the file itself reported as such."""
    line = 0
    try:
        for line, item, position in raw:
            yield line, item, position
    except (pa.ArrowException, OSError) as error:
        where = f"after line {line}" if line else "at its beginning"
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path} is damaged or cut short {where} ({reason}); get it again or leave it out"
        ) from error


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The decompressed bytes of a file; Arrow's reader notices when the stream is cut short."""
    with pa.OSFile(str(path)) as file:
        compression = COMPRESSIONS.get(path.suffix)
        stream = pa.CompressedInputStream(file, compression) if compression else file
        while path.stat().st_size and (chunk := stream.read(BLOCK_BYTES)):
            yield chunk, file.tell()


def _lines(path: Path) -> Raw:
    """Lines without their newline, a byte-order mark removed; None for one over `MAX_RECORD`."""
    line = 1
    rest: list[bytes] = []  # the beginning of a line that goes on in the next chunk
    size = position = 0

    def whole() -> bytes | None:
        text = b"".join(rest) if size <= MAX_RECORD else None
        return text.removeprefix(BOM) if text and line == 1 else text

    for chunk, position in _chunks(path):
        for i, part in enumerate(chunk.split(b"\n")):
            if i:
                yield line, whole(), position
                line, rest, size = line + 1, [], 0
            size += len(part)
            if size <= MAX_RECORD:
                rest.append(part)
    if size:
        yield line, whole(), position


def _paragraphs(path: Path) -> Raw:
    """What lies between blank lines, newlines inside kept."""
    paragraph: list[bytes] = []
    start = size = position = 0

    def whole() -> bytes | None:
        return b"\n".join(paragraph).removesuffix(b"\r") if size <= MAX_RECORD else None

    for line, text, position in _lines(path):
        if text is not None and (not text or text.isspace()):
            if size:
                yield start, whole(), position
            paragraph, size = [], 0
            continue
        start = start if size else line
        size += MAX_RECORD + 1 if text is None else len(text) + 1
        if size <= MAX_RECORD:
            paragraph.append(text or b"")
    if size:
        yield start, whole(), position


def _whole(path: Path) -> Raw:
    """All of the file as one record."""
    parts: list[bytes] = []
    size = position = 0
    for chunk, at in _chunks(path):
        size, position = size + len(chunk), at
        if size <= MAX_RECORD:
            parts.append(chunk)
    if size:
        yield 1, b"".join(parts).removeprefix(BOM) if size <= MAX_RECORD else None, position


def _parquet_records(path: Path, columns: Sequence[str]) -> Raw:
    """Rows as dicts from column to bytes: Arrow does not check that a string is valid UTF-8."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    schema = file.schema_arrow
    for column in columns:
        if column not in schema.names:
            raise InputError(
                f"{path} has no column {column!r} but {', '.join(schema.names)}; "
                "name the right one (--text-field, --context-field, --answer-field)"
            )
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"column {column!r} of {path} holds {kind}, not strings")
    row = 0
    size = path.stat().st_size
    for batch in file.iter_batches(batch_size=256, columns=list(columns), use_threads=False):
        values = []
        for column in columns:
            array = batch.column(batch.schema.get_field_index(column))
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            values.append(array.cast(pa.large_binary()).to_pylist())
        for cells in zip(*values, strict=True):
            row += 1
            position = size * row // file.metadata.num_rows
            yield row, dict(zip(columns, cells, strict=True)), position


READERS = {
    (JSONL, "paragraph"): _lines,
    (JSONL, "file"): _lines,
    (TEXT, "paragraph"): _paragraphs,
    (TEXT, "file"): _whole,
}
