"""Small runs that a plan is compared with: shards, a base, and steps of the trainer itself.

Started by `communication.py`, `memory_plan.py` and `trainer.py` under DeepSpeed's launcher, several
settings in one launch. A setting names a DeepSpeed file and the keys changed in it, and flags of
training.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from processes import free_port
from transformers import LlamaConfig, LlamaForCausalLM

from gem_ds.errors import InputError
from gem_ds.flags import Parser
from gem_ds.model import architecture
from gem_ds.planning import expected_batch, zero_settings
from gem_ds.planning.zero3_trace import Trained
from gem_ds.shards.manifest import Manifest
from gem_ds.training import setup
from gem_ds.training.config import TrainConfig
from gem_ds.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
ROW_LENGTH = 256
WIDTH, LAYERS = 128, 4
SEVERAL = ("parameters", "layers", "head")


def prepare(folder: Path) -> None:
    """Shards of random words and a random Llama that reads them, both in `folder`."""
    texts, tokenizer = folder / "texts.jsonl", folder / "base"
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(1, 9))) for _ in range(2000)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=60))}) for _ in range(300)]
    texts.write_text("\n".join(lines))
    script(
        *("data_prep/train_tokenizer.py", "--input", texts, "--vocab-size", 2000),
        *("--output", tokenizer),
    )
    script(
        *("data_prep/shard.py", "--input", texts, "--tokenizer", tokenizer),
        *("--output", folder / "shards", "--row-length", ROW_LENGTH, "--workers", 1),
        *("--kinds", "plain=0.5,continuation=0.5"),
    )
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=2000,
            max_position_embeddings=ROW_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder / "base")


def script(name: str, *flags: object) -> str:
    """What a script of the project prints, run at a port of its own.

    Raises `InputError` with its last line where it fails.
    """
    command = [sys.executable, str(ROOT / name), *map(str, flags)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise InputError(f"{name}: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
    return done.stdout


def parser(description: str | None) -> Parser:
    """The flags that all have, and those by which `launch` starts a benchmark's ranks."""
    found = Parser(description)
    found.add_argument("--json", type=Path, help="where to write all figures")
    for name in ("--measure", "--out"):
        found.add_argument(name, type=Path, help=argparse.SUPPRESS)
    found.add_argument("--local_rank", help=argparse.SUPPRESS)
    return found


def launch(benchmark: str, folder: Path, settings: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Run `benchmark --measure` on so many CPU ranks; what its rank 0 measured, by setting."""
    asked, out = folder / "settings.json", folder / f"measured-{ranks}.json"
    asked.write_text(json.dumps(settings))
    done = subprocess.run(
        [
            *(sys.executable, Path(sys.executable).parent / "deepspeed"),
            *("--num_gpus", str(ranks), "--master_port", str(free_port())),
            *(ROOT / "benchmarks" / benchmark, "--measure", folder, "--out", out),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


def config_of(folder: Path, name: str, setting: dict[str, Any]) -> TrainConfig:
    """The flags of a setting, with its changes to the DeepSpeed file."""
    setting = dict(setting)
    file = json.loads((ROOT / "ds_configs" / setting.pop("file")).read_text())
    file["bf16"] = {"enabled": setting.pop("bf16", False)}
    file["zero_optimization"].update(setting.pop("zero", {}))
    path = folder / f"{name}-{os.environ.get('RANK', 0)}.json"  # each rank reads it at once
    path.write_text(json.dumps(file))
    given = {
        **RECIPES.get(setting.pop("recipe", "keep"), {}),
        "model": str(folder / "base"),
        "shards": str(folder / "shards"),
        "output": str(folder / "runs" / name),
        "deepspeed": str(path),
        "steps": 10,
        "alpha_start": 0,
        "rehearse": False,
        **setting,
    }
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{key: value for key, value in given.items() if key in known})


def start(config: TrainConfig, stack: ExitStack) -> setup.Run:
    """The run, with all ranks there before its DeepSpeed file is read."""
    run = setup.open_run(config, stack)
    stack.callback(run.loader.close)
    return run


def shape_of(run: setup.Run) -> architecture.Shape:
    """As the plan has it, of the run's model."""
    config = run.engine.module.lm.config.to_dict()
    return architecture.of_config(config, "the run's model")


def zero_of(run: setup.Run) -> zero_settings.Zero:
    return zero_settings.of_json(run.engine.config)


def trained_of(run: setup.Run) -> Trained:
    config = run.config
    k = len(Manifest.load(config.shards).summary_tokens)
    adapted = config.adapter != "none"
    return Trained(config.adapter, config.lora_rank if adapted else 0, k)


def data_of(run: setup.Run) -> expected_batch.Data:
    return expected_batch.Data.of(Manifest.load(run.config.shards))
