"""What cannot be exported is refused, and nothing half-written is left."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import export_tiny, gem_config, run_tokenizer, tiny

from gem_ds.errors import InputError
from gem_ds.export import export, sentence_transformers_folder
from gem_ds.export.gem_config import read_gem_config


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"summary_tokens": [1], "summary_attention": "odd"}']
)
def test_a_damaged_gem_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gem_config.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        read_gem_config(tmp_path)


def test_an_output_with_something_in_it_is_left_alone(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine").write_text("precious")
    with pytest.raises(InputError, match="exists and is not empty"):
        export_tiny(tokenizer_dir, tmp_path)
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["mine"]
    (tmp_path / "export" / "mine").unlink()
    export_tiny(tokenizer_dir, tmp_path)  # an empty folder is taken


def test_a_failing_export_leaves_nothing(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sentence_transformers_folder, "write", full)
    with pytest.raises(InputError, match=r"could not be written \(No space"):
        export_tiny(tokenizer_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda w: w.update({"model.extra": torch.zeros(1)}), r"model\.extra is unknown"),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(9, 32)}),
            r"lm_head\.weight is \(9, 32\)",
        ),
        (lambda w: w.pop("lm_head.weight"), r"lm_head\.weight is missing"),
        (
            lambda w: w["model.norm.weight"][3].fill_(math.nan),
            r"norm\.weight has values that are not fi",
        ),
    ],
)
def test_foreign_weights_are_refused(
    tokenizer_dir: Path, tmp_path: Path, change: Any, message: str
) -> None:
    vocab, ids = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    lm = tiny("llama", vocab.size)
    weights = dict(lm.state_dict())
    change(weights)
    with pytest.raises(InputError, match=message):
        export.export(
            weights, lm.config, tmp_path / "tok", gem_config(ids, "isolated"), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_foreign_tokenizer_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    lm = tiny("llama", 401)
    with pytest.raises(InputError, match=r"summary tokens \[\], the checkpoint \[400\]"):
        export.export(
            lm.state_dict(),
            lm.config,
            tokenizer_dir,
            gem_config((400,), "isolated"),
            tmp_path / "o",
        )
