"""Tiny random models of real architectures, exported as a training run would."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from gem_ds.attention.segments import SummaryAttention
from gem_ds.corpus import tokenization
from gem_ds.export.export import SHARD_GB, export
from gem_ds.export.gem_config import GemConfig
from gem_ds.model import adapter_files, adapters, language_model
from gem_ds.model.contrastive import Aggregation

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.3,  # so that attention differs from an average and logits from zero
}
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "llama-tied": LlamaConfig,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
    "gemma3-window": Gemma3TextConfig,
}
WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
TEXTS = [
    "A short one.",
    "x",
    "Split the string at every occurrence of the separator, and return a list of the parts.",
    "",
    "The words of this text are many; they go on and on, so that padding is needed by the others.",
    "  spaces\tand é, 漢字  ",
]


def gem_config(summary_tokens: tuple[int, ...], attention: SummaryAttention) -> GemConfig:
    return GemConfig(summary_tokens, attention, base="tiny", step=3, manifest="0" * 64)


def tiny(family: str, vocab_size: int, seed: int = 0) -> Any:
    """A random fp32 causal language model; ``-tied`` shares embedding and head."""
    config = CONFIGS[family](
        **SIZES,
        **(WINDOWED if family.endswith("-window") else {}),
        vocab_size=vocab_size,
        tie_word_embeddings=family == "llama-tied" or family.startswith("gemma3"),
    )
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # biases and norms too: their defaults would hide an exchanged tensor
        for parameter in lm.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return lm


def run_tokenizer(base: Path, folder: Path, k: int = 1) -> tuple[tokenization.Vocabulary, Any]:
    """The tokenizer of a run with `k` summary tokens, saved in `folder`."""
    vocab, ids = tokenization.add_summary_tokens(tokenization.load(base), k)
    tokenization.save(vocab, folder)
    return vocab, tuple(ids)


def export_tiny(
    base_tokenizer: Path,
    work: Path,
    family: str = "llama",
    k: int = 1,
    attention: SummaryAttention = "isolated",
    dtype: torch.dtype = torch.float32,
    generation: dict[str, Any] | None = None,
    aggregation: Aggregation = "mean",
    shard_gb: float = SHARD_GB,
    positions: int = 64,
) -> tuple[Any, Path]:
    """(the model as trained, its export folder)."""
    vocab, summary_tokens = run_tokenizer(base_tokenizer, work / "tokenizer", k)
    lm = tiny(family, vocab.size + 5)
    lm.config.max_position_embeddings = positions
    weights = {
        name: tensor
        for name, tensor in lm.state_dict().items()
        if name not in lm.all_tied_weights_keys
    }
    gem = replace(gem_config(summary_tokens, attention), aggregation=aggregation)
    output = work / "export"
    tokenizer = work / "tokenizer"
    export(weights, lm.config, tokenizer, gem, output, dtype, generation, shard_gb=shard_gb)
    return lm, output


def unseal(folder: Path, **changes: Any) -> None:
    """Make an export one that was never sealed, and change what its ``gem_config.json`` says."""
    for path in folder.rglob("gem_seal.json"):
        path.unlink()
    path = folder / "model" / "gem_config.json"
    told = json.loads(path.read_text()) | {"sealed": False} | changes
    path.write_text(json.dumps({name: x for name, x in told.items() if x is not None}))


def random_b(lm: Any) -> None:
    """Give every adapter an effect, as training does."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)


def export_adapter(
    base_tokenizer: Path, work: Path, family: str = "llama", k: int = 1, positions: int = 64
) -> tuple[Any, Path]:
    """(the base, whose vocabulary had to grow, the folder of its export with an adapter)."""
    vocab, tokens = run_tokenizer(base_tokenizer, work / "tokenizer", k)
    base = tiny(family, vocab.size - k)
    lm = tiny(family, vocab.size - k)
    lm.config.max_position_embeddings = positions
    language_model.add_rows(lm, vocab.size, vocab.size - k)
    adapters.inject(lm, "summary", 4, 8.0, tokens, 0)
    random_b(lm)
    state = {n: t for n, t in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    weights, lora = adapter_files.separated(state)
    rows_kC = torch.randn(k, 32, generator=torch.Generator().manual_seed(2))
    weights = adapter_files.with_rows(weights, lm.config, tokens, rows_kC)
    gem = replace(gem_config(tokens, "isolated"), adapter=True)
    adapter = adapter_files.Adapter(lora, 8.0)
    export(weights, lm.config, work / "tokenizer", gem, work / "out", torch.float32, None, adapter)
    return base, work / "out"
