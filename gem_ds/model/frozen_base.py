"""The base model as a second model beside the one that is trained, frozen, in an engine of its own.

It lies as the trained model's parameters do: partitioned over the ranks under ZeRO-3, whole on
every rank otherwise. What it serves for is in `kl_reference`.

Shapes: N reference tokens, n of a chunk, C hidden size, V vocabulary.
"""

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from gem_ds.attention import forward
from gem_ds.model import language_model
from gem_ds.model.kl_reference import Reference


def frozen_config(ds_config: dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed configuration of a model without optimizer beside one that has `ds_config`."""
    zero = ds_config.get("zero_optimization", {})
    kept = {key: value for key, value in zero.items() if key != "offload_optimizer"}
    return {**ds_config, "zero_optimization": kept if zero.get("stage") == 3 else {"stage": 0}}


class _Hidden(nn.Module):
    """A language model whose forward gives hidden states."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, reference: Reference) -> Tensor:
        return language_model.hidden_states(self.lm, reference)


class FrozenBase:
    """A `kl_reference.Base` with weights of its own."""

    def __init__(self, lm: Any, vocab_size: int, ds_config: dict[str, Any]) -> None:
        """`ds_config` is of `frozen_config`, and `lm` of `language_model.load`, partitioned by
        it."""
        self.vocab_size = vocab_size
        module = _Hidden(lm.requires_grad_(False)).eval()
        self._engine, *_ = deepspeed.initialize(model=module, config=ds_config)
        self._engine.eval()

    @torch.no_grad()
    def hidden(self, reference: Reference) -> Tensor:
        hidden_SC: Tensor = self._engine(reference)
        return hidden_SC[: len(reference.index)]

    @torch.no_grad()
    def logits(self, hidden_nC: Tensor) -> Tensor:
        # The head by itself: a forward of the whole engine would begin another trace of the order
        # in which ZeRO-3 is to fetch parameters.
        return forward.logits(self._engine.module.lm, hidden_nC)
