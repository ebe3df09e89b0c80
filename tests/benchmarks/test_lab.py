"""The laboratory from end to end in small: what is finished is not repeated, what changed is."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import lab
import pytest
import torch
import zstandard
from exports import tiny
from lab_runs import TABLE, Run, Table
from pages import flags

from gem_ds.corpus import docstrings
from gem_ds.errors import InputError

pytestmark = pytest.mark.slow

SHARD = "--row-length 48 --kinds plain=0.5,continuation=0.5"
TRAIN = "--steps 2 --rows-per-step 2 --alpha-start 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A folder with a base, a corpus and held-out texts."""
    folder = tmp_path_factory.mktemp("lab")
    lm = tiny("llama", 400).to(torch.bfloat16)  # what it is trained in, so that nothing is rounded
    lm.config.max_position_embeddings = 600
    lm.save_pretrained(folder / "base")
    for file in tokenizer_dir.iterdir():
        (folder / "base" / file.name).write_bytes(file.read_bytes())
    module = Path(docstrings.__file__).read_text()
    entries = [vars(entry) for entry in docstrings.entries_in(module, "corpus")]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(x) + "\n" for x in entries * 3))
    (folder / "dev").mkdir()
    for name in ("openstax", "books"):
        with zstandard.open(folder / "dev" / f"{name}-dev.jsonl.zst", "wt") as stream:
            stream.writelines(json.dumps(x) + "\n" for x in entries[:6])
    with (folder / "dev" / "stsb-en-dev.csv").open("w", newline="") as stream:
        pairs = zip(entries[:5], entries[1:6], range(5), strict=True)
        csv.writer(stream).writerows([a["title"], b["title"], score] for a, b, score in pairs)
    return folder


def run(place: Path, table: Table, *more: str, dev: Path | None = None) -> tuple[list[str], str]:
    """What a call did, and the report."""
    told = ["--base", place / "base", "--corpus", place / "corpus.jsonl"]
    told += ["--dev", dev or place / "dev"]
    told += [
        "--out",
        place / "out",
        "--results",
        place / "results",
        "--report",
        place / "results.md",
        *more,
    ]
    found = lab.main([str(part) for part in told], table)
    return found.done, (place / "results.md").read_text()


def test_what_is_finished_is_not_repeated_and_what_changed_is(place: Path) -> None:
    made = ["shards", "trainings", "exports"]
    first = Run("first", train="--recipe paper --alpha 0.5", note="a note")
    table = Table([first], SHARD, TRAIN)
    done, report = run(place, table)
    assert done == ["base", *made, "first, seed 0"]
    result = json.loads((place / "results" / "first-seed-0.json").read_text())
    assert {"sts", "retrieval", "perplexity books", "given back 100"} <= result["figures"].keys()
    assert result["training_seconds"] > 0
    assert f", {result['precision']}, {result['date']}" in report
    (told,) = (place / "out" / "trainings").glob("*/run/run.json")
    bf16 = json.loads(told.read_text())["deepspeed"]["bf16"]["enabled"]
    assert bf16 == (result["precision"] == "bf16") == torch.cuda.is_available()
    assert report.count("\n| first ") == 2
    assert f"{result['figures']['sts']:.2f}" in report
    assert "| summary token, untrained " in report
    assert "`--recipe paper --alpha 0.5`" in report
    assert "Not run yet" not in report
    assert result["figures"]["same logits"] < 0.5

    assert run(place, table) == ([], report)

    exported = replace(first, export="--dtype float32")
    done, again = run(place, Table([exported], SHARD, TRAIN))
    assert done == ["exports", "first, seed 0"], "shards and training are the same"
    assert "`--dtype float32`" in again

    changed = replace(first, train="--no-such-flag 1")
    with pytest.raises(InputError, match=r"1 runs failed.* first, seed 0: exit .*no-such-flag"):
        run(place, Table([changed], SHARD, TRAIN))
    report = (place / "results.md").read_text()
    assert "| first " not in report
    assert "\nNot run yet as they are defined now: first.\n" in report
    assert len(list((place / "out" / "shards").iterdir())) == 1


def test_the_default_leaves_the_logits_of_text_as_they_were(place: Path) -> None:
    run(place, Table([Run("default")], SHARD, TRAIN))
    result = json.loads((place / "results" / "default-seed-0.json").read_text())
    assert result["figures"]["same logits"] == 1


def test_what_is_not_there_is_refused(place: Path) -> None:
    table = Table([Run("a")], SHARD, TRAIN)
    with pytest.raises(InputError, match=r"--only 'b': there are base, a"):
        run(place, table, "--only", "b")
    with pytest.raises(InputError, match=r"has no stsb-en-dev.csv; give --dev"):
        run(place, table, dev=place)


def test_the_table_names_flags_that_exist_and_each_run_once() -> None:
    texts = [TABLE.shard, TABLE.train]
    texts += [text for each in TABLE.runs for text in (each.shard, each.train, each.export)]
    named = {word for text in texts for word in text.split() if word.startswith("--")}
    assert named <= flags()
    names = [lab._slug(each.name) for each in TABLE.runs]
    assert len(set(names)) == len(names)
