"""An export names its base by name and content, not by where it lay."""

from pathlib import Path

import pytest
from runs import llama_config

from gem_ds.export import base_names
from gem_ds.files import sha256


def test_a_path_is_named_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bases" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "bases")
    for path in ("llama", "./llama", "llama/", "../bases/llama", str(tmp_path / "bases/llama")):
        assert base_names.name_of(path) == "llama"
    monkeypatch.chdir(tmp_path / "bases" / "llama")
    assert base_names.name_of(".") == "llama"
    assert base_names.name_of("/gone/bases/llama") == "llama"
    assert base_names.name_of("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_names.name_of("gpt2") == "gpt2"


def test_the_digest_is_of_what_makes_the_model(tmp_path: Path) -> None:
    one, other = (llama_config(tmp_path / name) for name in ("a", "b"))
    before = base_names.digest_of(str(one))
    assert len(before) == 64
    assert base_names.digest_of(str(other)) == before
    (one / "README.md").write_text("Words.")
    assert base_names.digest_of(str(one)) == before
    (one / "model.safetensors").write_bytes(b"weights")
    assert base_names.digest_of(str(one)) != before
    config = one / "config.json"
    assert base_names.digest_of(str(config)) == sha256(config)


@pytest.mark.parametrize("name", ["nobody/nothing", "gone/to/where", "none"])
def test_a_base_that_is_not_here_has_none(name: str) -> None:
    assert base_names.digest_of(name) == ""
