"""Tokens a second of this trainer's steps and of a bare DeepSpeed loop's, in turns, on CPU ranks.

    python benchmarks/trainer.py [--ranks 2] [--rounds 5] [--steps 5] [--json out.json]

The bare loop is what one writes first: the demo's model as Transformers builds it, SDPA, its own
loss over rows of plain causal text; the same DeepSpeed file, optimizer, dtype and rows, which lie
in memory before it begins. The trainer's steps read, lay out, check and measure theirs: ``ntp``
mixed rows at alpha 0, ``views`` the same with a contrastive loss at alpha 0.5, whose views count as
the tokens that they are. Exit status 1 where the trainer has less than the share in `GOALS`.
"""

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import deepspeed
import torch
from encode_model import documentation
from planned import ROOT, config_of, launch, parser, script, start
from transformers import AutoModelForCausalLM

from gem_ds import distributed, errors
from gem_ds.flags import whole
from gem_ds.training import setup
from gem_ds.training.trainer import train_step

GOALS = {"ntp": 1.0, "views": 0.8}
ROW_LENGTH, WARM, ROWS = 512, 2, 8  # tokens, steps, rows a rank
SETTING = {
    "file": "zero3.json",
    "model": None,
    "config": str(ROOT / "examples" / "demo_llama.json"),
    "recipe": "keep",
    "kl_to_base": 0.0,
    "steps": 1000,
    "rows_per_micro_batch": 4,
    "gradient_checkpointing": False,
}
Take = Callable[[], int]  # one optimizer step; how many tokens of all ranks it computed


def prepare(folder: Path) -> None:
    """Shards of docstrings, cut as the demo cuts texts of which it knows nothing."""
    texts, tokenizer = folder / "texts.jsonl", folder / "tokenizer"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documentation()))
    sizes = ("--vocab-size", 4096, "--output", tokenizer)
    script("data_prep/train_tokenizer.py", "--input", texts, *sizes)
    how = ("--row-length", ROW_LENGTH, "--kinds", "plain=0.5,continuation=0.5")
    given = ("--input", texts, "--tokenizer", tokenizer, "--summary-tokens", 1)
    script("data_prep/shard.py", *given, "--output", folder / "shards", *how)


def trainer(run: setup.Run) -> Take:
    steps = count()
    return lambda: int(train_step(run, next(steps)).values["data/tokens"])


def bare(run: setup.Run) -> Take:
    """A loop over a model of the same shape, by the run's DeepSpeed file and of its rows."""
    lm_config = copy.deepcopy(run.engine.module.lm.config)  # its attention is the run's own
    dtype = next(run.engine.module.parameters()).dtype
    lm = AutoModelForCausalLM.from_config(lm_config, attn_implementation="sdpa", dtype=dtype)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=lm, optimizer=optimizer, config=run.engine.config)
    engine.train()
    batches = run.loader.step(0, with_targets=True, with_views=False)
    rows = run.config.rows_per_micro_batch * ROW_LENGTH
    texts = [batch.input_ids[0, :rows].view(-1, ROW_LENGTH) for batch in batches]
    n_tokens = sum(text.numel() for text in texts) * distributed.world_size()

    def take() -> int:
        for text in texts:
            loss = engine(input_ids=text, labels=text, use_cache=False).loss
            engine.backward(loss)
            engine.step()
        return n_tokens

    return take


def seconds_of(take: Take, steps: int) -> tuple[int, float]:
    """Tokens and seconds of some steps of all ranks."""
    torch.distributed.barrier()
    began = time.perf_counter()
    n_tokens = sum(take() for _ in range(steps))
    torch.distributed.barrier()
    return n_tokens, time.perf_counter() - began


def worker(folder: Path, out: Path) -> None:
    asked = json.loads((folder / "settings.json").read_text())
    with ExitStack() as stack:
        shared = {**SETTING, "rows_per_step": ROWS * int(os.environ["WORLD_SIZE"])}
        runs = {
            name: start(config_of(folder, name, {**shared, "alpha": alpha}), stack)
            for name, alpha in {"ntp": 0.0, "views": 0.5}.items()
        }
        ways = {"bare": bare(runs["ntp"]), **{n: trainer(run) for n, run in runs.items()}}
        for take in ways.values():
            seconds_of(take, WARM)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked["rounds"]):
            for name, take in ways.items():
                n_tokens, seconds = seconds_of(take, asked["steps"])
                rates[name].append(n_tokens / seconds)
    if distributed.rank() == 0:
        out.write_text(json.dumps(rates))


def shares(rates: dict[str, list[float]]) -> dict[str, float]:
    """The trainer's tokens a second as a share of the bare loop's, the median of the rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(rates[name], rates["bare"], strict=True))
        for name in GOALS
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--ranks", type=whole(1), default=2, help="processes")
    flags.add_argument("--rounds", type=whole(1), default=5, help="of every measurement")
    flags.add_argument("--steps", type=whole(1), default=5, help="of each way in a round")
    args = flags.parse_args()
    if args.measure:
        return worker(args.measure, args.out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        asked: dict[str, Any] = {"rounds": args.rounds, "steps": args.steps}
        rates = launch("trainer.py", folder, asked, args.ranks)
    found = shares(rates)
    print("| loop | tokens/s | share of the bare loop's | goal |\n|---|---|---|---|")
    for name, each in rates.items():
        share = f"{found[name]:.2f} | {GOALS[name]:.2f}" if name in found else "|"
        print(f"| {name} | {statistics.median(each):,.0f} | {share} |")
    if args.json:
        args.json.write_text(json.dumps({"tokens_a_second": rates, "shares": found}, indent=1))
    sys.exit(int(any(found[name] < goal for name, goal in GOALS.items())))


if __name__ == "__main__":
    errors.run(main)
