"""Arbitrary corpora and options through data preparation.

    python benchmarks/fuzz_prepare.py --cases 20000

Either an `InputError` of one line comes of a case, or a finished folder that holds what independent
code reads in the corpus: every record counted, its text spelled by its documents byte for byte, and
control tokens only where the layout has them. Units are done in this process, by the function that
workers call. Hypothesis makes a failing case small and prints it; the exit status is 1 then.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st
from odd_corpora import files, read
from tokenizers import Tokenizer

from gem_ds import bpe, prepare, sharding, tokenization
from gem_ds.errors import InputError
from gem_ds.finish import QUARANTINE
from gem_ds.manifest import MANIFEST
from gem_ds.prepare_config import PrepareConfig
from gem_ds.records import place_of, record_id
from gem_ds.shards import Shards
from gem_ds.units import Plan

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
    *({"cut": cut} for cut in ("5-2", "0-9", "٣-٥", "", "-", "1-" + "9" * 30)),
    *({"unit_megabytes": size} for size in (0.0, float("nan"), float("inf"), 1e300)),
    *({"mix": mix} for mix in ("a", "b=nan", "a=1", "a=0.5,a=0.5", "a=inf", "=1", ",")),
    *({"text_field": ""}, {"mix_records": 5}, {"summary_tokens": 400}, {"row_length": 1 << 40}),
    *({"max_bad_fraction": float("nan")}, {"share": "1/0"}, {"min_prefix": 1 << 70}, {"seed": -1}),
]


class Case(NamedTuple):
    """A corpus, options, which of the tokenizers, and whether there is an odd option."""

    files: list[tuple[str, bytes]]
    options: dict[str, Any]
    tokenizer: str
    is_odd: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
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


TOKENIZERS = ["bos and eos", "eos", "neither"]


@cache
def tokenizer_folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """A tokenizer that loses nothing of a text."""
    folder = tempfile.TemporaryDirectory()
    tokenizer = bpe.train(["Words, many words. And so on! naïve 日本語。"] * 3, 280)
    if name != "bos and eos":
        tokenizer = Tokenizer.from_str(
            json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None})
        )
    bpe.save(tokenizer, Path(folder.name))
    if name == "neither":
        (Path(folder.name) / "tokenizer_config.json").write_text("{}")
    return folder


@cache
def bytes_of_tokens(name: str) -> dict[int, bytes]:
    """What each token spells, from the vocabulary: GPT-2 writes a byte as a letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + i): byte for i, byte in enumerate(others)}
    vocab = tokenization.load(tokenizer_folder(name).name).backend.get_vocab()
    return {
        i: bytes(letters[letter] for letter in token)
        for token, i in vocab.items()
        if not token.startswith("<|")
    }


def try_case(case: Case, folder: Path) -> str:
    """What became of a case. Raises `AssertionError` where that is wrong."""
    sources = ["a", "b"] if case.options.get("mix") else [""]
    paths = []
    for i, (suffix, content) in enumerate(case.files):
        paths.append(folder / f"corpus-{i}{suffix}")
        paths[-1].write_bytes(content)
    names = [
        f"{sources[i % len(sources)]}={path}" if sources[0] else str(path)
        for i, path in enumerate(paths)
    ]
    config = PrepareConfig(
        names, tokenizer_folder(case.tokenizer).name, str(folder / "out"), **case.options
    )
    try:
        _prepare(config)
    except InputError as error:
        assert not (folder / "out" / MANIFEST).exists()
        message = str(error)
        assert "\n" not in message and len(message) < 1500, message
        assert message.startswith("--") or not _must_finish(case, paths), message
        words = re.sub(r"/\S*|[^ ]*\d[^ ]*|\(.*", "…", message.split(";")[0])
        return "refused: " + words[:60]
    _check(case, paths, folder / "out")
    return "finished"


def _prepare(config: PrepareConfig) -> None:
    """As the command does, but units are done here, the last one first."""
    output = Path(config.output)
    prepare.prepare(replace(config, only_plan=True))
    plan = Plan.load(output)
    for unit in reversed(range(len(plan.units))):
        sharding.write_unit(unit, lambda _: None, folder=output, digest=plan.digest)
    manifest = prepare.prepare(config)
    assert manifest and manifest == prepare.prepare(config), "the same command again"


