"""Training steps of whole models of real sizes on one GPU, beside what their plan said.

    python benchmarks/full_size.py --json out.json [--models llama3.2-1b]

Random weights and random words, all weights trained, bf16, every layer recomputed, rows of 8,192
tokens: `launch/train.py` as a user starts it, without checkpoints. Tokens a second, MFU and peak
memory are those of its own log; the plan is that of `launch/plan.py` for the same shards, file and
rows. What a plan says that this GPU cannot hold is not tried.
"""

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from planned import ROOT, script
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig

from gem_ds import hardware
from gem_ds.corpus import train_tokenizer
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser, whole
from gem_ds.model import architecture

STEPS, WARM = 7, 3
ROW_LENGTH = 8192
# DeepSpeed file, rows a micro-batch and rows a step of each model.
CASES: dict[str, tuple[str, int, int]] = {
    "llama3.2-1b": ("zero2.json", 2, 8),
    "llama3.1-8b": ("llama8b_1x141gb.json", 2, 2),
}
OTHER = ("zero2.json", 1, 2)  # a config.json


def words(folder: Path, n_tokens: int) -> int:
    """A tokenizer of so many tokens, in `folder`; how many of them are words."""
    specials = [train_tokenizer.BOS, train_tokenizer.EOS, train_tokenizer.PAD]
    vocabulary = {f"w{i}": i for i in range(n_tokens - len(specials))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{train_tokenizer.BOS} $A", special_tokens=[(train_tokenizer.BOS, len(vocabulary))]
    )
    train_tokenizer.save(tokenizer, folder)
    return len(vocabulary)


def config_of(shape: architecture.Shape) -> Any:
    """The Transformers configuration of a shape."""
    return AutoConfig.for_model(
        shape.family,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        sliding_window=shape.window,
    )


def prepare(folder: Path, shape: architecture.Shape, row_length: int, n_rows: int) -> None:
    """The model's configuration, and shards of random words, in `folder`."""
    config_of(shape).save_pretrained(folder / "config")
    # One token less for the summary: the padded vocabulary is then the model's own.
    n_words = words(folder / "tokenizer", shape.n_tokens - 1)
    rng = random.Random(0)
    size = min(500, row_length // 2)
    with (folder / "texts.jsonl").open("w") as stream:
        for _ in range(2 + n_rows * row_length // size):
            text = " ".join(f"w{rng.randrange(n_words)}" for _ in range(size))
            stream.write(json.dumps({"text": text}) + "\n")
    script(
        *("data_prep/shard.py", "--input", folder / "texts.jsonl"),
        *("--tokenizer", folder / "tokenizer", "--output", folder / "shards"),
        *("--row-length", row_length, "--summary-tokens", 1, "--workers", 1),
    )


def measure(model: str, row_length: int, folder: Path) -> dict[str, Any]:
    """Plan and log of one model's steps."""
    file, rows, rows_per_step = CASES.get(model, OTHER)
    shape = architecture.load(model)
    prepare(folder, shape, row_length, STEPS * rows_per_step)
    asked = ("--deepspeed", ROOT / "ds_configs" / file, "--rows-per-step", rows_per_step)
    asked += ("--rows-per-micro-batch", rows, "--shards", folder / "shards", "--recipe", "paper")
    # Memory without end: what does not fit here is to be said, not refused.
    plan = json.loads(
        script(
            *("launch/plan.py", "--model", model, *asked, "--alpha", 0.5, "--json"),
            *("--gpus", 1, "--gpu", "h200", "--gpu-memory", 1000),
        )
    )
    found: dict[str, Any] = {
        "model": model,
        "row_length": row_length,
        "file": file,
        "planned_gib": plan["gib"],
        "planned_tokens_per_second": plan["tokens_per_second"],
    }
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory / 2**30
        if plan["gib"] > has * hardware.MEMORY:
            return {**found, "not_tried": f"this GPU has {has:.0f} GiB"}
    script(
        *("launch/train.py", *asked, "--config", folder / "config", "--output", folder / "run"),
        *("--steps", STEPS, "--alpha-start", WARM, "--alpha", 0.5, "--save", "false"),
    )
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][WARM:]

    def median(name: str) -> float | None:
        values = [step[name] for step in steps if name in step]
        return statistics.median(values) if values else None

    return {
        **found,
        "tokens_per_second": median("speed/tokens_per_second"),
        "mfu": median("speed/mfu"),
        "gib": max(step["memory/gib"] for step in steps),
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--models", nargs="+", default=list(CASES), help="names or config.json")
    parser.add_argument("--row-length", type=whole(1, 2**24), default=ROW_LENGTH, help="tokens")
    args = parser.parse_args()
    print("| model | tokens/s | MFU | peak GiB | planned GiB |\n|---|---|---|---|---|")
    results, failed = [], []
    for model in args.models:
        try:
            with tempfile.TemporaryDirectory() as folder:
                r = measure(model, args.row_length, Path(folder))
        except InputError as error:  # the other models may do better
            failed.append(f"{model}: {error}")
            continue
        results.append(r)
        if "not_tried" in r:
            cells = [f"not tried: {r['not_tried']}", "", ""]
        else:
            mfu = f"{r['mfu']:.1%}" if r["mfu"] is not None else ""
            cells = [f"{r['tokens_per_second']:,.0f}", mfu, f"{r['gib']:.1f}"]
        print("|", " | ".join([model, *cells, f"{r['planned_gib']:.1f}"]), "|", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    run(main)
