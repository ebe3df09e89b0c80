"""Writing a model's weights as sharded safetensors, a shard at a time.

Tensors are looked up, cast and written one after another, so that memory holds one output shard and
what a tensor is computed from. Where the weights come from is in `checkpoint`.

A family whose files name or cut its tensors otherwise than the model in memory does (mixtures of
experts) is written as its files are, which Transformers does here, a decoder layer at a time.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from gem_ds.errors import InputError
from gem_ds.model import lazy_tensors
from gem_ds.model.adapter_files import check_finite

PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def write(
    folder: Path, weights: Mapping[str, Tensor], lm: Any, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Write the weights of the Transformers model `lm` (without memory) in `dtype`.

    No shard has more than `shard_bytes`, unless a tensor has. Raises `InputError` if the weights
    are not those of the model, or not finite.
    """
    expected = _expected(weights, lm, dtype)
    on_disk = revert_weight_conversion(lm, expected)
    as_in_memory = {n: t.shape for n, t in on_disk.items()} == {
        n: t.shape for n, t in expected.items()
    }
    if as_in_memory:
        groups = [[name] for name in expected]
        order = list(expected)
    else:
        groups = _by_layer(expected)
        parts = ({name: expected[name] for name in group} for group in groups)
        order = [name for part in parts for name in revert_weight_conversion(lm, part)]
        assert set(order) == set(on_disk), "a conversion reaches beyond a layer"
    split = split_torch_state_dict_into_shards(
        {name: on_disk[name] for name in order},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in split.filename_to_tensors}
    for name, tensor in _converted(weights, lm, groups, expected, as_in_memory):
        file = split.tensor_to_filename[name]
        shard = waiting[file]
        shard[name] = tensor
        check_finite({name: tensor})
        del tensor  # the shard alone holds it
        if len(shard) == len(split.filename_to_tensors[file]):
            lazy_tensors.save(shard, folder / file, metadata={"format": "pt"})
            del waiting[file], shard
    assert not waiting, f"never complete: {sorted(waiting)}"
    if split.is_sharded:
        total = sum(parameter.numel() for parameter in lm.parameters())
        metadata = {"total_parameters": total, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text + "\n")


def _expected(weights: Mapping[str, Tensor], lm: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors to write, without memory, after a check that weights of these names are there."""
    aliases = lm.all_tied_weights_keys.keys()
    of_model = lm.state_dict()
    wrong = [f"{name} is missing" for name in of_model.keys() - weights.keys() - aliases]
    wrong += [f"{name} is unknown" for name in weights.keys() - of_model.keys()]
    if wrong:
        raise _foreign(lm, f"{sorted(wrong)[0]} ({len(wrong)} such tensors)")
    kept = {n: t for n, t in of_model.items() if n not in aliases}
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in kept.items()}


def _converted(
    weights: Mapping[str, Tensor],
    lm: Any,
    groups: list[list[str]],
    expected: Mapping[str, Tensor],
    as_in_memory: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as they are written, in the order of the groups."""
    for group in groups:
        read = {name: _read(weights, name, lm, expected[name]) for name in group}
        done = read if as_in_memory else revert_weight_conversion(lm, read)
        del read
        for name in list(done):
            yield name, done.pop(name).contiguous()


def _read(weights: Mapping[str, Tensor], name: str, lm: Any, expected: Tensor) -> Tensor:
    tensor = weights[name]
    if tensor.shape != expected.shape:
        raise _foreign(lm, f"{name} is {tuple(tensor.shape)} instead of {tuple(expected.shape)}")
    return tensor.to(expected.dtype)


def _foreign(lm: Any, why: str) -> InputError:
    return InputError(
        f"the weights are not those of this {type(lm).__name__}: {why}; "
        "take config and weights from the same checkpoint"
    )


def _by_layer(names: Mapping[str, Any]) -> list[list[str]]:
    """The names in groups of one decoder layer each, and of what is outside of layers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r"(.*?\.\d+)\.", name)
        groups.setdefault(layer[1] if layer else "", []).append(name)
    return list(groups.values())