def _must_finish(case: Case, paths: list[Path]) -> bool:
    """Whether nothing is wrong with a case, as far as one can say without doing the work."""
    options = case.options
    if case.is_odd or options["max_bad_fraction"] < 1 or "pair" in options["kinds"]:
        return False
    try:
        found = [read(path, options["text_unit"] == "paragraph") for path in paths]
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):
        return False
    tables = [pq.read_schema(path).names for path in paths if path.suffix == ".parquet"]
    return (
        all("text" in names for names in tables)
        and any(record.text("text") for each in found for record in each.values())
        and case.tokenizer != "neither"  # a text of one token alone has no target
    )


def _check(case: Case, paths: list[Path], folder: Path) -> None:
    """The finished folder against the corpus."""
    options, epochs = case.options, case.options["epochs"]
    shards = Shards(folder)
    manifest = shards.manifest
    shards.verify()
    counts = manifest.counts
    skipped = counts["skipped"]
    assert counts["documents_in"] == counts["records_written"] + sum(skipped.values())
    corpus = {
        record_id(i, offset): found
        for i, path in enumerate(paths)
        for offset, found in read(path, options["text_unit"] == "paragraph").items()
    }
    kinds = set(manifest.kinds[next(iter(manifest.kinds))])
    written = _written(case, shards)
    assert {record for record, _ in written} <= set(corpus)
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp"), path
    assert {path.name for path in folder.glob("*.parquet")} == {f["name"] for f in manifest.files}
    if "mix_records" in options:
        return
    if "mix" not in options:
        assert counts["documents_in"] == len(corpus) * epochs
        missing = {r for r in corpus if any((r, epoch) not in written for epoch in range(epochs))}
        where = {(str(paths[place_of(r)[0]]), corpus[r].line) for r in missing}
        listed = [json.loads(line) for line in _lines(folder / QUARANTINE)]
        assert {(entry["file"], entry["line"]) for entry in listed} == where
    assert counts["records_written"] == len(written)
    for (record, _), documents in written.items():
        found = corpus[record]
        if kinds <= {"plain", "continuation"}:
            text = found.text("text")
            assert text and _spell([d.prefix + d.suffix for d in documents], text.encode())
            assert sum(d.ends for d in documents) == (case.tokenizer != "neither")
        elif kinds == {"reconstruction"}:
            text = found.text("text")
            assert text and _spell([d.prefix for d in documents], text.encode())
            assert all(d.prefix == d.suffix for d in documents)
        elif kinds == {"pair"}:
            context, answer = found.text("context"), found.text("answer")
            (document,) = documents
            assert context and context.encode().endswith(document.prefix)
            assert answer and answer.encode() == document.suffix


class Written(NamedTuple):
    """What a document spells before and after its summary tokens; whether it ends with eos."""

    prefix: bytes
    suffix: bytes
    ends: bool


def _written(case: Case, shards: Shards) -> dict[tuple[int, int], list[Written]]:
    """All documents, by record and epoch; control tokens stand where they should."""
    manifest = shards.manifest
    spelled = bytes_of_tokens(case.tokenizer)
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
            prefix, rest = (
                ids[begins : summary - start - (ends and summary == end)],
                ids[suffix - start : len(ids) - ends],
            )
            written[record, epoch].append(
                Written(*(b"".join(spelled[i] for i in part) for part in (prefix, rest)), ends)
            )
    return written


def _spell(pieces: list[bytes], text: bytes) -> bool:
    """Whether the pieces, none of them empty, join up to the text in some order."""
    if not pieces:
        return not text
    for piece in sorted(set(pieces), key=len, reverse=True):
        if piece and text.startswith(piece):
            others = pieces.copy()
            others.remove(piece)
            if _spell(others, text[len(piece) :]):
                return True
    return False


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.setrecursionlimit(10_000)  # a text in a thousand pieces
    outcomes: Counter[str] = Counter()
    began = time.perf_counter()
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None

    @hypothesis.seed(args.seed)
    @hypothesis.settings(
        max_examples=args.cases,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def try_all(case: Case) -> None:
        with (
            tempfile.TemporaryDirectory(dir=base) as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            outcomes[try_case(case, Path(folder))] += 1

    try_all()
    seconds = time.perf_counter() - began
    for outcome, n in outcomes.most_common():
        print(f"{n:7,} {outcome}")
    n = outcomes.total()
    print(f"PASS: {n:,} cases in {seconds:,.0f} s, {n / seconds:.0f} a second")


if __name__ == "__main__":
    main()
