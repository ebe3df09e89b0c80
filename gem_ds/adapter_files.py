"""Adapters as tensors of a checkpoint: told apart from the base, merged into it, or written as
`peft` writes them. Adapters at work in a model are the business of `adapters`.

Shapes: C in and D out of a linear layer, R rank, k summary tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

NAME = "default"  # peft's, of a model's only adapter
FOLDER = "adapter"  # beside the exported model
WHY_NO_EMBED = """\
This model embeds with an adapter (adapter/) that is on at the summary tokens alone.
Stock SentenceTransformers cannot switch an adapter by position, so there is no model-embed here.
Embed with launch/encode.py --model, or gem_ds.encode.Encoder; or, with one summary token, with
PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "adapter"), where the
embedding of a text is the last hidden state at the summary token behind it.
"""


@dataclass(frozen=True)
class Adapter:
    """LoRA tensors named as in `peft`'s files, and the alpha that they were trained with."""

    lora: Mapping[str, Tensor]
    alpha: float

    def write(self, folder: Path, summary_tokens: Sequence[int], dtype: torch.dtype) -> None:
        """Write a new `folder` as `peft` does, as an activated LoRA of the summary tokens."""
        folder.mkdir()
        names = sorted({name.split(".")[-3] for name in self.lora})
        rank = next(len(tensor) for name, tensor in self.lora.items() if ".lora_A." in name)
        config = lora_config(names, rank, self.alpha, summary_tokens)
        config.target_modules = names  # a list: peft would write a set in any order
        config.inference_mode = True
        config.save_pretrained(str(folder))
        tensors = {f"base_model.model.{n}": t.to(dtype).contiguous() for n, t in self.lora.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


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


def separated(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the base's weights named as Transformers does, the adapters' as in `peft`'s files)."""
    base, lora = {}, {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            lora[name.replace(f".{NAME}.", ".")] = tensor
        else:
            base[name.replace(".base_layer.", ".")] = tensor
    return base, lora


def merged(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The base's weights with the adapters added to them in fp32, as `peft` merges."""
    base, lora = separated(weights)
    for name in [name for name in lora if ".lora_A." in name]:
        a_RC, b_DR = lora[name].float(), lora[name.replace(".lora_A.", ".lora_B.")].float()
        target = name.replace(".lora_A.", ".")
        base[target] = base[target].float() + b_DR @ a_RC * (alpha / len(a_RC))
    return base


def write_rows(
    weights: dict[str, Tensor], config: Any, summary_tokens: Sequence[int], rows_kC: Tensor
) -> None:
    """Put the summary tokens' rows into the input embedding of a model of this configuration."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    embedding = lm.get_input_embeddings()
    name = next(name for name, module in lm.named_modules() if module is embedding) + ".weight"
    weights[name] = weights[name].to(rows_kC.dtype, copy=True)
    weights[name][list(summary_tokens)] = rows_kC
