"""Deliberate changes of an export are sealed by a command, which looks at them and says what they
are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exports import export_adapter, export_tiny
from runs import ROOT
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

from gem_ds import GemModel
from gem_ds.errors import InputError
from gem_ds.export import gem_embedding, reseal
from gem_ds.export.gem_config import read_gem_config

TEXT = "Paris is the capital of France."
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def good(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_adapter(tokenizer_dir, tmp_path_factory.mktemp("good"), k=2)[1]


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def double(path: Path) -> None:
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)


def agree(folder: Path) -> None:
    """Both loaders, which check the seals, give the same vector."""
    embed = str(folder / "model-embed")
    stock = SentenceTransformer(embed, device="cpu", trust_remote_code=True)
    assert stock.encode(TEXT) @ GemModel.from_pretrained(folder).encode(TEXT) > 0.9999


def command(*flags: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "launch/export.py"), *map(str, flags)]
    return subprocess.run(line, capture_output=True, text=True)


def test_the_command_verifies_and_seals(copy: Path) -> None:
    done = command("--verify", copy)
    assert done.returncode == 0, done.stderr
    assert "model verified: 8 files" in done.stdout
    double(copy / "adapter" / WEIGHTS)
    done = command("--verify", copy)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {copy / 'adapter' / WEIGHTS} has ")
    done = command("--reseal", copy)
    assert done.returncode == 0, done.stderr
    assert f"model: changed ../adapter/{WEIGHTS}" in done.stdout
    assert f"model-embed: changed adapter/{WEIGHTS}" in done.stdout
    assert command("--verify", copy).returncode == 0
    agree(copy)
    for wrong in (("--verify", copy, "--dtype", "float16"), ("--run", copy), ("--output", copy)):
        done = command(*wrong)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_change_changes_the_fingerprint_and_nothing_else_does(copy: Path) -> None:
    before = read_gem_config(copy / "model").fingerprint
    assert reseal.reseal(copy) == [
        f"{copy / part}: nothing has changed" for part in ("model", "model-embed")
    ]
    assert read_gem_config(copy / "model").fingerprint == before
    assert before in (copy / "README.md").read_text()
    double(copy / "adapter" / WEIGHTS)
    assert f"{copy / 'model'}: memories made before are another model's" in reseal.reseal(copy)
    now = read_gem_config(copy / "model").fingerprint
    assert now != before
    assert now in (copy / "README.md").read_text()


@pytest.mark.parametrize("part", ["", "model"])
def test_a_model_fine_tuned_by_transformers(tokenizer_dir: Path, tmp_path: Path, part: str) -> None:
    """model-embed/ gets its weights too; also with stock modules."""
    _, folder = export_tiny(tokenizer_dir, tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        lm.model.norm.weight.mul_(torch.linspace(0.5, 2, 32))
    lm.save_pretrained(folder / "model")
    with pytest.raises(InputError, match=r"--reseal"):
        GemModel.from_pretrained(folder)
    reseal.reseal(folder / part)
    agree(folder)


def test_what_sentence_transformers_saved(copy: Path, tmp_path: Path, capsys) -> None:
    """It is not sealed, and says so; sealed alone it is checked."""
    embed = copy / "model-embed"
    stock = SentenceTransformer(str(embed), device="cpu", trust_remote_code=True)
    stock.prompts = {"query": "query: "}
    os.umask(0o022)
    stock.save(str(tmp_path / "saved"))
    for path in (tmp_path / "saved").rglob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o644
    stock.save(str(embed))  # over what was sealed
    for folder in (tmp_path / "saved", embed):
        capsys.readouterr()
        SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
        assert f"WARNING: {folder} has no gem_seal.json" in capsys.readouterr().err
    assert "had no seal" in reseal.reseal(tmp_path / "saved")[0]
    SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert "WARNING" not in capsys.readouterr().err
    (tmp_path / "saved" / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(ValueError, match="config_sentence_transformers"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)


def test_changes_of_model_embed_alone_are_kept(copy: Path) -> None:
    (copy / "model-embed" / "config_sentence_transformers.json").write_text('{"prompts": {}}')
    reseal.reseal(copy)
    assert (copy / "model-embed" / "config_sentence_transformers.json").read_text()[
        2:9
    ] == "prompts"
    double(copy / "model-embed" / "adapter" / WEIGHTS)
    with pytest.raises(InputError, match=rf"model-embed/adapter/{WEIGHTS} is not the same as"):
        reseal.reseal(copy)
    shutil.rmtree(copy / "model-embed")
    reseal.reseal(copy)
    agree(copy)


def test_an_export_from_before_seals_gets_the_code_too(copy: Path) -> None:
    for path in copy.rglob("gem_seal.*"):
        path.unlink()
    (copy / "model-embed" / "gem_embedding.py").write_text("# an older one\n")
    told = json.loads((copy / "model-embed" / "gem_embedding.json").read_text())
    del told["sealed"]
    (copy / "model-embed" / "gem_embedding.json").write_text(json.dumps(told))
    assert "files, which had no seal" in reseal.reseal(copy)[0]
    code = (copy / "model-embed" / "gem_embedding.py").read_text()
    assert code == Path(gem_embedding.__file__).read_text()
    agree(copy)
    double(copy / "model-embed" / "adapter" / WEIGHTS)
    with pytest.raises(ValueError, match=WEIGHTS):
        agree(copy)


def spoil(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("inf")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model/model.safetensors", lambda path: os.truncate(path, 5000), "is damaged"),
        ("model/model.safetensors", Path.unlink, "lacks|cannot load|no file"),
        ("adapter/adapter_model.safetensors", spoil, "values that are not finite in base_model"),
        ("model/pytorch_model.bin", lambda path: path.write_text("x"), "is pickled"),
        ("model/tokenizer.json", lambda path: path.write_text("{"), "could not be read"),
        ("model/config.json", lambda path: path.write_text("{"), "cannot read the model"),
        ("model/gem_config.json", lambda path: path.write_text("{"), "is damaged"),
    ],
)
def test_what_makes_no_model_is_not_sealed(copy: Path, name: str, damage, message: str) -> None:
    before = (copy / "model" / "gem_seal.json").read_bytes()
    damage(copy / name)
    with pytest.raises(InputError, match=message):
        reseal.reseal(copy)
    assert (copy / "model" / "gem_seal.json").read_bytes() == before


def test_a_folder_without_a_seal_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no gem_seal\.json"):
        reseal.verify(tmp_path)
    for call in (reseal.verify, reseal.reseal):
        with pytest.raises(InputError, match="there is no folder"):
            call(tmp_path / "gem")
