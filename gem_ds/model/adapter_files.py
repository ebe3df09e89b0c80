"""Adapters as tensors of a checkpoint: told apart from the base, merged into it, or written as
`peft` writes them. Weights are computed when they are looked up (`lazy_tensors`). Adapters at work
in a model are in `adapters`.

Shapes: C in and D out of a linear layer, R rank, k summary tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gem_ds.errors import InputError
from gem_ds.model import lazy_tensors
from gem_ds.model.lazy_tensors import Lazy, changed, renamed

NAME = "default"  # peft's, of a model's only adapter
FOLDER = "adapter"  # beside the exported model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """LoRA tensors named as in `peft`'s files, and the alpha that they were trained with."""

    lora: Mapping[str, Tensor]
    alpha: float

    def write(self, folder: Path, summary_tokens: Sequence[int], dtype: torch.dtype) -> None:
        """Write a new `folder` as `peft` does, as an activated LoRA of the summary tokens.

        Raises `InputError` for values that are not finite.
        """
        folder.mkdir()
        names = sorted({name.split(".")[-3] for name in self.lora})
        rank = next(len(tensor) for name, tensor in self.lora.items() if ".lora_A." in name)
        config = lora_config(names, rank, self.alpha, summary_tokens)
        config.target_modules = names  # a list: peft would write a set in any order
        config.inference_mode = True
        config.save_pretrained(str(folder))
        tensors = {f"base_model.model.{n}": t.to(dtype).contiguous() for n, t in self.lora.items()}
        check_finite(tensors)
        lazy_tensors.save(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` for a tensor with values that are NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{name} has values that are not finite (NaN or infinite), as of a run whose loss "
                "diverged; export an earlier checkpoint (--step)"
            )


def lora_config(
    layers: Iterable[str], rank: int, alpha: float, summary_tokens: Sequence[int] | None
) -> Any:
    """`peft`'s configuration for linear `layers` of these names; with `summary_tokens` an activated
    LoRA."""
    from peft import LoraConfig  # takes seconds to import; readers of plain exports need none

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=list(layers),
        alora_invocation_tokens=None if summary_tokens is None else list(summary_tokens),
    )


def separated(weights: Mapping[str, Tensor]) -> tuple[Lazy, Lazy]:
    """(the base's weights named as Transformers does, the adapters' as in `peft`'s files)."""
    lora = {name.replace(f".{NAME}.", "."): name for name in weights if ".lora_" in name}
    base = {name.replace(".base_layer.", "."): name for name in weights if ".lora_" not in name}
    return renamed(weights, base), renamed(weights, lora)


def merged(weights: Mapping[str, Tensor], alpha: float) -> Lazy:
    """The base's weights with the adapters added to them in fp32, as `peft` merges."""
    base, lora = separated(weights)

    def add(name: str, weight_DC: Tensor) -> Tensor:
        a_RC, b_DR = lora[name].float(), lora[name.replace(".lora_A.", ".lora_B.")].float()
        return weight_DC.float() + b_DR @ a_RC * (alpha / len(a_RC))

    return changed(
        base, {n.replace(".lora_A.", "."): partial(add, n) for n in lora if ".lora_A." in n}
    )


def with_rows(
    weights: Mapping[str, Tensor], config: Any, summary_tokens: Sequence[int], rows_kC: Tensor
) -> Lazy:
    """The weights with the summary tokens' rows in the input embedding of a model of this
    configuration."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    embedding = lm.get_input_embeddings()
    name = next(name for name, module in lm.named_modules() if module is embedding) + ".weight"

    def put(weight: Tensor) -> Tensor:
        weight = weight.to(rows_kC.dtype, copy=True)
        weight[list(summary_tokens)] = rows_kC
        return weight

    return changed(weights, {name: put})
