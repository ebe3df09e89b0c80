"""Corpora for fuzzing, and what independent, slow code reads in them. The fuzzing is elsewhere.

Bytes and JSON values of every kind: numbers too long, NaN, lone surrogates, NULs, spellings of
control tokens, byte-order marks, every line end, tables with columns of any type, damaged files.
"""

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

BOM = b"\xef\xbb\xbf"
FIELDS = ["text", "context", "answer"]
FIELD_SETS = [["text"], *[FIELDS] * 8, FIELDS[1:], ["other"]]
ODD = [
    *("<|bos|>", "<|eos|>", "<|pad|>", "<|summary_0|>", "<|summary_3|>", "\0", "\ufeff", "\r\n"),
    *(
        "\n\n",
        "\n \n",
        " ",
        "\t",
        "\x1c",
        "\x85",
        "\u2028",
        "\ud800",
        "\udc00",
        "日本語。",
        "😀👩‍👧",
    ),
    *("Words, many words. ", "And so on! ", "a", ".", "naïve ", "\x7f", "\x0b", "\U0010ffff"),
]
ODD_LINES = [
    *(b"", b" \t", b"\xff", b"{", b"null", b'"text"', b"[" * 3000, b'{"text": "a', b"\x1c", BOM),
    *(b'{"text": NaN}', b'{"text": "a"} {}', b'{"text": "a", "text": "twice"}', b"\0", b"\r"),
    *(b'{"text": "\\ud83d"}', b'{"text": "\xed\xa0\x80"}', b'{"text": 1' + b"0" * 5000 + b"}"),
]
BINARY = [pa.binary(), pa.string(), pa.large_binary(), pa.large_string()]
TYPES = [
    *((pa.int64(), 7), (pa.float32(), float("nan")), (pa.bool_(), True), (pa.null(), None)),
    *((pa.timestamp("ns"), 1_234_567_891), (pa.timestamp("us"), 1 << 62), (pa.duration("ns"), 7)),
    *((pa.date32(), 1 << 30), (pa.time64("ns"), 7), (pa.decimal128(5, 2), None)),
    *((pa.list_(pa.string()), ["a"]), (pa.struct([("a", pa.int8())]), {"a": 1})),
]

strings = st.one_of(
    st.lists(st.sampled_from(ODD), min_size=1, max_size=8).map("".join),
    st.lists(st.sampled_from(ODD), min_size=3, max_size=30).map("".join),
    st.tuples(st.sampled_from(ODD), st.sampled_from(ODD), st.integers(1, 150)).map(
        lambda parts: (parts[0] + parts[1]) * parts[2]
    ),
    st.text(st.characters(exclude_categories=()), max_size=12),
)
values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), strings),
        st.sampled_from([10**400, -(10**4000)]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=3,
)


def rarely(draw: st.DrawFn, often: int = 6) -> bool:
    """True once in so many times; in a small example, never."""
    return draw(st.integers(1, often)) == often


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    """A JSON line, or what is none."""
    if rarely(draw):
        return draw(st.sampled_from(ODD_LINES) | st.binary(max_size=9))
    kind = values if rarely(draw) else strings
    content = {name: draw(kind) for name in draw(st.sampled_from(FIELD_SETS))}
    text = json.dumps(content, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def line_files(draw: st.DrawFn, lines: st.SearchStrategy[bytes]) -> bytes:
    """Lines of a strategy, with line ends and byte-order marks of many kinds."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]))
    least = 0 if rarely(draw) else 1
    content = end.join(draw(st.lists(lines, min_size=least, max_size=6)))
    last = draw(st.sampled_from([b"", end, b"\n ", end + end]))
    return draw(st.sampled_from([b"", b"", BOM])) + content + last


@st.composite
def columns(draw: st.DrawFn, n: int) -> Any:
    """A column of `n` cells: text, bytes that claim to be text, or anything else."""
    if rarely(draw):
        kind, value = draw(st.sampled_from(TYPES))
        return pa.array([draw(st.sampled_from([value, None])) for _ in range(n)], kind)
    spelled = strings.map(lambda text: text.encode("utf-8", "replace"))
    raw = [draw(spelled | spelled | st.binary(max_size=9) | st.none()) for _ in range(n)]
    array = pa.array(raw, pa.binary()).cast(draw(st.sampled_from(BINARY)), safe=False)
    if rarely(draw):
        return pa.ListArray.from_arrays(range(n + 1), array)
    return array.dictionary_encode() if rarely(draw) else array


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A Parquet file, or what only begins like one."""
    n = draw(st.integers(0, 6))
    table = pa.table({name: draw(columns(n)) for name in draw(st.sampled_from(FIELD_SETS))})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=draw(st.integers(1, 4)))
    content = out.getvalue()
    return content[: draw(st.integers(0, len(content)))] if rarely(draw, 20) else content


@st.composite
def compressed(draw: st.DrawFn, content: bytes, suffix: str) -> bytes:
    """A stream, at times of two members, at times damaged."""
    half = draw(st.sampled_from([0, 0, len(content) // 2]))
    squeeze = gzip.compress if suffix == ".gz" else zstandard.compress
    stream = b"".join(squeeze(part) for part in (content[:half], content[half:]) if part or half)
    if rarely(draw, 15):
        return stream[: draw(st.integers(0, len(stream)))]
    if rarely(draw, 30):
        return stream + draw(st.binary(min_size=1, max_size=9))
    return stream


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name's end and the content of a corpus file."""
    form = draw(st.sampled_from([".jsonl", ".jsonl", ".txt", ".parquet"]))
    if form == ".parquet":
        return form, draw(tables())
    text_lines = strings.map(lambda text: text.encode("utf-8", "surrogatepass"))
    lines = json_lines() if form == ".jsonl" else text_lines | st.sampled_from(ODD_LINES)
    content = draw(line_files(lines))
    suffix = draw(st.sampled_from(["", "", "", ".gz", ".zst"]))
    return form + suffix, draw(compressed(content, suffix)) if suffix else content


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


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows, texts as bytes; a cell of another type stands for itself, whatever it be."""
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
