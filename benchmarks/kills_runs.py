"""A corpus of all formats, and runs of data_prep/shard.py on it that can be killed."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds.corpus import train_tokenizer

SCRIPT = Path(__file__).resolve().parent.parent / "data_prep" / "shard.py"


def write_corpus(folder: Path, megabytes: float, seed: int) -> None:
    """Files of all formats, records that cannot be read among them, and a tokenizer."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(2000)]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 200))) + rng.choice([".", "!\n", ""])

    def records() -> list[dict[str, str]]:
        n = int(megabytes * 1e6 / 6 / 1100)
        return [{"text": text(), "context": text(), "answer": rng.choice(words)} for _ in range(n)]

    def lines() -> str:
        found = [json.dumps(record) for record in records()]
        for bad in ("{", '{"text": 1}', '{"text": " "}', '{"text": "\\ud800"}', "\0"):
            found.insert(rng.randrange(len(found)), bad)
        return "\n".join(found)

    folder.mkdir()
    for i in range(3):
        (folder / f"web-{i}.jsonl").write_text(lines())
    (folder / "web-3.jsonl.gz").write_bytes(gzip.compress(lines().encode()))
    pq.write_table(pa.Table.from_pylist(records()), folder / "web-4.parquet", row_group_size=50)
    (folder / "books.txt").write_text("\n\n".join(record["text"] for record in records()))
    train_tokenizer.save(train_tokenizer.train([" ".join(words)] * 5, 1000), folder / "tokenizer")


def command(corpus: Path, output: Path, *more: object) -> list[str]:
    """The command under test. What comes later in `more` wins."""
    web = [f"web={path}" for path in sorted(corpus.glob("web-*"))]
    flags = [
        *("--input", *web, f"books={corpus / 'books.txt'}", "--tokenizer", corpus / "tokenizer"),
        *("--output", output, "--mix", "web=0.8,books=0.2", "--mix-records", 1500),
        *("--kinds", "plain=0.4,continuation=0.3,reconstruction=0.2,pair=0.1;books:plain=1"),
        *("--row-length", 512, "--summary-tokens", 2, "--epochs", 2, "--max-bad-fraction", 0.1),
        *("--unit-megabytes", 0.2, "--workers", 3, *more),
    ]
    return [sys.executable, str(SCRIPT), *map(str, flags)]


def begin(command: list[str], log: Path, hash_seed: int = 0) -> subprocess.Popen[bytes]:
    """A run, leader of a session of its own, whose number is its pid."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
