"""Memories come back from files as they were, and damaged files are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gem_ds.errors import InputError
from gem_ds.inference import memory_files
from gem_ds.inference.memory_files import Memory


def made(seed: int, dtype: torch.dtype = torch.bfloat16) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(2, 3, 4, generator=generator).to(dtype) for _ in range(4)]
    return Memory(tuple(layers[:2]), tuple(layers[2:]), 5 + seed, 9 + seed, seed, "f" * 64)


def same(a: Memory, b: Memory) -> bool:
    tensors = zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
    told = [(m.n_tokens, m.position, m.next_token, m.model, m.dtype) for m in (a, b)]
    return all(torch.equal(x, y) for x, y in tensors) and told[0] == told[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_memory_and_its_metadata(tmp_path: Path, dtype: torch.dtype) -> None:
    memory = made(1, dtype)
    memory.save(tmp_path / "m.safetensors")
    assert same(Memory.load(tmp_path / "m.safetensors"), memory)
    assert memory.n_bytes == 4 * 2 * 3 * 4 * dtype.itemsize
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        told = file.metadata()
    assert json.loads(told["k"]) == 3
    assert json.loads(told["dtype"]) == str(dtype).removeprefix("torch.")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_several_by_id_in_files_and_folders(tmp_path: Path) -> None:
    memory_files.write({"b": made(1), "a": made(2)}, tmp_path / "0.safetensors")
    memory_files.write({"é/c": made(3)}, tmp_path / "1.safetensors")
    found = memory_files.read(tmp_path)
    assert list(found) == ["b", "a", "é/c"]
    assert all(same(found[name], made(i)) for name, i in (("b", 1), ("a", 2), ("é/c", 3)))
    with pytest.raises(InputError, match=r"0\.safetensors holds 2 memories; read them with"):
        Memory.load(tmp_path / "0.safetensors")
    memory_files.write({"a": made(4)}, tmp_path / "2.safetensors")
    with pytest.raises(InputError, match="another file has a memory 'a' as well"):
        memory_files.read(tmp_path)


def test_what_is_no_memory_is_refused(tmp_path: Path) -> None:
    made(1).save(tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-20])
    (tmp_path / "weights.safetensors").write_bytes(content.replace(b"gem_ds memories", b"x" * 15))
    (tmp_path / "lost.safetensors").write_bytes(content.replace(b'"positions"', b'"positionZ"'))
    (tmp_path / "few.safetensors").write_bytes(
        content.replace(b'"positions":"[', b'"positions":"{')
    )
    (tmp_path / "empty").mkdir()
    for name, said in {
        "cut.safetensors": "is damaged",
        "lost.safetensors": "is damaged",
        "few.safetensors": "is damaged",
        "weights.safetensors": "holds no memories",
        "empty": "holds no memories",
        "nowhere": "there is no file",
    }.items():
        with pytest.raises(InputError, match=said):
            memory_files.read(tmp_path / name)
