"""Real runs for tests: shards of random tokens, a tiny Llama, and ``launch/train.py``."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from helpers import write_file
from processes import free_port
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from gem_ds import layout
from gem_ds.corpus import tokenization
from gem_ds.shards.dataset import Row
from gem_ds.shards.documents import CONTINUATION, KINDS, PLAIN
from gem_ds.shards.manifest import Manifest

ROOT = Path(__file__).parents[2]


def random_row(rng, length, k, summary_tokens, n_vocab=400, gem_share=0.5, kind=CONTINUATION):
    """A full row of documents of very unequal lengths."""
    bounds, at = [], 0
    while at < length:
        n = min(int(rng.choice([4, 12, 40, length])), length - at)
        if k and n >= k + 4 and rng.random() < gem_share:
            m = int(rng.integers(2, n - k - 1))
            bounds.append((at, at + m, at + m + k, at + n))
        else:
            bounds.append(layout.plain(at, at + n))
        at += n
    bounds = np.array(bounds, dtype=np.int32)
    ids = rng.integers(2, n_vocab, length).astype(np.int32)
    ids[bounds[:, layout.START]] = 0
    for row in layout.summary_index(bounds):
        ids[row] = summary_tokens
    kinds = np.where(layout.is_gem(bounds), KINDS.index(kind), KINDS.index(PLAIN))
    return Row(ids, bounds, np.arange(len(bounds), dtype=np.int64), kinds.astype(np.int8))


def random_shards(
    folder,
    tokenizer_dir,
    n_rows=16,
    row_length=64,
    k=1,
    gem_share=0.5,
    seed=0,
    epochs=1,
    kind=CONTINUATION,
):
    """A finished folder of shards, written by the project's own writer."""
    vocab = tokenization.load(tokenizer_dir)
    base = tokenization.fingerprint(vocab)
    summary_tokens = []
    if k:
        vocab, summary_tokens = tokenization.add_summary_tokens(vocab, k)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tokenization.save(vocab, folder / "tokenizer")
    rows, files = [], []
    for epoch in range(epochs):
        part = [
            random_row(rng, row_length, k, summary_tokens, gem_share=gem_share, kind=kind)
            for _ in range(n_rows)
        ]
        path = folder / f"shard-{epoch:05d}.parquet"
        files.append(write_file(path, part, row_length, epoch))
        rows += part
    n_documents, n_gem = (sum(map(count, rows)) for count in (_n_documents, _n_gem))
    Manifest(
        row_length=row_length,
        n_rows=len(rows),
        n_documents=n_documents,
        n_tokens=sum(entry["n_tokens"] for entry in files),
        n_targets=sum(entry["n_targets"] for entry in files),
        summary_tokens=summary_tokens,
        bos_token_id=vocab.bos_token_id,
        eos_token_id=vocab.eos_token_id,
        vocab_size=vocab.size,
        base_tokenizer_sha256=base,
        tokenizer_sha256=tokenization.fingerprint(vocab),
        seed=seed,
        kinds={"": {PLAIN: 1 - gem_share, kind: gem_share}},
        epochs=epochs,
        counts={"documents": {PLAIN: n_documents - n_gem, kind: n_gem}},
        files=files,
        config={},
        versions={},
    ).save(folder)
    return folder


def _n_documents(row):
    return len(row.bounds)


def _n_gem(row):
    return int(layout.is_gem(row.bounds).sum())


def llama_config(folder, tied=True, vocab_size=402, positions=128):
    """The configuration of a two-layer Llama, in `folder`."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def random_base(folder, config, tokenizer_dir, seed=1):
    """A random base model of 400 tokens with its tokenizer, in a folder as one would download."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config))
    lm.resize_token_embeddings(400, mean_resizing=False)
    lm.save_pretrained(folder)
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    return folder


def fp32(config_name, folder, **zero):
    """One of the project's DeepSpeed files with bf16 off, for exact comparisons."""
    return _with_bf16(False, config_name, folder, zero)


def bf16(config_name, folder, **zero):
    """One of them with bf16 on, whatever the hardware computes in."""
    return _with_bf16(True, config_name, folder, zero)


def _with_bf16(enabled, config_name, folder, zero):
    config = json.loads((ROOT / "ds_configs" / config_name).read_text())
    config["bf16"] = {"enabled": enabled}
    config["zero_optimization"].update(zero)
    path = folder / f"{'bf16' if enabled else 'fp32'}-{config_name}"
    path.write_text(json.dumps(config))
    return path


def small_llama(folder, tokenizer_dir):
    """A folder with shards, a tiny Llama's configurations and a DeepSpeed file for its runs."""
    random_shards(folder / "shards", tokenizer_dir, n_rows=24, k=2, gem_share=0.8)
    pairs = {"n_rows": 12, "k": 2, "gem_share": 0.8, "kind": "pair"}
    random_shards(folder / "pairs", tokenizer_dir, **pairs)
    llama_config(folder / "tied")
    llama_config(folder / "untied", tied=False)
    # Nothing stays gathered: even the smallest parameter is partitioned.
    fp32("zero3.json", folder, stage3_param_persistence_threshold=0)
    return folder


def command(script, *flags, ranks=1):
    """A command line of the project under DeepSpeed's launcher, as a user types it."""
    launcher = [str(Path(sys.executable).parent / "deepspeed")]
    return [
        *(sys.executable, *launcher, "--num_gpus", str(ranks), "--master_port", str(free_port())),
        str(ROOT / script),
        *map(str, flags),
    ]


def train(*flags, ranks=1, deepspeed=ROOT / "ds_configs" / "zero3.json", check=True):
    """Run ``launch/train.py`` to its end; returns the finished process."""
    own = () if "--deepspeed" in flags else ("--deepspeed", deepspeed)
    done = subprocess.run(
        command("launch/train.py", *own, *flags, ranks=ranks),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    if check and done.returncode:
        raise AssertionError(
            f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        )
    return done


def metrics(run: Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
