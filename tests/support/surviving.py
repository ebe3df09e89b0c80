"""Data preparation that is disturbed: the command, and what must hold of its folder then."""

import json
import random
import sys
from pathlib import Path

from kills_runs import SCRIPT, hashes

from gem_ds.shards import prepare, unit_context
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.manifest import MANIFEST
from gem_ds.shards.work_plan import Plan

FLAGS = {"row_length": 128, "unit_megabytes": 0.1, "max_bad_fraction": 0.5, "workers": 2}


def write_corpus(folder: Path) -> Path:
    """Two files in a folder, which make six units, with bad records in each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(1, 9))) for _ in range(500)]
    for name in ("a", "b"):
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=300))}) for _ in range(160)]
        lines[5::50] = ["bad"] * 4
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def config(corpus: Path, tokenizer: Path, output: Path, **options: object) -> PrepareConfig:
    return PrepareConfig([str(corpus)], str(tokenizer), str(output), **FLAGS | options)


def command(corpus: Path, tokenizer: Path, output: Path, *more: object) -> list[str]:
    flags = [part for n, v in FLAGS.items() for part in (f"--{n.replace('_', '-')}", v)]
    fixed = ["--input", corpus, "--tokenizer", tokenizer, "--output", output]
    return [sys.executable, *map(str, [SCRIPT, *fixed, *flags, *more])]


def begin(corpus: Path, tokenizer: Path, output: Path, **options: object) -> Plan:
    """A folder with a plan and nothing else."""
    prepare.prepare(config(corpus, tokenizer, output, only_plan=True, **options))
    return Plan.load(output)


def assert_unfinished(output: Path, killed: bool = False) -> list[int]:
    """The units that are done. No other looks it; what is half done, only killed workers leave."""
    assert not (output / MANIFEST).exists()
    assert killed or not list(output.rglob("*.tmp"))
    plan = Plan.load(output)
    done = [int(path.stem) for path in output.glob("units/?????.json")]
    assert all(unit_context.receipt(output, plan, unit) for unit in done)
    return done


def assert_finishes(work: PrepareConfig, undisturbed: Path) -> None:
    prepare.prepare(work)
    assert hashes(Path(work.output)) == hashes(undisturbed)
