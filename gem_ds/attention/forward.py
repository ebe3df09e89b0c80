"""The forward pass of a causal language model of Transformers in two parts: states, then logits.

Losses use the parts, so that logits never stand for all tokens at once. `compatibility` compares
them with the family's own forward.

Shapes: T tokens in the stream, N of them, C hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shaping(NamedTuple):
    """What becomes of the head's output: ``y = scale x``, then ``softcap tanh(y / softcap)``."""

    scale: float = 1.0
    softcap: float | None = None


def shaping(lm: Any) -> Shaping:
    """How a language model shapes its logits: Cohere and Granite scale them, Gemma 2 caps them."""
    config = lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return Shaping(float(scale), getattr(config, "final_logit_softcapping", None))


def body(lm: Any) -> Any:
    """The language model without its head, which gives hidden states."""
    return lm.model if lm.base_model is lm and hasattr(lm, "model") else lm.base_model


def hidden_states(lm: Any, position_ids: Tensor, plan: Any, **inputs: Tensor) -> Tensor:
    """(T, C) last hidden states of one stream (1, T), with the attention of a plan."""
    # A mask that attention does not read: given one, Transformers makes none of its own, for which
    # the host would wait for the positions.
    mask = torch.empty(1, 1, 1, 1, device=position_ids.device)
    output = body(lm)(
        **inputs,
        position_ids=position_ids,
        attention_mask=mask,
        gem_plan=plan,
        use_cache=False,
    )
    hidden_TC: Tensor = output.last_hidden_state.squeeze(0)
    return hidden_TC


def logits(lm: Any, hidden_NC: Tensor) -> Tensor:
    """(N, V) next-token logits of hidden states."""
    logits_NV: Tensor = lm.get_output_embeddings()(hidden_NC)
    scale, softcap = shaping(lm)
    logits_NV = logits_NV * scale if scale != 1 else logits_NV
    return torch.tanh(logits_NV / softcap) * softcap if softcap else logits_NV
