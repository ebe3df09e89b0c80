"""What a decoder layer keeps for its backward pass, and what it computes again there."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # defines its operator
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from gem_ds.errors import InputError

_ATEN = torch.ops.aten
# What costs most of a layer's time: linear layers and fused attention. Results are a few times as
# large as the layer's input. (Not batched products: attention that is made of those has scores.)
PRODUCTS = [
    *(_ATEN.mm.default, _ATEN.addmm.default),
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.higher_order.flex_attention,
]


@dataclass(frozen=True)
class Recompute:
    """Of every `every` layers the first keeps only its input, and computes itself again.

    With `keep_products` it keeps the results of matrix products and attention too. With `offload`
    what it keeps waits in the host's pinned memory.
    """

    every: int = 1
    keep_products: bool = False
    offload: bool = False

    def apply(self, lm: Any) -> None:
        """Make a Transformers language model's layers do so while it trains."""
        how: dict[str, Any] = {"use_reentrant": False}  # ZeRO-3 fetches again in the second pass
        if self.keep_products:
            how["context_fn"] = partial(create_selective_checkpoint_contexts, PRODUCTS)
        try:
            lm.activation_checkpointing_enable(how, every_n_layers=self.every, offload=self.offload)
        except ValueError as error:
            raise InputError(
                f"model family {lm.config.model_type!r} cannot recompute its layers; give "
                "--gradient-checkpointing false"
            ) from error
