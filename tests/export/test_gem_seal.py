"""An export loads as it was written or not at all, by either loader, and says which file it is.

All damages to all files: benchmarks/damaged_exports.py.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import export_adapter, export_tiny, unseal
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from gem_ds import GemModel
from gem_ds.errors import InputError
from gem_ds.export import gem_seal
from gem_ds.inference.encoder import Encoder

TEXT = "Paris is the capital of France."


@pytest.fixture(scope="module")
def good(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_adapter(tokenizer_dir, tmp_path_factory.mktemp("good"), k=2)[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gem_ds" / "verified"


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def swap_words(path: Path) -> None:
    told = json.loads(path.read_text())
    vocab = told["model"]["vocab"]
    a, b = list(vocab)[100:102]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(told, ensure_ascii=False))


def spoil(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)


def pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


DAMAGES = [
    ("model/model.safetensors", flip, "is not as it was sealed"),
    ("model/model.safetensors", spoil, "model.safetensors has|is not as it was sealed"),
    ("model/model.safetensors", pickle, "is missing"),
    ("adapter/adapter_model.safetensors", flip, "is not as it was sealed"),
    ("adapter/adapter_model.safetensors", lambda path: os.truncate(path, 5000), "has 5,000 bytes"),
    ("model/tokenizer.json", swap_words, "tokenizer.json"),
    ("model/config.json", lambda path: path.write_text("{"), "has 1 bytes"),
    ("model/gem_config.json", Path.unlink, "is missing"),
    ("model/gem_seal.json", flip, "is damaged"),
    ("model/generation_config.json", flip, "is not as it was sealed"),
    ("model/pytorch_model.bin", lambda path: path.write_text("x"), "does not belong"),
    ("adapter/adapter_config.json", flip, "is not as it was sealed"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_damage_is_refused_by_both_loaders(copy, name, damage, message) -> None:
    damage(copy / name)
    with pytest.raises(InputError, match=message) as told:
        GemModel.from_pretrained(copy)
    assert Path(name).name in str(told.value)
    assert "--reseal" in str(told.value)
    assert "\n" not in str(told.value)
    if name == "model/gem_seal.json":  # the module has a seal of its own
        return
    damage(copy / "model-embed" / name)
    with pytest.raises(ValueError, match=message) as told:
        stock(copy)
    assert Path(name).name in str(told.value)


def stock(folder: Path) -> SentenceTransformer:
    embed = str(folder / "model-embed")
    return SentenceTransformer(embed, device="cpu", trust_remote_code=True)


@pytest.mark.parametrize("name", ["gem_seal.json", "gem_embedding.json", "1_Normalize/config.json"])
def test_the_modules_own_files_are_checked_by_its_loader(copy: Path, name: str) -> None:
    (copy / "model-embed" / name).unlink()
    with pytest.raises(ValueError, match=Path(name).name):
        stock(copy)


def test_a_seal_that_is_gone_is_noticed(copy: Path) -> None:
    (copy / "model" / "gem_seal.json").unlink()
    with pytest.raises(InputError, match=r"gem_seal\.json is missing"):
        Encoder.from_pretrained(copy)


def test_an_adapter_beside_a_model_without_one(
    good: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path)
    shutil.copytree(good / "adapter", folder / "adapter")
    with pytest.raises(InputError, match=r"adapter_config\.json does not belong to this export"):
        GemModel.from_pretrained(folder)


def test_notes_may_be_added_and_a_folder_moved(copy: Path, good: Path, tmp_path: Path) -> None:
    (copy / "model" / "README.md").write_text("Mine.")
    (copy / "model" / ".gitattributes").write_text("*.safetensors filter=lfs")
    (copy / "model" / "LICENSE").write_text("MIT")
    copy.rename(tmp_path / "elsewhere")
    vector = GemModel.from_pretrained(tmp_path / "elsewhere").encode(TEXT)
    assert np.array_equal(vector, GemModel.from_pretrained(good).encode(TEXT))


def test_links_are_followed_as_in_the_hubs_cache(copy: Path, good: Path) -> None:
    for path in (copy / "model").iterdir():
        path.unlink()
        path.symlink_to(good / "model" / path.name)
    GemModel.from_pretrained(copy)


def test_a_model_that_is_a_link_goes_with_the_adapter_beside_the_link(
    copy: Path, good: Path, tmp_path: Path
) -> None:
    shutil.move(copy / "model", tmp_path / "moved")
    (copy / "model").symlink_to(tmp_path / "moved")
    GemModel.from_pretrained(copy)
    flip(copy / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="adapter_model"):
        GemModel.from_pretrained(copy)


def test_a_memory_of_a_model_with_another_adapter_is_refused(
    good: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    model = GemModel.from_pretrained(good)
    memory = model.compress(TEXT)
    spare = tmp_path / "spare"
    shutil.copytree(good, spare)
    tensors = load_file(spare / "adapter" / "adapter_model.safetensors")
    tensors = {name: 2 * tensor for name, tensor in tensors.items()}
    save_file(tensors, spare / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="adapter_model"):
        GemModel.from_pretrained(spare)
    from gem_ds.export import reseal

    reseal.reseal(spare)
    with pytest.raises(InputError, match="made by another model"):
        GemModel.from_pretrained(spare).generate("x", [memory], max_new_tokens=1)


def large(folder: Path) -> Path:
    """A sealed folder whose weights are larger than their sample."""
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(os.urandom(2 * gem_seal.BLOCK * gem_seal.BLOCKS))
    gem_seal.write(folder, {path.name: gem_seal.entry(path)})
    return path


def test_large_weights_are_sampled_and_read_whole_once(tmp_path: Path, cache: Path) -> None:
    """What lies between two blocks is noticed at the first load, and whenever the file changed."""
    path = large(tmp_path / "x")
    gem_seal.check(path.parent)
    assert len(list(cache.iterdir())) == 1
    with path.open("r+b") as file:
        file.seek(gem_seal.BLOCK + 10)  # behind the first block
        file.write(b"damage")
    with pytest.raises(ValueError, match="is not as it was sealed"):
        gem_seal.check(path.parent)


def test_a_known_folder_is_read_in_samples(tmp_path: Path, monkeypatch) -> None:
    path = large(tmp_path / "x")
    gem_seal.check(path.parent)
    read: list[Path] = []
    whole = gem_seal._sha256
    monkeypatch.setattr(gem_seal, "_sha256", lambda path: read.append(path) or whole(path))
    gem_seal.check(path.parent)
    assert read == []
    gem_seal.check(path.parent, whole=True)
    assert read == [path]


@pytest.mark.parametrize("spoil", ["file", "nothing", "damaged"])
def test_without_a_cache_every_load_reads_all(
    tmp_path: Path, cache: Path, spoil: str, monkeypatch, capsys
) -> None:
    path = large(tmp_path / "x")
    if spoil == "file":
        cache.parent.parent.write_text("no folder")
    elif spoil == "nothing":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    else:
        gem_seal.check(path.parent)
        next(cache.iterdir()).write_text("[1]")
    monkeypatch.setattr(gem_seal, "ANNOUNCED", 1000)
    gem_seal.check(path.parent)
    assert f"in {path.parent}, once on this machine" in capsys.readouterr().err
    gem_seal.check(path.parent)
    assert bool(capsys.readouterr().err) == (spoil != "damaged")


def test_the_cache_forgets_folders_that_are_gone(tmp_path: Path, cache: Path) -> None:
    for name in "ab":
        path = large(tmp_path / name)
        gem_seal.check(path.parent)
        shutil.rmtree(path.parent)
    assert len(list(cache.iterdir())) == 1


def test_an_export_from_before_seals_loads_with_a_warning(copy: Path, capsys) -> None:
    unseal(copy, sealed=None, base_digest=None)
    GemModel.from_pretrained(copy)
    told = capsys.readouterr().err
    assert told.count("has no gem_seal.json") == 1
    assert f"launch/export.py --reseal {copy / 'model'}" in told


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model/model.safetensors", lambda path: os.truncate(path, 1000)),
        ("model/model.safetensors", pickle),
        ("model/model.safetensors", spoil),
        ("adapter/adapter_model.safetensors", lambda path: os.truncate(path, 1000)),
        ("adapter/adapter_model.safetensors", pickle),
        ("adapter/adapter_model.safetensors", spoil),
        ("adapter/adapter_config.json", lambda path: path.write_text("{")),
        ("model/tokenizer.json", lambda path: os.truncate(path, 1000)),
    ],
)
def test_without_a_seal_damage_is_one_sentence(copy: Path, name: str, damage) -> None:
    unseal(copy)
    damage(copy / name)
    with pytest.raises(InputError) as told:
        GemModel.from_pretrained(copy)
    assert str((copy / name).parent) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model/model.safetensors", lambda path: os.truncate(path, 1000)),
        ("model/model.safetensors", pickle),
        ("adapter/adapter_model.safetensors", Path.unlink),
        ("model/tokenizer.json", lambda path: os.truncate(path, 1000)),
        ("gem_embedding.json", lambda path: path.write_text("[")),
    ],
)
def test_so_it_is_in_what_sentence_transformers_saved(good, tmp_path, name, damage) -> None:
    stock(good).save(str(tmp_path / "model-embed"))
    damage(tmp_path / "model-embed" / name)
    with pytest.raises(ValueError, match="copy") as told:
        stock(tmp_path)
    assert str(tmp_path / "model-embed") in str(told.value)
    assert "\n" not in str(told.value)
