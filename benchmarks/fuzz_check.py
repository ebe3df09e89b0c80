"""What must come of a case that finished, by independent, slow code. The cases: `fuzz_cases`."""

import contextlib
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fuzz_cases import BINARY, BOM, FIELDS, Case

from gem_ds.corpus.records import place_of, record_id
from gem_ds.files import sha256
from gem_ds.shards.dataset import Shards
from gem_ds.shards.finalize import QUARANTINE

Spelled = Mapping[int, bytes]  # what each token that is no control spells
TRIED = 2_000  # dead ends of an order of pieces
UNSETTLED: Counter[str] = Counter()


class Found(NamedTuple):
    """A record: its line (of a table, its row; both 1-based), and what it holds."""

    line: int
    content: Any

    def text(self, field: str) -> str | None:
        """The text of a field; None where there is none that could be trained on."""
        value = self.content
        if isinstance(value, dict):
            value = value.get(field)
        if isinstance(value, bytes):
            value = value.decode(errors="replace") if _is_utf8(value) else None
        if not isinstance(value, str) or not value.strip():
            return None
        return value if _is_utf8(value.encode("utf-8", "surrogatepass")) else None


def _is_utf8(raw: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        raw.decode()
        return True
    return False


def read(path: Path, by_paragraph: bool) -> dict[int, Found]:
    """The records of a file by their offsets."""
    if path.suffix == ".parquet":
        rows = _rows(path)
        return {i: Found(i + 1, row) for i, row in enumerate(rows)}
    content = _decompressed(path)
    is_json = ".jsonl" in path.name
    if not is_json and not by_paragraph:
        return {0: Found(1, content.removeprefix(BOM))} if content else {}
    found: dict[int, Found] = {}
    offset, begun = 0, None
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = line if offset else line.removeprefix(BOM)
        if not text.strip():
            begun = None
        elif is_json:
            found[offset] = Found(number, _json(text))
        elif begun is None:
            begun, found[offset] = offset, Found(number, text)
        else:
            found[begun] = Found(found[begun].line, found[begun].content + b"\n" + text)
        offset += len(line) + 1
    if not is_json:  # the carriage return before a blank line, or at the end, is none of the text
        return {at: Found(line, text.removesuffix(b"\r")) for at, (line, text) in found.items()}
    return found


def _json(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line.decode())
        return value if isinstance(value, dict) else {}
    return {}


def looks_wide(path: Path) -> bool:
    """Whether a text file begins as UTF-16 or UTF-32 does, by its mark or by a NUL in each pair."""
    head = b"" if path.suffix == ".parquet" else _decompressed(path)[:64]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:4] == b"\0\0\xfe\xff":
        return True
    return len(head) >= 8 and {0} in (set(head[::2]), set(head[1::2])) and set(head) != {0}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows, texts as bytes; a cell of another type is left as it is."""
    cells = {}
    table = pq.read_table(path)
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array(
                [c.dictionary_decode() for c in column.chunks], column.type.value_type
            )
        is_text = column.type in BINARY
        cells[name] = column.cast(pa.large_binary()).to_pylist() if is_text else [0] * len(table)
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def _decompressed(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    if path.suffix != ".zst":
        return raw
    content = b""
    while raw:  # a frame
        stream = zstandard.ZstdDecompressor().decompressobj()
        content += stream.decompress(raw)
        if not stream.eof:
            raise EOFError(f"{path} is cut short")
        raw = stream.unused_data
    return content


def check(case: Case, paths: list[Path], folder: Path, spelled: Spelled) -> None:
    """The finished folder against the corpus."""
    options, epochs = case.options, case.options["epochs"]
    shards = Shards(folder)
    manifest = shards.manifest
    assert all(sha256(folder / f["name"]) == f["sha256"] for f in manifest.files)
    counts = manifest.counts
    skipped = counts["skipped"]
    assert counts["documents_in"] == counts["records_written"] + sum(skipped.values())
    corpus = {
        record_id(i, offset): found
        for i, path in enumerate(paths)
        for offset, found in read(path, options["text_unit"] == "paragraph").items()
    }
    kinds = set(manifest.kinds[next(iter(manifest.kinds))])
    written = _written(case, shards, spelled)
    assert {record for record, _ in written} <= set(corpus)
    assert not list(folder.rglob("*.tmp"))
    assert {path.name for path in folder.glob("*.parquet")} == {f["name"] for f in manifest.files}
    if "mix_records" in options:  # records are drawn several times
        return
    assert counts["records_written"] == len(written)
    if "mix" not in options:
        assert counts["documents_in"] == len(corpus) * epochs
        missing = {r for r in corpus if any((r, epoch) not in written for epoch in range(epochs))}
        where = {(str(paths[place_of(r)[0]]), corpus[r].line) for r in missing}
        listed = [json.loads(line) for line in _lines(folder / QUARANTINE)]
        assert {(entry["file"], entry["line"]) for entry in listed} == where
        if "pair" not in kinds and case.tokenizer != "neither" and "text_field" not in options:
            assert not any(corpus[r].text("text") for r in missing)
    for (record, _), documents in written.items():
        text, context, answer = (corpus[record].text(field) or "" for field in FIELDS)
        if kinds <= {"plain", "continuation"}:
            assert _spell([d.prefix + d.suffix for d in documents], text.encode())
            assert sum(d.ends for d in documents) == (case.tokenizer != "neither")
        elif kinds == {"reconstruction"}:
            assert _spell([d.prefix for d in documents], text.encode())
            assert all(d.prefix == d.suffix for d in documents)
        elif kinds == {"pair"}:
            (document,) = documents
            assert document.prefix
            assert context.encode().endswith(document.prefix)
            assert document.suffix == answer.encode() != b""


class Written(NamedTuple):
    """What a document spells before and after its summary tokens; whether it ends with eos."""

    prefix: bytes
    suffix: bytes
    ends: bool


def _written(case: Case, shards: Shards, spelled: Spelled) -> dict[tuple[int, int], list[Written]]:
    """All documents, by record and epoch; control tokens stand where they should."""
    manifest = shards.manifest
    assert (manifest.bos_token_id is not None) == (case.tokenizer == "bos and eos")
    assert (manifest.eos_token_id is not None) == (case.tokenizer != "neither")
    epochs = np.repeat([f["epoch"] for f in manifest.files], [f["n_rows"] for f in manifest.files])
    written = defaultdict(list)
    for number, epoch in enumerate(epochs.tolist()):
        row = shards.read(number)
        for record, (start, summary, suffix, end) in zip(
            row.records.tolist(), row.bounds.tolist(), strict=True
        ):
            ids = row.input_ids[start:end].tolist()
            begins = ids[0] == manifest.bos_token_id
            ends = ids[-1] == manifest.eos_token_id
            assert begins or manifest.bos_token_id is None
            assert ids[summary - start : suffix - start] in ([], manifest.summary_tokens)
            texts = (
                ids[begins : min(summary - start, len(ids) - ends)],
                ids[suffix - start : len(ids) - ends],
            )
            prefix, rest = (b"".join(spelled[i] for i in part) for part in texts)
            written[record, epoch].append(Written(prefix, rest, ends))
    return written


def _spell(pieces: list[bytes], text: bytes) -> bool:
    """Whether the pieces, none of them empty, join up to the text in some order.

    A text that repeats itself in hundreds of pieces may have more orders than can be tried: then it
    is counted in `UNSETTLED`, and whether the pieces have the text's bytes is all that is asked.
    """
    hopeless: set[frozenset[tuple[bytes, int]]] = set()  # what was left over where no piece fits

    def fits(left: Counter[bytes], at: int) -> bool:
        if not left:
            return at == len(text)
        key = frozenset(left.items())
        if key in hopeless:
            return False
        for piece in sorted(left, key=len, reverse=True):
            if (
                piece
                and text.startswith(piece, at)
                and fits(left - Counter([piece]), at + len(piece))
            ):
                return True
        hopeless.add(key)
        if len(hopeless) > TRIED:
            raise TimeoutError
        return False

    try:
        return fits(Counter(pieces), 0)
    except TimeoutError:
        UNSETTLED["texts"] += 1
        return Counter(b"".join(pieces)) == Counter(text)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
