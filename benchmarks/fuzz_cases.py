"""What the fuzzing of data preparation tries. What must come of it: `fuzz_check`.

Bytes and JSON values of every kind: numbers too long, NaN, lone surrogates, NULs, spellings of
control tokens, byte-order marks, every line end, tables with columns of any type, damaged files.
"""

import gzip
import io
import json
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

odd = st.sampled_from(ODD)
strings = st.one_of(
    st.lists(odd, min_size=1, max_size=8).map("".join),
    st.lists(odd, min_size=3, max_size=30).map("".join),
    st.tuples(odd, odd, st.integers(1, 12)).map(lambda parts: (parts[0] + parts[1]) * parts[2]),
    st.tuples(odd, odd, st.integers(1, 150)).map(
        lambda parts: "".join(f"{parts[0]}{i}{parts[1]}" for i in range(parts[2]))
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


def parquet(table: dict[str, Any], rows_in_group: int) -> bytes:
    """A Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.table(table), out, row_group_size=rows_in_group)
    return out.getvalue()


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A Parquet file, or what only begins like one."""
    n = draw(st.integers(0, 6))
    names = draw(st.sampled_from(FIELD_SETS))
    content = parquet({name: draw(columns(n)) for name in names}, draw(st.integers(1, 4)))
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


OPTIONS = {
    "kinds": st.sampled_from(
        [
            *("plain=1", "plain=0.5,continuation=0.5", "continuation=1", "reconstruction=1"),
            *("pair=1", "plain=0.4,continuation=0.3,reconstruction=0.2,pair=0.1"),
            *("plain=0.5,pair=0.5", "plain=1e-9,continuation=1"),
        ]
    ),
    "summary_tokens": st.sampled_from([1, 1, 2, 4, 0]),
    "text_unit": st.sampled_from(["paragraph", "paragraph", "file"]),
    "cut": st.sampled_from(["uniform", "sentence", "1-4", "3-3", "2-300"]),
    "min_prefix": st.integers(1, 9),
    "min_suffix": st.integers(1, 9),
    "long_pairs": st.sampled_from(["truncate", "skip"]),
    "epochs": st.sampled_from([1, 1, 2, 3]),
    "seed": st.integers(0, 5) | st.just(1 << 70),
    "unit_megabytes": st.sampled_from([3e-5, 1e-4, 4e-4, 2e-3, 256.0]),
    "max_bad_fraction": st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.001]),
}
MIXTURES = [{"mix": "a=0.7,b=0.3"}, {"mix": "a=0.5,b=0.5", "mix_records": 7}]
ODD_OPTIONS = [
    *({"kinds": k} for k in ("plain=nan", "plain=1;b:pair=1", "plain=2,pair=-1", "", ":", ";")),
    *({"cut": cut} for cut in ("5-2", "0-9", "٣-٤", "", "-", "1-" + "9" * 30)),
    *({"unit_megabytes": size} for size in (0.0, float("nan"), float("inf"), 1e300)),
    *({"mix": mix} for mix in ("a", "b=nan", "a=1", "a=0.5,a=0.5", "a=inf", "=1", ",")),
    *({"text_field": ""}, {"mix_records": 5}, {"summary_tokens": 400}, {"row_length": 1 << 40}),
    *({"max_bad_fraction": float("nan")}, {"share": "1/0"}, {"min_prefix": 1 << 70}, {"seed": -1}),
]
TOKENIZERS = ["bos and eos", "eos", "neither"]


class Case(NamedTuple):
    """A corpus, options, which of the tokenizers, and whether there is an odd option."""

    files: list[tuple[str, bytes]]
    options: dict[str, Any]
    tokenizer: str
    is_odd: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Options that fit together, at times an odd one."""
    corpus = draw(st.lists(files(), min_size=1, max_size=3))
    options: dict[str, Any] = draw(st.fixed_dictionaries(OPTIONS))
    tokenizer = draw(st.sampled_from(TOKENIZERS))
    if options["summary_tokens"] == 0:
        options["kinds"] = "plain=1"
    if options["cut"] in ("1-4", "3-3"):
        options["min_prefix"] = min(options["min_prefix"], 3)
    least = max(options["min_prefix"], 3) + options["min_suffix"] + options["summary_tokens"] + 2
    options["row_length"] = least + draw(st.integers(0, 30) | st.sampled_from([64, 256, 2048]))
    odd = draw(st.integers(0, 19))
    if odd == 19:
        options |= draw(st.sampled_from(ODD_OPTIONS))
    elif odd > 16:
        options |= draw(st.sampled_from(MIXTURES))
    return Case(corpus, options, tokenizer, odd > 16)


PLAIN: dict[str, Any] = {
    "kinds": "plain=1",
    "row_length": 32,
    "summary_tokens": 1,
    "text_unit": "paragraph",
    "cut": "uniform",
    "min_prefix": 1,
    "min_suffix": 1,
    "epochs": 1,
    "unit_megabytes": 3e-5,
    "max_bad_fraction": 1.0,
}


def _found(*files: tuple[str, bytes], **options: Any) -> Case:
    corpus = [*files, (".jsonl", b'{"text": "Words, many words."}')]
    return Case(corpus, PLAIN | options, "eos", bool(options))


FOUND_COLUMNS = [
    pa.array([7, None]),
    pa.array([1 << 62], pa.timestamp("us")),
    pa.array([[b"\xff"]]).cast(pa.list_(pa.string()), safe=False),
]
FOUND = [  # each was a fault once
    _found((".txt", b"Words, many words. And so on!\nWords.\n ")),
    *(_found((".parquet", parquet({"text": column}, 1))) for column in FOUND_COLUMNS),
    _found((".parquet", b"")),
    _found(mix="a=nan"),
    _found(unit_megabytes=float("inf")),
]
