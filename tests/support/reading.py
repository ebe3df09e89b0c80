"""What tests of reading share: records as identity and text, and files of every format."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from gem_ds.corpus import record_reader
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.records import Skip

TEXTS = ["first", "zweiter é 😀", "third\nin two lines", "fourth"]


def read(
    found: Sequence[Input],
    parts: Sequence[Part] | None = None,
    field: str = "text",
    unit: str = "paragraph",
) -> list[tuple[int, int, str]]:
    """Identity, line and text (or why there is none) of each record."""
    records = []
    parts = record_reader.whole(found) if parts is None else parts
    for block in record_reader.blocks(found, parts, lambda _: [field], unit):
        for record in block.records:
            try:
                records.append((record.id, record.line, record.text(field)))
            except Skip as reason:
                records.append((record.id, record.line, f"skipped: {reason}"))
    return records


def texts(found: Sequence[Input], field: str = "text", unit: str = "paragraph") -> list[str]:
    """The texts of whole inputs, or why there are none."""
    return [text for _, _, text in read(found, None, field, unit)]


def jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()


def save_every_format(folder: Path) -> list[str]:
    """Files of `TEXTS` in every format; their names in order."""
    lines, plain, strings = jsonl(TEXTS), "\n\n".join(TEXTS).encode(), pa.array(TEXTS)
    contents = {
        "a.jsonl": lines,
        "b.json": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"),
        "c.jsonl.gz": gzip.compress(lines[:60]) + gzip.compress(b"") + gzip.compress(lines[60:]),
        "d.ndjson.zst": zstandard.compress(lines[:70]) + zstandard.compress(lines[70:].rstrip()),
        "e.txt": b"\xef\xbb\xbf\n" + plain + b"\n\n \r\n\n",
        "f.txt.gz": gzip.compress(plain),
    }
    columns = {
        "g.parquet": strings,
        "h.parquet": strings.cast(pa.large_string()),
        "i.parquet": strings.dictionary_encode(),
        "j.parquet": strings.cast(pa.string_view()),
        "k.parquet": strings.cast(pa.binary()),
    }
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, column in columns.items():
        table = pa.table({"other": range(4), "text": column})
        pq.write_table(table, folder / name, row_group_size=3)
    return [*contents, *columns]
