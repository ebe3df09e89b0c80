"""Attention that gives each token something of its own query, key and value, and of no other's.

With it a model's tokens have nothing to do with each other, unless something else mixes them; and
it notes what every layer asks of attention. For `compatibility`.

Shapes: T tokens of a stream, N heads, G key-value heads, H head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from gem_ds.errors import InputError

NAME = "gem_probe"
# Keyword arguments of attention that it obeys, or that do not change what it computes.
KNOWN = {"scaling", "softcap", "s_aux", "dropout", "is_causal", "position_ids", "use_cache"}
KNOWN |= {"gem_plan", "cache_position", "output_attentions", "output_hidden_states"}


class Asked(NamedTuple):
    """What one layer asked of attention."""

    layer: str
    rule: Callable[..., Tensor] | None  # of the mask: True where a query may see a key
    window: int | None
    more: tuple[str, ...]  # keyword arguments that attention here does not know


class OneToken:
    """In the place of a plan: attention that gives each token something of its own q, k and v."""

    def __init__(self, lm: Any) -> None:
        self.names = {module: name for name, module in lm.named_modules()}
        self.asked: list[Asked] = []
        self.dropout = 0.0

    def attend(
        self,
        module: nn.Module,
        query: Tensor,  # (1, N, T, H)
        key: Tensor,  # (1, G, T, H)
        value: Tensor,
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        **how: Any,
    ) -> tuple[Tensor, None]:
        """(1, T, N, H of the values)."""
        rule = _rule(attention_mask)
        more = tuple(key for key, value in how.items() if value is not None and key not in KNOWN)
        self.asked.append(Asked(self.names[module], rule, sliding_window, more))
        self.dropout = max(self.dropout, how.get("dropout") or 0.0)
        out = value + key.mean(-1, keepdim=True)
        out = out.repeat_interleave(query.shape[1] // out.shape[1], 1)
        return (out + query.mean(-1, keepdim=True)).transpose(1, 2).contiguous(), None


def _rule(mask: Any) -> Any:
    """What a mask was made by, if this is it or a view of it, and nobody has written to it."""
    if mask is None or mask._version:
        return None
    return getattr(mask if mask._base is None else mask._base, "rule", None)


def _attend(
    module: nn.Module, *tensors: Any, gem_plan: OneToken | None = None, **how: Any
) -> tuple[Tensor, None]:
    if gem_plan is None:
        raise InputError(
            f"{type(module).__name__} does not get the keyword arguments of its model's forward, "
            "so the GEM mask cannot reach it; choose another base"
        )
    return gem_plan.attend(module, *tensors, **how)


def _mask(q_length: int, kv_length: int, mask_function: Any, device: Any, **_: Any) -> Tensor:
    """The mask that a family asks Transformers for, with the rule that it was made by."""
    q, kv = torch.arange(q_length, device=device), torch.arange(kv_length, device=device)
    mask_TT = mask_function(0, 0, q[:, None], kv[None, :]).expand(q_length, kv_length)
    mask: Any = mask_TT[None, None].clone()
    mask.rule = mask_function
    return mask  # type: ignore[no-any-return]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
