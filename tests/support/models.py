"""Tiny random models of real families."""

import torch
from layouts import bounds_from
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.attention.forward import body
from gem_ds.attention.registry import make_plan
from gem_ds.layout import positions

WINDOW = 5
# What each family needs beside the shapes; "+window" has layers with a window of `WINDOW` tokens.
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral+window": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen2+window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 64},
    "gemma2+window": {"head_dim": 8, "sliding_window": WINDOW},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
    "gemma3_text+window": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"pad_token_id": 0},
    "phi3+window": {"pad_token_id": 0, "sliding_window": WINDOW},
    "olmo2": {},
    "gpt_neox": {},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": WINDOW,
    },
}
DENSE = [name for name in FAMILIES if name != "gpt_oss"]  # without a mixture of experts
MIXED = bounds_from([(7, 1, 6), (9, 0, 0), (4, 1, 0), (1, 1, 5)])


def tiny_model(family="llama", **extra):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.partition("+")[0],
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 128,
            **FAMILIES.get(family, {}),
            **extra,
        },
    )
    return AutoModelForCausalLM.from_config(config).eval()


def hidden_states(model, ids, bounds_D4, backend="sdpa", inputs_embeds=None, **kwargs):
    inputs = {"input_ids": ids[None]} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    return body(model)(
        **inputs,
        position_ids=torch.from_numpy(positions(bounds_D4)).to(ids.device)[None],
        gem_plan=make_plan(bounds_D4, backend, device=ids.device),
        use_cache=False,
        **kwargs,
    ).last_hidden_state[0]
