"""Small real shards to look at, the script that does it, and what may go wrong with them."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gem_ds import layout
from gem_ds.shards import dataset, prepare
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.dataset import Shards
from gem_ds.shards.manifest import Manifest

SCRIPT = Path(__file__).parents[2] / "data_prep" / "inspect_shards.py"
ALL_KINDS = "plain=0.4,continuation=0.3,reconstruction=0.2,pair=0.1"
OPTIONS = {"kinds": ALL_KINDS, "summary_tokens": 2, "epochs": 2}
ODD = "spells <|summary_0|>, <|bos|> and <|eos|>; naïve 日本語 😀; \x1b[31mred\x1b[0m and \r; " * 2


def make_corpus(folder: Path) -> Path:
    """300 texts of 1 to 200 words, an odd and an empty one, with the fields of pairs."""
    rng = random.Random(0)
    words = ("tea", "horses", "in", "rain")
    texts = [" ".join(rng.choices(words, k=1 + i % 200)) for i in range(300)]
    records = [{"text": text, "context": text, "answer": "so be it"} for text in [ODD, *texts, ""]]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_shards(corpus: Path, tokenizer: Path, output: Path, **options: object) -> Path:
    """Several files: the corpus is cut small."""
    defaults = {"row_length": 256, "workers": 1, "min_prefix": 4, "min_suffix": 4}
    defaults |= {"unit_megabytes": 0.13}
    inputs = [str(corpus)]
    prepare.prepare(PrepareConfig(inputs, str(tokenizer), str(output), **defaults | options))
    return output


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def stored(folder: Path) -> list[dict[str, np.ndarray]]:
    """The rows as Arrow reads them."""
    tables = [pq.read_table(path).to_pandas() for path in sorted(folder.glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_dict("records")]
    return [row | {"bounds": row["bounds"].reshape(-1, 4)} for row in rows]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path, **changes: object) -> None:
    """With the digest that a program would write."""
    dataclasses.replace(Manifest.load(folder), **changes).save(folder)


def rewrite(folder: Path, edit: Callable[..., None], **said: int) -> tuple[str, int, list[int]]:
    """Edit the first document with summary tokens as a faulty writer would have: the manifest,
    with `said` of the file, and the receipt agree. Returns the row's place, the document's number
    in it and its boundaries."""
    found = Shards(folder)
    entries = found.manifest.files
    rows = [found.read(i) for i in range(entries[0]["n_rows"])]
    at = next(i for i, row in enumerate(rows) if layout.is_gem(row.bounds).any())
    d = int(layout.is_gem(rows[at].bounds).argmax())
    boundaries = rows[at].bounds[d].tolist()
    edit(*rows[at], d, *boundaries)
    path = folder / entries[0]["name"]
    with dataset.writing(path, found.manifest.row_length) as writer:
        for row in rows:
            writer.add(row)
    entry = {**writer.entry, **said}
    files = [entry, *entries[1:]]
    edit_manifest(folder, files=files, n_targets=sum(file["n_targets"] for file in files))
    receipt = folder / "units" / "00000.json"
    content = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(content | {"files": [entry, *content["files"][1:]]}))
    return f"{path}, row {at}", d, boundaries
