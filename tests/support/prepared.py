"""Data preparation for tests: corpora of random words, the script, and the same in this process."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from kills_runs import SCRIPT

from gem_ds.shards import prepare
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.dataset import Shards


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(n: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("etaoinshr", k=rng.randint(2, 8))) for _ in range(n))


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def in_process(corpus: Path, tokenizer: Path, output: Path, **options: object) -> Shards:
    defaults = {"row_length": 256, "workers": 1, "min_prefix": 4, "min_suffix": 4}
    inputs = [str(corpus)]
    prepare.prepare(PrepareConfig(inputs, str(tokenizer), str(output), **defaults | options))
    return Shards(output)
