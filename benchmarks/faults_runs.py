"""A small corpus and model, and runs of launch/train.py on it that can be disturbed."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from processes import free_port, living, until
from transformers import LlamaConfig

from gem_ds.checkpoints import checkpoint
from gem_ds.training.watchdog import FOLDER

ROOT = Path(__file__).resolve().parent.parent
SAVE_EVERY = 5
# Width and layers: for runs that are disturbed, and for one whose checkpoints take time to write.
SMALL, LARGE = (64, 2), (320, 6)


class Work:
    """A folder with shards, configurations and runs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if not (folder / "shards" / "manifest.json").exists():
            self._prepare()

    def _prepare(self) -> None:
        texts, tokenizer = self.folder / "texts.jsonl", self.folder / "tokenizer"
        rng = random.Random(0)
        words = ["".join(rng.choices("etaoinshr", k=rng.randint(1, 9))) for _ in range(2000)]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=80))}) for _ in range(800)]
        texts.write_text("\n".join(lines))
        tokenizing = ["--input", texts, "--vocab-size", 2048, "--output", tokenizer]
        python("data_prep/train_tokenizer.py", *tokenizing)
        flags = ["--input", texts, "--tokenizer", tokenizer, "--output", self.folder / "shards"]
        python("data_prep/shard.py", *flags, "--row-length", 128, "--workers", 1)
        vocab_size = json.loads((self.folder / "shards" / "manifest.json").read_text())[
            "vocab_size"
        ]
        for name, (width, layers) in {"small": SMALL, "large": LARGE}.items():
            LlamaConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                vocab_size=vocab_size,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                architectures=["LlamaForCausalLM"],
            ).save_pretrained(self.folder / name)

    def flags(self, name: str, steps: int, **more: Any) -> list[str]:
        """Of launch/train.py, for the run of a name."""
        given = {
            "deepspeed": ROOT / "ds_configs" / "zero3.json",
            "config": self.folder / "small",
            "shards": self.folder / "shards",
            "output": self.folder / name,
            "steps": steps,
            "rows_per_step": 8,
            "rows_per_micro_batch": 4,
            "save_every": SAVE_EVERY,
            "alpha_start": 10,
            "resume": "auto",
            **more,
        }
        return [str(x) for n, v in given.items() for x in (f"--{n.replace('_', '-')}", v)]

    def start(self, name: str, steps: int, ranks: int = 2, **more: Any) -> "Started":
        line = [sys.executable, str(Path(sys.executable).with_name("deepspeed"))]
        line += ["--num_gpus", str(ranks), "--master_port", str(free_port())]
        line += [str(ROOT / "launch/train.py"), *self.flags(name, steps, **more)]
        return Started(self.folder / name, line)

    def finish(self, name: str, steps: int, ranks: int = 2, **more: Any) -> Path:
        """A run to its end, unless it is there already; its folder."""
        done = checkpoint.up_to_latest(self.folder / name)
        if done and checkpoint.step_of(done[-1]) == steps:
            return self.folder / name
        begun = self.start(name, steps, ranks, **more)
        if begun.process.wait():
            raise SystemExit(f"error: {name} failed\n{begun.text()[-3000:]}")
        return begun.run

    def copy(self, source: Path, name: str, step: int | None = None) -> Path:
        """A copy of a run, set back to a step."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        if step is not None:
            latest = checkpoint.folder_of(target) / checkpoint.LATEST
            latest.write_text(checkpoint.name_of(step))
        return target


class Started:
    """A run under way, in a session of its own. Its output is in `log`, else beside its folder."""

    def __init__(self, run: Path, line: list[str], log: Path | None = None) -> None:
        self.run, self.log = run, log or run.with_suffix(".log")
        with self.log.open("a") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            self.process = subprocess.Popen(
                line, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def pid(self, rank: int) -> int | None:
        """Of the process of a rank, once it has said so."""
        with contextlib.suppress(OSError, ValueError):
            path = self.run / FOLDER / f"rank-{rank:05d}.json"
            told = int(json.loads(path.read_text())["pid"])
            if any(each.pid == told for each in living(self.process.pid)):
                return told
        return None

    def kill(self, number: int = signal.SIGKILL, rank: int | None = None) -> bool:
        """Send a signal to a rank or to all processes; whether somebody was there."""
        if rank is None:
            pids = [each.pid for each in living(self.process.pid)]
        else:
            pids = [pid for pid in [self.pid(rank)] if pid is not None]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)

    def is_gone(self, seconds: float) -> bool:
        """Whether all its processes are, after so many seconds at most."""
        gone = until(lambda: self.process.poll() is not None, seconds)
        return gone and until(lambda: not living(self.process.pid), 5)

    def text(self) -> str:
        return self.log.read_text()


def python(script: str, *arguments: object) -> None:
    line = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {script} failed\n{done.stderr[-3000:]}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's ``metrics.jsonl``."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def starts(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``starts.jsonl``."""
    path = run / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_bits(a: Path, b: Path) -> bool:
    """Whether the last checkpoints of two runs have the same weights, bit for bit."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        one, other = (checkpoint.load_weights(checkpoint.find(run)) for run in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
