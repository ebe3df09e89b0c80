"""Cards say what a model is, and what they say to type works."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import export_tiny, gem_config
from huggingface_hub import ModelCard

from gem_ds.errors import InputError
from gem_ds.export import model_card
from gem_ds.export.model_card import Provenance

FLAGS = {"recipe": "keep", "shards": "/data/secret", "model": "/data/base", "config": None}
FLAGS["steps"] = 5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    told = {"config": FLAGS, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(told))
    steps = [{"step": i, "data/tokens": 1000, "data/padding": 0.25} for i in range(5)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    return folder


def test_provenance_is_what_the_run_says(run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    about = model_card.provenance(run, 4, str(base), None)
    assert about.tokens == 3000
    assert (about.licence, about.scores) == ({}, {})
    assert about.flags == {"recipe": "keep", "steps": 5}, "no paths of this machine"
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Base\n")
    assert model_card.provenance(run, 4, str(base), None).licence == {"license": "apache-2.0"}
    (base / "README.md").write_text("# Base without front matter\n")
    assert model_card.provenance(run, 4, str(base), None).licence == {}
    assert model_card.provenance(run, 4, "org/of-the-hub", None).licence == {}
    assert model_card.provenance(run, 6, None, None).tokens is None, "metrics are missing"
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n\xff\n[]\n{"step": 9}\n{"step": 4, "data/tok')
    assert model_card.provenance(run, 4, None, None).tokens == 3000, "lines that are no metrics"
    (run / "metrics.jsonl").unlink()
    assert model_card.provenance(run, 4, None, None).tokens is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"config": {}, "versions": {}}', None])
def test_a_record_that_cannot_be_read_is_named(run: Path, content: str | None) -> None:
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_text(content)
    with pytest.raises(
        InputError, match=r"run\.json cannot be read .*--resume auto, which writes it"
    ):
        model_card.provenance(run, 4, None, None)


def test_scores_are_a_table(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"MTEB": {"STS": 0.123456, "n": [1, "x"]}, "perplexity": 12}))
    about = model_card.provenance(run, 4, None, path)
    text = model_card.card("m", gem_config((400,), "isolated"), about, "transformers", "t", {})
    for line in ("| MTEB / STS | 0.1235 |", "| MTEB / n / 1 | x |", "| perplexity | 12 |"):
        assert line in text
    for content in ("[1]", "{", ""):
        path.write_text(content)
        with pytest.raises(InputError, match=r"--scores .*scores\.json"):
            model_card.provenance(run, 4, None, path)
    with pytest.raises(InputError, match=r"--scores .*never\.json cannot be read"):
        model_card.provenance(run, 4, None, tmp_path / "never.json")


def test_front_matter_is_what_the_hub_reads() -> None:
    about = Provenance(licence={"license": "mit"}, tokens=12_345, flags={"recipe": "keep"})
    gem = replace(gem_config((400, 401), "isolated"), base="org/base-1b", dimensions=(8, 16))
    text = model_card.card(
        "my-model", gem, about, "sentence-transformers", "feature-extraction", {}
    )
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": "org/base-1b",
        "library_name": "sentence-transformers",
        "license": "mit",
        "pipeline_tag": "feature-extraction",
        "tags": ["gem", "text-generation", "feature-extraction", "sentence-similarity"],
    }
    for part in ("# my-model", "org/base-1b", "2 summary tokens stand", "(mean)", "12,345", "keep"):
        assert part in card.text
    assert "first 8 or 16 dimensions" in card.text
    assert "0" * 64 in card.text, "the manifest"
    local = replace(gem, base="/data/models/some-base")
    text = model_card.card("m", local, about, "transformers", "text-generation", {})
    assert "some-base" in text
    assert "/data" not in text
    assert "base_model" not in text


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_what_cards_say_to_type_works(tokenizer_dir: Path, tmp_path: Path, k: int) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, k=k, dtype=torch.float32)
    cards = {path: blocks(path / "README.md") for path in (folder, folder / "model")}
    if k:
        cards[folder / "model-embed"] = blocks(folder / "model-embed" / "README.md")
        text = (folder / "README.md").read_text()
        assert ("trust_remote_code=True" in text) == (k > 1)
    assert [len(found) for found in cards.values()] == ([3, 1, 1] if k else [1, 1])
    assert all(len(block.splitlines()) == 4 for found in cards.values() for block in found)
    script = "".join(
        f"os.chdir({str(path)!r})\n{block}" for path, found in cards.items() for block in found
    )
    subprocess.run([sys.executable, "-c", f"import os\n{script}"], check=True, capture_output=True)
