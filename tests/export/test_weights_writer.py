"""Weights are written a shard at a time, in the form that a family's files have."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, tiny_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.errors import InputError
from gem_ds.export import weights_writer
from gem_ds.model.lazy_tensors import Lazy

MIXTURES = {
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8},
}


def written(folder: Path, lm: Any, shard_bytes: int, weights: Any = None) -> None:
    folder.mkdir(exist_ok=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(lm.config, dtype=torch.float32)
    state = {n: t for n, t in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    lm.config.save_pretrained(folder)
    weights_writer.write(folder, weights or state, empty, torch.float32, shard_bytes)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_every_family_is_loaded_as_it_was(family: str, tmp_path: Path) -> None:
    lm = tiny_model(family, **MIXTURES.get(family, {}))
    lm.save_pretrained(tmp_path / "stock")
    for size in (10**9, 9_000):
        written(tmp_path / f"of-{size}", lm, size)
    names = {
        folder.name: {key for path in folder.glob("*.safetensors") for key in _keys(path)}
        for folder in tmp_path.iterdir()
    }
    assert names["stock"] == names["of-9000"] == names["of-1000000000"], "as Transformers writes"
    assert len(list((tmp_path / "of-9000").glob("*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "of-9000")
    for name, tensor in lm.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def _keys(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_no_more_than_a_shard_is_held(family: str, tmp_path: Path) -> None:
    lm = tiny_model(family, num_hidden_layers=6, **MIXTURES.get(family, {}))
    state = {n: t for n, t in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    alive: set[int] = set()
    most, asked = 0, []

    def read(name: str) -> torch.Tensor:
        nonlocal most
        gc.collect()
        tensor = state[name].clone()
        asked.append(name)
        alive.add(id(tensor))
        weakref.finalize(tensor, alive.discard, id(tensor))
        sizes[id(tensor)] = tensor.nbytes
        most = max(most, sum(sizes[i] for i in alive))
        return tensor

    sizes: dict[int, int] = {}
    shard = 40_000
    weights = Lazy({name: lambda name=name: read(name) for name in state})
    written(tmp_path, lm, shard, weights)
    assert sorted(asked) == sorted(state), "each is read once"
    total = sum(t.nbytes for t in state.values())
    layer = total / 6
    assert total > 4 * shard
    assert most <= shard + (layer if family == "mixtral" else max(sizes.values()))


def test_the_index_says_where_a_tensor_is(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    written(tmp_path, lm, 9_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in _keys(tmp_path / file)
    assert set(index["weight_map"]) == set(lm.state_dict())
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in lm.parameters())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in lm.parameters())
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == 64


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    weights = {**lm.state_dict(), "model.norm.weight": torch.zeros(31)}
    with pytest.raises(InputError, match=r"LlamaForCausalLM: model\.norm\.weight is \(31,\) inst"):
        written(tmp_path, lm, 10**9, weights)
