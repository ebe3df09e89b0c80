"""What a finished folder of shards lists: the records left out, by their lines."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import jsonl

from gem_ds.corpus import streams
from gem_ds.shards import work_plan
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.prepare import prepare
from gem_ds.shards.work_plan import Plan


def test_records_left_out_are_listed_with_their_lines(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the file, also where it was cut in many parts."""
    monkeypatch.setattr(work_plan, "MIN_UNIT", 1)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 16)
    corpus = tmp_path / "corpus"
    (corpus / "streamed").mkdir(parents=True)
    texts = [("" if i % 50 == 49 else f"number {i} of some words ") * 5 for i in range(400)]
    lines = jsonl(texts).splitlines(keepends=True)
    (corpus / "a.jsonl").write_bytes(b"\n\n".join(lines))
    (corpus / "b.txt").write_bytes("\n\n".join(t or "\xff\n" for t in texts).encode("latin-1"))
    (corpus / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    pq.write_table(pa.table({"text": texts}), corpus / "d.parquet", row_group_size=30)
    for i in range(4):
        part = b"".join(lines[100 * i : 100 * i + 100])
        (corpus / "streamed" / f"{i}.jsonl").write_bytes(part)
    files = [str(corpus / name) for name in ("a.jsonl", "b.txt", "c.jsonl.gz", "d.parquet")]
    config = PrepareConfig(
        [*files, f"dataset:{corpus}/streamed"],
        str(tokenizer_dir),
        str(tmp_path / "out"),
        row_length=512,
        kinds="plain=1",
        max_bad_fraction=1,
        workers=1,
    )
    prepare(config)
    made = Plan.load(tmp_path / "out")
    assert Counter(part.input for group in made.units for part in group)[0] > 5
    assert len(made.units) > 20
    found: dict[str, list[int]] = {}
    for text in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines():
        entry = json.loads(text)
        found.setdefault(Path(entry["file"]).name, []).append(entry["line"])
    true = list(range(50, 401, 50))
    before = (corpus / "b.txt").read_bytes().split(b"\xff")[:-1]
    assert found == {
        "a.jsonl": [3 * n - 2 for n in true],
        "b.txt": [1 + sum(t.count(b"\n") for t in before[: i + 1]) for i in range(8)],
        "c.jsonl.gz": true,
        "d.parquet": true,
        "streamed": true,
    }
