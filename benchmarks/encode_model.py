"""What benchmarks/encode.py measures with: a small export, and texts of known lengths."""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_ds.corpus import docstrings, tokenization, train_tokenizer
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.export.export import export
from gem_ds.export.gem_config import GemConfig

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def documentation() -> list[str]:
    """Text that every machine has: docstrings of the standard library."""
    files = [f for f in docstrings.source_files() if "/site-packages/" not in f[0]]
    return [entry.text for entry in docstrings.collect(files[:200])]


def make(folder: Path) -> Path:
    """Export a random Llama with one summary token, as if all its weights had been trained."""
    train_tokenizer.save(train_tokenizer.train(documentation(), VOCABULARY), folder / "base")
    vocab, summary = tokenization.add_summary_tokens(tokenization.load(folder / "base"), 1)
    tokenization.save(vocab, folder / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, vocab_size=VOCABULARY + 64, bos_token_id=0, eos_token_id=1)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {n: x for n, x in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    gem = GemConfig(tuple(summary), "isolated", "random", 0, "0" * 64)
    export(weights, config, folder / "tokenizer", gem, folder / "export", torch.float32)
    return folder / "export"


def texts(vocab: Vocabulary, n: int, shortest: int, longest: int, seed: int = 0) -> list[str]:
    """`n` texts of about `shortest` to `longest` tokens, all lengths as often."""
    rng = random.Random(seed)
    ids = vocab.backend.encode("\n\n".join(documentation()), add_special_tokens=False).ids
    found = []
    for _ in range(n):
        length = rng.randint(shortest, longest)
        at = rng.randrange(len(ids) - length)
        found.append(vocab.backend.decode(ids[at : at + length]))
    return found
