"""What the checks of a base cost beside loading it, in processor seconds of one thread.

    python benchmarks/start_checks.py

A random model of the shape of Llama 3.2 1B is written to a folder once, and then loaded as a run
loads it, several times: its files and values are looked at, its weights read, the model tried,
and rows for summary tokens made.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_ds.attention import registry
from gem_ds.errors import run
from gem_ds.flags import Parser, whole
from gem_ds.model import base_model, language_model

VOCABULARY, SUMMARY_TOKENS = 128_256, 8
CHECKS = "files checked", "values checked", "model tried"


def write_base(folder: Path) -> None:
    """A random Llama of 1.2 billion parameters, in bf16."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def timed(seconds: dict[str, list[float]], part: str, call: Callable[[], Any]) -> Any:
    """The result of a call, whose processor seconds are noted."""
    began = time.process_time()
    result = call()
    seconds.setdefault(part, []).append(time.process_time() - began)
    return result


def load(folder: Path, dtype: torch.dtype, seconds: dict[str, list[float]]) -> None:
    """Load the base as `model.language_model.load` does, part by part."""
    config = timed(seconds, "configuration", lambda: base_model.read_config(folder))
    timed(seconds, "files checked", lambda: base_model.check_files(folder, config))
    lm = timed(seconds, "weights read", lambda: base_model.load(folder, dtype, config))
    timed(seconds, "values checked", lambda: base_model.not_finite(lm))
    seconds["weights read"][-1] -= seconds["values checked"][-1]  # `load` has just done so too
    timed(seconds, "model tried", lambda: registry.attach(lm))
    n_rows = VOCABULARY + SUMMARY_TOKENS
    timed(seconds, "rows made", lambda: language_model.add_rows(lm, n_rows, VOCABULARY))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=whole(1, 100), default=5, help="of which medians are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder))
        for dtype in (torch.float32, torch.bfloat16):
            seconds: dict[str, list[float]] = {}
            for _ in range(args.rounds):
                load(Path(folder), dtype, seconds)
            parts = {part: statistics.median(times) for part, times in seconds.items()}
            checks = sum(parts[part] for part in CHECKS)
            rest = sum(parts.values()) - checks
            told = ", ".join(f"{part} {value:.2f} s" for part, value in parts.items())
            print(f"{dtype}: {told}; checks {100 * checks / rest:.1f} % of the rest", flush=True)


if __name__ == "__main__":
    run(main)
