"""Data preparation as a user runs it, and what comes out. Refusals: test_prepare_refusals."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zstandard
from kills_runs import hashes
from prepared import in_process, run, words, write_jsonl
from transformers import AutoTokenizer

from gem_ds import layout
from gem_ds.corpus import records, streams, tokenization

ODD = [
    "spells <|summary_0|> and <|eos|> and <|bos|> out, as a page about this very method may do",
    "naïve café, 日本語のテキスト and emoji 😀👩‍👩‍👧 in one sentence that is long enough to cut",
    "carriage\r\nreturns\r\n\r\nand\ttabs \0 and a NUL, and a few more words to make it longer",
]
ALL_KINDS = "plain=0.4,continuation=0.3,reconstruction=0.2,pair=0.1"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 records of 1 to 400 words, odd ones among them, with all the fields."""
    texts = [*ODD, *(words(1 + i * 4 // 3, i) for i in range(297))]
    records = [
        {"text": text, "context": text, "answer": words(5, i)} for i, text in enumerate(texts)
    ]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", records)


def test_without_arguments_it_says_what_it_needs() -> None:
    done = run()
    assert done.returncode == 2
    assert "--tokenizer" in done.stderr
    assert "for example" in done.stderr
    assert "continuation" in run("--help").stdout


def test_documents_spell_their_texts(corpus: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """Text that spells control tokens included: control ids stand where the layout has them."""
    options = {"kinds": "plain=0.5,continuation=0.5", "row_length": 4096, "summary_tokens": 2}
    shards = in_process(corpus, tokenizer_dir, tmp_path, **options)
    manifest = shards.manifest
    stock = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert stock.convert_tokens_to_ids(["<|summary_0|>", "<|summary_1|>"]) == [400, 401]
    assert manifest.summary_tokens == [400, 401]
    assert manifest.vocab_size == len(stock) == 402
    spelled: dict[int, str] = {}
    for i in range(len(shards)):
        ids, all_bounds, ids_of, _ = shards.read(i)
        for record, (start, summary, suffix, end) in zip(ids_of, all_bounds, strict=True):
            assert ids[start] == manifest.bos_token_id
            assert ids[summary:suffix].tolist() in ([], [400, 401])
            assert ids[end - 1] == manifest.eos_token_id
            text = np.concatenate([ids[start + 1 : summary], ids[suffix:end]])
            text = text[: np.flatnonzero(text == manifest.eos_token_id)[0]]
            assert not np.isin(text, [0, 1, 400, 401]).any()
            number, offset = records.place_of(int(record))
            assert number == 0
            spelled[offset] = stock.decode(text, skip_special_tokens=False)
    lines = corpus.read_bytes().splitlines(keepends=True)
    offsets = np.cumsum([0, *map(len, lines)]).tolist()
    assert spelled == {
        at: json.loads(line)["text"] for at, line in zip(offsets, lines, strict=False)
    }


def test_manifest_counts_what_the_rows_hold(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = in_process(corpus, tokenizer_dir, tmp_path, kinds=ALL_KINDS)
    manifest = shards.manifest
    rows = [shards.read(i) for i in range(len(shards))]
    assert manifest.n_tokens == sum(len(row.input_ids) for row in rows)
    assert manifest.n_documents == sum(len(row.bounds) for row in rows)
    assert manifest.n_targets == sum(layout.n_targets(row.bounds) for row in rows)
    gem = sum(int(layout.is_gem(row.bounds).sum()) for row in rows)
    counts = manifest.counts
    assert gem == manifest.n_documents - counts["documents"]["plain"]
    assert sum(counts["documents"].values()) == manifest.n_documents
    assert min(counts["documents"].values()) > 10
    assert counts["documents_in"] == counts["records_written"] == 300
    assert len({int(r) for row in rows for r in row.records}) == 300
    assert manifest.n_tokens / (manifest.n_rows * 256) > 0.97  # a single small unit
    assert counts["notes"].keys() == {"contexts_truncated", "texts_split", "too_short_to_cut"}
    base = tokenization.load(tokenizer_dir)
    assert manifest.base_tokenizer_sha256 == tokenization.fingerprint(base)
    printed = capsys.readouterr().out
    for expected in ("300 = 300 written + 0 skipped", "plain", "targets", "% filled", "MB/s"):
        assert expected in printed


def test_output_depends_on_corpus_and_seed_only(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [{"text": words(400, i), "context": "c", "answer": "a b"} for i in range(600)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", content)
    assert corpus.stat().st_size > 3 * streams.BLOCK_BYTES
    common = ["--input", corpus, "--tokenizer", tokenizer_dir, "--kinds", ALL_KINDS]
    results = []
    for workers in (1, 2, 8):
        output = tmp_path / f"workers-{workers}"
        done = run(*common, "--output", output, "--workers", workers, PYTHONHASHSEED=str(workers))
        assert done.returncode == 0, done.stderr
        results.append(hashes(output))
    assert results[0] == results[1] == results[2]
    assert set(results[0]) >= {"manifest.json", "shard-00000.parquet", "tokenizer/tokenizer.json"}

    monkeypatch.setattr(streams, "BLOCK_BYTES", 100_000)
    options = {"row_length": 2048, "kinds": ALL_KINDS, "min_prefix": 8, "min_suffix": 8}
    in_process(corpus, tokenizer_dir, tmp_path / "blocks", **options)
    assert hashes(tmp_path / "blocks") == results[0]
    in_process(corpus, tokenizer_dir, tmp_path / "seed", seed=1, **options)
    assert hashes(tmp_path / "seed")["shard-00000.parquet"] != results[0]["shard-00000.parquet"]


def test_compressed_files_give_the_same_shards(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    content = corpus.read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(content))
    expected = in_process(corpus, tokenizer_dir, tmp_path / "plain").manifest.files
    for name in ("c.jsonl.gz", "c.jsonl.zst"):
        assert in_process(tmp_path / name, tokenizer_dir, tmp_path / name[-3:]).manifest.files == (
            expected
        )


def test_a_table_gives_the_same_texts(corpus: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    pd.DataFrame(rows).to_parquet(tmp_path / "c.parquet")
    found = []
    for path in (corpus, tmp_path / "c.parquet"):
        shards = in_process(path, tokenizer_dir, tmp_path / path.suffix, kinds="plain=1")
        all_rows = [shards.read(i) for i in range(len(shards))]
        texts = [row.input_ids[a:b].tolist() for row in all_rows for a, *_, b in row.bounds]
        found.append(sorted(texts))
    assert found[0] == found[1]


def test_every_epoch_has_every_record_with_cuts_of_its_own(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    options = {"kinds": "continuation=1", "row_length": 4096, "epochs": 3}
    shards = in_process(corpus, tokenizer_dir, tmp_path / "three", **options)
    manifest = shards.manifest
    assert [entry["epoch"] for entry in manifest.files] == [0, 1, 2]
    assert manifest.counts["documents_in"] == 900
    starts = np.cumsum([0, *manifest.epoch_rows])
    assert starts[-1] == len(shards)
    cuts: list[dict[int, int]] = []
    for first, last in pairwise(starts):
        rows = [shards.read(i) for i in range(first, last)]
        cuts.append(
            {
                int(record): int(summary - start)
                for row in rows
                for record, (start, summary, *_) in zip(row.records, row.bounds, strict=True)
            }
        )
    assert cuts[0].keys() == cuts[1].keys() == cuts[2].keys()
    assert len(cuts[0]) == 300
    same = sum(cuts[0][record] == cuts[1][record] for record in cuts[0])
    assert same < 30
    once = in_process(corpus, tokenizer_dir, tmp_path / "one", **options | {"epochs": 1})
    assert once.manifest.files[0]["sha256"] == manifest.files[0]["sha256"]


def test_a_huge_text_is_split_over_rows(tokenizer_dir: Path, tmp_path: Path) -> None:
    text = words(400_000, 0)[:2_000_000] + "x" * 500_000
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text}])
    shards = in_process(corpus, tokenizer_dir, tmp_path / "out", kinds="plain=1", row_length=2048)
    backend = tokenization.load(tmp_path / "out" / "tokenizer").backend
    rows = [shards.read(i) for i in range(len(shards))]
    assert shards.manifest.counts["notes"] == {"texts_split": 1}
    assert sum(len(row.input_ids) == 2048 for row in rows) >= len(rows) - 1
    (last,) = [row for row in rows if row.input_ids[-1] == shards.manifest.eos_token_id]
    spelled = [backend.decode(row.input_ids[1:].tolist()) for row in rows]
    assert sum(map(len, spelled)) == len(text)
    assert set(spelled) >= {backend.decode(last.input_ids[1:-1].tolist())}
    assert all(part in text for part in spelled)
