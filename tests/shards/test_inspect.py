"""Statistics, pictures and texts of shards, against what the files and the corpus hold."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from inspected import OPTIONS, make_corpus, make_shards, run, stored
from PIL import Image

from gem_ds.shards import inspect
from gem_ds.shards.dataset import Shards
from gem_ds.shards.inspect import quantile


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """All kinds, two summary tokens, two epochs; do not write in it."""
    folder = tmp_path_factory.mktemp("inspected")
    return make_shards(make_corpus(folder), tokenizer_dir, folder / "shards", **OPTIONS)


def expected_lengths(rows: list[dict[str, np.ndarray]]) -> dict[str, list[int]]:
    """The lines of the table, the values one by one."""
    spans = [span for row in rows for span in row["bounds"].tolist()]
    gem = [span for span in spans if span[1] < span[2]]
    return {
        "tokens of documents": [end - start for start, _, _, end in spans],
        "plain": [end - start for start, summary, suffix, end in spans if summary == suffix],
        "with summary tokens": [end - start for start, _, _, end in gem],
        "prefix": [summary - start for start, summary, _, _ in gem],
        "suffix": [end - suffix for _, _, suffix, end in gem],
        "tokens of rows": [len(row["input_ids"]) for row in rows],
        "documents of rows": [len(row["bounds"]) for row in rows],
    }


def check_table(text: str, rows: list[dict[str, np.ndarray]], row_length: int) -> None:
    expected = expected_lengths(rows)
    for name, values in expected.items():
        (line,) = re.findall(rf"^ *{name}  +(\d.*)$", text, re.MULTILINE)
        at = np.quantile(values, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
        cells = [f"{len(values):,}", f"{np.mean(values):,.1f}", *(f"{value:,}" for value in at)]
        assert line.split() == cells, name
    fills = np.array(expected["tokens of rows"]) / row_length
    assert (
        f"{fills.mean():.2%} filled on average, {fills.min():.2%} at least; "
        f"{(fills < 0.99).mean():.2%} of them less than 99%"
    ) in text
    prefix, suffix = np.array(expected["prefix"]), np.array(expected["suffix"])
    shown = re.search(r"deciles: (.*)", text)[1].replace("%", "").split()
    deciles = np.quantile(prefix / (prefix + suffix), np.arange(1, 10) / 10, method="inverted_cdf")
    assert np.array(shown, dtype=float) == pytest.approx(100 * deciles, abs=0.6)


def test_the_table_is_that_of_the_rows(shards_dir: Path) -> None:
    done = run(shards_dir)
    assert done.returncode == 0, done.stderr
    rows = stored(shards_dir)
    check_table(done.stdout, rows, 256)
    n_files = len(list(shards_dir.glob("*.parquet")))
    manifest = json.loads((shards_dir / "manifest.json").read_text())
    n_tokens = sum(len(row["input_ids"]) for row in rows)
    for line in (
        "records in  604 = 602 written + 2 skipped",
        "            2 empty text",
        f"tokens      {n_tokens:,}, of which {manifest['n_targets']:,} are targets",
        f"rows        {len(rows):,} of 256 tokens",
        f"in all {len(rows):,} rows",
    ):
        assert line in done.stdout.splitlines()
    assert re.search(rf"^files       {n_files}, 0.\d MB$", done.stdout, re.MULTILINE)
    by_epoch = Counter(f["epoch"] for f in manifest["files"] for _ in range(f["n_rows"]))
    assert f"epochs      2, of {by_epoch[0]}, {by_epoch[1]} rows" in done.stdout
    for kind, n in manifest["counts"]["documents"].items():
        assert f"{n} {kind}" in done.stdout
    assert "texts split" in done.stdout


def test_some_rows_are_drawn_evenly(shards_dir: Path) -> None:
    done = run(shards_dir, "--rows", 10)
    rows = stored(shards_dir)
    assert f"in 10 of the {len(rows)} rows, drawn evenly" in done.stdout
    check_table(done.stdout, [rows[i * len(rows) // 10] for i in range(10)], 256)


@pytest.mark.parametrize("seed", range(20))
def test_quantiles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 30, rng.integers(1, 300))
    for percent in range(101):
        expected = sorted(values)[max(0, -(-percent * len(values) // 100) - 1)]
        assert quantile(Counter(values.tolist()), percent) == expected


def test_the_picture_is_a_png(shards_dir: Path, tmp_path: Path) -> None:
    done = run(shards_dir, "--png", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'a.png'}: histograms" in done.stdout
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size) == ("PNG", (1000, 700))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_plain_shards_have_no_cuts(shards_dir: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    corpus = shards_dir.parent / "c.jsonl"
    options = {"kinds": "plain=1", "summary_tokens": 0}
    shards = Shards(make_shards(corpus, tokenizer_dir, tmp_path / "shards", **options))
    statistics = inspect.read(shards, len(shards))
    text = inspect.report(shards.manifest, statistics)
    assert not {"prefix", "suffix"} & set(text.split())
    inspect.draw(statistics, 256, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (1000, 700)


def test_rows_spell_their_records(shards_dir: Path) -> None:
    """Of every document of all rows: its record is the right one and its parts are told apart."""
    corpus = (shards_dir.parent / "c.jsonl").read_bytes()
    shards = Shards(shards_dir)
    header = re.compile(
        r"=== document (\d+): (?:plain|[a-z]+ \((\d+) prefix \+ 2 summary \+ (\d+) suffix\)), "
        r"(\d+) tokens, record at ([\d,]+) of input 0 \(c.jsonl\)"
    )
    seen = Counter()
    for i in range(len(shards)):
        first, *documents = "\n".join(inspect.describe(shards, i)).split("\n\n")
        row = shards.read(i)
        n, length = len(row.bounds), len(row.input_ids)
        assert first == f"row {i} of {len(shards)}: {n} documents, {length} of 256 tokens"
        for d, shown in enumerate(documents):
            title, *texts = shown.split("\n")
            number, *lengths, offset = header.fullmatch(title).groups()
            start, summary, suffix, end = row.bounds[d].tolist()
            gem = suffix > summary
            parts = [str(summary - start), str(end - suffix)] if gem else [None, None]
            assert [number, *lengths] == [str(d), *parts, str(end - start)]
            record = json.loads(corpus[int(offset.replace(",", "")) :].split(b"\n")[0])
            text = record["text"].replace("\x1b", r"\x1b").replace("\r", r"\x0d")
            if not gem:
                (plain,) = texts
                assert plain.startswith("⟦bos⟧")
                assert plain.removeprefix("⟦bos⟧").removesuffix("⟦eos⟧") in text
                seen["plain"] += 1
                continue
            assert texts[::2] == ["--- prefix", "--- summary", "--- suffix"]
            assert texts[3] == "⟦summary 0⟧⟦summary 1⟧"
            assert texts[1].startswith("⟦bos⟧")
            prefix = texts[1].removeprefix("⟦bos⟧")
            suffix = texts[5].removesuffix("⟦eos⟧")
            assert prefix in text
            fits = {"two": suffix == prefix, "answer": suffix == "so be it"}
            fits["rest"] = prefix + suffix in text
            assert any(fits.values())
            seen.update(kind for kind, fit in fits.items() if fit)
        assert d + 1 == n
    assert {"plain", "two", "answer", "rest"} <= seen.keys()


def test_a_row_is_printed_anywhere(shards_dir: Path) -> None:
    row = next(i for i, row in enumerate(stored(shards_dir)) if 0 in row["records"])  # ODD
    done = run(shards_dir, "--row", row, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert (
        "⟦bos⟧spells <|summary_0|>, <|bos|> and <|eos|>; naïve 日本語 😀; \\x1b[31mred"
        in done.stdout
    )
    plain = run(shards_dir, "--row", row, PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == done.stdout.encode("ascii", errors="replace").decode()
    short = run(shards_dir, "--row", row, "--chars", 10, PYTHONIOENCODING="utf-8").stdout
    assert "⟦bos⟧spell… (" in short
    assert len(short) < len(done.stdout)


def test_what_the_script_refuses(shards_dir: Path, tmp_path: Path) -> None:
    done = run()
    assert done.returncode == 2
    assert "for example\n  python data_prep/inspect_shards.py shards/" in done.stderr
    assert "--chars" in run("--help").stdout
    for arguments, message in (
        (["--row", 10**6], f"there is no {10**6}"),
        (["--row", -1], "--row -1 is out of range"),
        (["--rows", 0], "--rows 0 is out of range"),
        (["--rows", 5, "--verify"], "give one of"),
        (["--row", 5, "--verify"], "give one of"),
        (["--chars", 5], "--chars is of --row"),
    ):
        done = run(shards_dir, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    done = run(tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did not finish" in done.stderr
