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
_GPTJ = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8}
_EXPERTS = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
_INDEXED = {**_LATENT, "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2}
_SEQ2SEQ = {
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "max_position_embeddings": 256,
}
_GEMMA4 = {
    **_BASIC,
    "num_hidden_layers": 6,
    "head_dim": 16,
    "num_kv_shared_layers": 0,
    "per_layer_config": {"05": {"head_dim": 16}},
}
_GEMMA4_TEXT = {
    **_BASIC,
    "num_hidden_layers": 6,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
}
_GEMMA3N = {
    **_BASIC,
    "num_hidden_layers": 10,
    "hidden_size_per_layer_input": 16,
    "head_dim": 16,
    "num_kv_shared_layers": 5,
}
_LLAMA4 = {
    **_BASIC,
    "intermediate_size_mlp": 96,
    "head_dim": 16,
    "num_local_experts": 2,
    "attention_chunk_size": 5,
}
_QWEN4 = {
    **_BASIC,
    **_EXPERTS,
    "head_dim": 16,
    "shared_expert_intermediate_size": 48,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
    "hc_lowrank": 16,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_BYTES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
# Given whole instead; a vocabulary is added.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3"), _LATENT),
    **dict.fromkeys(("axk1", "youtu"), _LATENT),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa"), _INDEXED),
    **dict.fromkeys(("codegen", "gptj"), _GPTJ),
    "lfm2": _LFM2,
    "lfm2_moe": {**_LFM2, **_EXPERTS},
    "gemma3n_text": _GEMMA3N,
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma4_text": _GEMMA4_TEXT,
    "gemma4": {"text_config": _GEMMA4_TEXT},
    "gemma4_unified_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "llama4_text": _LLAMA4,
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
    "blenderbot": _SEQ2SEQ,
    "plbart": _SEQ2SEQ,
    "whisper": {**_SEQ2SEQ, "max_target_positions": 256},
    "prophetnet": {
        "hidden_size": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": 256,
        "is_decoder": True,
        "add_cross_attention": False,
    },
    "blt": {
        "encoder_hash_byte_group_vocab": 100,
        "encoder_config": {**_BYTES, "num_hidden_layers": 1, "hidden_size_global": 64},
        "decoder_config": {**_BYTES, "num_hidden_layers": 2, "hidden_size_global": 64},
        "global_config": {**_BYTES, "num_hidden_layers": 2},
        "patcher_config": {**_BYTES, "num_hidden_layers": 1},
    },
    "cohere_compass_text": {
        **_BASIC,
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_top_k": 2},
    },
    "dots3_note_text": {
        **_INDEXED,
        "num_hidden_layers": 4,
        "shared_experts_intermediate_size": 48,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "sliding_window": 5,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "emu3": {"text_config": _BASIC},
    "falcon_h1": {
        **_BASIC,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
    },
    "git": {
        **_ENCODER,
        "vision_config": {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4},
    },
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 5,
        "max_position_embeddings": 256,
    },
    "longcat_flash": {
        **_LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 96,
        "head_dim": 8,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 48,
    },
    "mamba2": {
        "hidden_size": 64,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 2,
        "num_hidden_layers": 3,
    },
    "mllama": {"text_config": {**_BASIC, "cross_attention_layers": [1]}},
    "phi4_multimodal": {
        **_BASIC,
        "vision_config": {**_BYTES, "num_hidden_layers": 2, "image_size": 28},
        "audio_config": {**_BYTES, "num_blocks": 1},
    },
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "reformer": {
        "hidden_size": 64,
        "attention_head_size": 16,
        "num_attention_heads": 4,
        "feed_forward_size": 96,
        "axial_pos_embds": False,
        "max_position_embeddings": 256,
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "d_head": 16},
    "xmod": {**_ENCODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        **_BASIC,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        **_BASIC,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "n_mamba_heads": 8,
        "mamba_d_state": 16,
        "use_mamba_kernels": False,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zaya": {
        **_BASIC,
        **_EXPERTS,
        "num_experts_per_tok": 1,
        "head_dim": 16,
        "router_hidden_size": 16,
        "layer_types": ["hybrid"] * 4,
    },
}
_VOCABULARY = ("vocab_size", "vocab_size_per_layer_input")
PARAMETERS = 30e6  # more is not tiny


def tiny_config(family: str, vocab_size: int = 64, pad: int = 0) -> Any:
    """A configuration of a family with tiny sizes."""
    about = {**dict.fromkeys(_VOCABULARY, vocab_size), "pad_token_id": pad}
    if family in OWN:
        own = OWN[family]
        if "text_config" in own:
            return AutoConfig.for_model(family, text_config={**own["text_config"], **about})
        empty = AutoConfig.for_model(family)
        known = {name: value for name, value in about.items() if hasattr(empty, name)}
        return AutoConfig.for_model(family, **own, **known)
    text = AutoConfig.for_model(family).get_text_config()
    known = {name: x for name, x in {**SHAPES, **about}.items() if hasattr(text, name)}
    try:
        return type(text)(**known)
    except Exception:  # a family that makes its own head size
        return type(text)(**{name: x for name, x in known.items() if name != "head_dim"})


def tiny_model(config: Any) -> Any:
    """A random model of a configuration, in fp32. Raises `ValueError` where it is not tiny."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in model.parameters()) > PARAMETERS:
            raise ValueError("not tiny")
    return AutoModelForCausalLM.from_config(config).eval().float()


@torch.no_grad()
def randomize(lm: Any, seed: int = 7) -> None:
    """Add noise to all weights: what begins as zeros or ones would hide that it is not used."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in lm.state_dict().items():
        if tensor.is_floating_point() and name not in lm.all_tied_weights_keys:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise, alpha=0.15 if tensor.ndim > 1 else 0.1)
