"""Arbitrary corpora and options through data preparation.

    python benchmarks/fuzz_prepare.py --cases 20000

Either an `InputError` of one line comes of a case, or a finished folder that holds what independent
code reads in the corpus: every record counted, its text spelled by its documents byte for byte, and
control tokens only where the layout has them. Units are done in this process, by the function that
workers call. Hypothesis makes a failing case small and prints it; the exit status is 1 then.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import hypothesis
import pyarrow.parquet as pq
import zstandard
from fuzz_cases import FOUND, Case, cases
from fuzz_check import UNSETTLED, check, looks_wide, read
from tokenizers import Tokenizer

from gem_ds.corpus import tokenization, train_tokenizer
from gem_ds.errors import InputError, run
from gem_ds.flags import SEEDS, Parser, whole
from gem_ds.shards import prepare, unit_worker
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.manifest import MANIFEST
from gem_ds.shards.work_plan import Plan


@cache
def tokenizer_folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """A tokenizer that loses nothing of a text."""
    folder = tempfile.TemporaryDirectory()
    tokenizer = train_tokenizer.train(["Words, many words. And so on! naïve 日本語。"] * 3, 280)
    if name != "bos and eos":
        tokenizer = Tokenizer.from_str(
            json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None})
        )
    train_tokenizer.save(tokenizer, Path(folder.name))
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
        assert "\n" not in message, message
        assert len(message) < 1500, message
        assert message.startswith("--") or not _must_finish(case, paths), message
        words = re.sub(r"/\S*|[^ ]*\d[^ ]*|\(.*", "…", message.split(";")[0])
        return "refused: " + words[:60]
    check(case, paths, folder / "out", bytes_of_tokens(case.tokenizer))
    return "finished"


def _prepare(config: PrepareConfig) -> None:
    """As the command does, but units are done here, the last one first."""
    output = Path(config.output)
    prepare.prepare(replace(config, only_plan=True))
    plan = Plan.load(output)
    for unit in reversed(range(len(plan.units))):
        unit_worker.write_unit(unit, lambda _: None, folder=output, digest=plan.digest)
    manifest = prepare.prepare(config)
    assert manifest
    assert manifest == prepare.prepare(config), "the same command again"


def _must_finish(case: Case, paths: list[Path]) -> bool:
    """Whether nothing is wrong with a case, as far as one can say without doing the work."""
    options = case.options
    if case.is_odd or options["max_bad_fraction"] < 1 or "pair" in options["kinds"]:
        return False
    try:
        found = [read(path, options["text_unit"] == "paragraph") for path in paths]
        if any(map(looks_wide, paths)):
            return False
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):
        return False
    tables = [pq.read_schema(path).names for path in paths if path.suffix == ".parquet"]
    return (
        all("text" in names for names in tables)
        and any(record.text("text") for each in found for record in each.values())
        and case.tokenizer != "neither"  # a text of one token alone has no target
    )


def fuzz(n: int, seed: int) -> Counter[str]:
    """What became of so many cases; a wrong one is made small and raises `AssertionError`."""
    sys.setrecursionlimit(10_000)  # a text in a thousand pieces
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def try_all(case: Case) -> None:
        with (
            tempfile.TemporaryDirectory(dir=memory) as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            outcomes[try_case(case, Path(folder))] += 1
        if outcomes.total() % 1000 == 0:
            print(f"{outcomes.total():,} cases", file=sys.stderr)

    for case in FOUND:
        try_all = hypothesis.example(case)(try_all)
    try_all()
    return outcomes


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cases", type=whole(1), default=20_000, help="to try")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of what is random")
    args = parser.parse_args()
    began = time.perf_counter()
    outcomes = fuzz(args.cases, args.seed)
    seconds = time.perf_counter() - began
    for outcome, n in outcomes.most_common():
        print(f"{n:7,} {outcome}")
    print(f"{UNSETTLED['texts']:7,} texts whose order was not settled, though their bytes were")
    n = outcomes.total()
    print(f"PASS: {n:,} cases in {seconds:,.0f} s, {n / seconds:.0f} a second")


if __name__ == "__main__":
    run(main)
