"""Tiny random models of every causal language model family of the installed Transformers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Given where the family's configuration has the attribute.
SHAPES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_state": 16,
    "mamba_d_head": 16,
    "mamba_n_heads": 8,
    "mamba_expand": 2,
}
_BASIC = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_LATENT = {  # multi-head latent attention
    **_BASIC,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
_LFM2 = {**_BASIC, "layer_types": ["conv", "full_attention"] * 2}
# Given whole instead; a vocabulary is added.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3"), _LATENT),
    "lfm2": _LFM2,
    "lfm2_moe": {
        **_LFM2,
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gemma4_text": {
        **_BASIC,
        "num_hidden_layers": 6,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
    },
    "gemma3n_text": {
        **_BASIC,
        "num_hidden_layers": 10,
        "hidden_size_per_layer_input": 16,
        "head_dim": 16,
        "num_kv_shared_layers": 5,
    },
    "llama4_text": {
        **_BASIC,
        "intermediate_size_mlp": 96,
        "head_dim": 16,
        "num_local_experts": 2,
        "attention_chunk_size": 5,
    },
    "granitemoehybrid": {
        **_BASIC,
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "mamba_d_state": 16,
        "mamba_d_head": 16,
        "mamba_n_heads": 8,
        "mamba_expand": 2,
        "layer_types": ["mamba", "attention"] * 2,
    },
}
_VOCABULARY = ("vocab_size", "vocab_size_per_layer_input")
PARAMETERS = 30e6  # more is not tiny


def tiny_config(family: str, vocab_size: int = 64, pad: int = 0) -> Any:
    """A configuration of a family with tiny sizes."""
    text = AutoConfig.for_model(family, **OWN.get(family, {})).get_text_config()
    known = OWN.get(family) or {k: v for k, v in SHAPES.items() if hasattr(text, k)}
    about = {"pad_token_id": pad} if family not in OWN else {}
    about |= {name: vocab_size for name in _VOCABULARY if hasattr(text, name)}
    try:
        return type(text)(**known, **about)
    except Exception:  # a family that makes its own head size
        known = {k: v for k, v in known.items() if k != "head_dim"}
        return type(text)(**known, **about)


def tiny_model(config: Any) -> Any:
    """A random model of a configuration, in fp32. Raises `ValueError` where it is not tiny."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in model.parameters()) > PARAMETERS:
            raise ValueError("not tiny")
    return AutoModelForCausalLM.from_config(config).eval().float()
