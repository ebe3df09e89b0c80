"""The whole road on one machine, each step the command that a user would type.

    python examples/demo.py                                    # docstrings, a Llama from scratch
    python examples/demo.py --model FOLDER_OR_HUB_NAME --corpus FILES

Text in, a model that embeds and generates out, and one table, before and after. Runs on two CPU
processes, or on every GPU where there are some. Results are also in <work>/results.json.
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from demo_measures import measure, report
from transformers.utils import logging

from gem_ds.corpus import docstrings, train_tokenizer
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser

ROOT = Path(__file__).resolve().parent.parent
MARKER = "gem_ds-demo"  # in a work folder that the demo may empty
HELD_OUT, HELD_OUT_SHARE = 500, 0.02

# Flags of the trainings, for two cores: a base on plain rows, then the summary token.
# Docstrings have titles, so the pairs are (title, rest); an own corpus is split at random points.
# Positives are the answer, or the suffix, as a text of its own; docs/log.md has what was tried.
BASE = (
    "--alpha 0 --steps 600 --rows-per-step 4 --rows-per-micro-batch 2 --learning-rate 3e-3 "
    "--gradient-checkpointing false"
)
PAIRS = (
    "--kinds plain=0.1,pair=0.9 --context-field title --answer-field rest --row-length 192 "
    "--summary-tokens 1"
)
GEM = (
    "--steps 200 --rows-per-step 24 --rows-per-micro-batch 12 --warmup-steps 10 --final-rate 0 "
    "--learning-rate 1e-3 --contrastive-learning-rate 1e-3 --alpha 0.5 --alpha-start 0 "
    "--recipe keep --kl-to-base 0 --positives pair --gradient-checkpointing false"
)
OWN_CUTS = "--kinds plain=0.5,continuation=0.5 --row-length 512 --summary-tokens 1"
OWN_GEM = (
    "--steps 60 --rows-per-step 16 --rows-per-micro-batch 4 --warmup-steps 10 "
    "--learning-rate 2e-4 --contrastive-learning-rate 2e-4 --alpha 0.5 --alpha-start 0 "
    "--recipe keep --kl-to-base 0 --positives continuation"
)


class Demo:
    """The steps, with their commands printed, timed and stopped at the first that fails."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.seconds: dict[str, float] = {}
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.launcher = "deepspeed --quiet"
        if not torch.cuda.is_available():
            self.launcher += " --num_gpus 2"  # two CPU processes

    def step(self, name: str, command: str) -> None:
        """Run a command line from the repository's root."""
        print(f"\n$ {command}", flush=True)
        with self.timed(name):
            done = subprocess.run(shlex.split(command), env=self.environment)
        if done.returncode:
            print(f"error: this step failed (exit status {done.returncode})", file=sys.stderr)
            sys.exit(1)
        print(f"({self.seconds[name]:.0f} s)", flush=True)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def train(self, name: str, start: str, shards: Path, output: Path, flags: str) -> None:
        self.step(
            name,
            f"{self.launcher} --master_port {free_port()} launch/train.py "
            f"--deepspeed ds_configs/zero3.json {start} "
            f"--shards {shards} --output {output} {flags}",
        )


def free_port() -> int:
    """A port that nobody listens on now, so that another training can run beside this one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def empty_folder(work: Path) -> None:
    """Make the work folder new. Raises `InputError` if it holds what the demo did not write."""
    if work.exists() and any(work.iterdir()):
        if not (work / MARKER).exists():
            raise InputError(f"{work} holds other things; give the demo a --work of its own")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    (work / MARKER).touch()


def base_from_scratch(demo: Demo) -> Path:
    """A tokenizer and a small Llama, trained on plain rows of the corpus; the model's folder."""
    work = demo.work
    text = work / "corpus" / "train.jsonl"
    demo.step(
        "tokenizer",
        f"python data_prep/train_tokenizer.py --input {text} --vocab-size 4096 "
        f"--output {work / 'tokenizer'}",
    )
    demo.step(
        "shard plain",
        f"python data_prep/shard.py --input {text} --tokenizer {work / 'tokenizer'} "
        f"--output {work / 'shards-plain'} --kinds plain=1 --summary-tokens 0 --row-length 512",
    )
    start = "--config examples/demo_llama.json"
    demo.train("train base", start, work / "shards-plain", work / "run-base", BASE)
    demo.step(
        "export base",
        f"python launch/export.py --run {work / 'run-base'} --output {work / 'base'} "
        "--dtype float32",
    )
    return work / "base" / "model"


def hold_out(inputs: list[str], folder: Path) -> None:
    """Split a corpus: its last records, 2 % and at most 500, become ``dev.jsonl``.

    The title of a text is its first sentence. Raises `InputError` for a corpus that is too small.
    """
    n_texts = sum(1 for _ in train_tokenizer.texts_in(inputs))
    n_dev = min(HELD_OUT, int(n_texts * HELD_OUT_SHARE))
    if n_dev < 10:
        raise InputError(
            f"the corpus has {n_texts} texts; 500 or more are needed to measure on 2 %"
        )
    folder.mkdir(parents=True)
    dev: list[docstrings.Entry] = []

    def to_train() -> Iterator[docstrings.Entry]:
        for i, text in enumerate(train_tokenizer.texts_in(inputs)):
            if i < n_texts - n_dev:
                yield docstrings.Entry(f"text {i}", "", text)
                continue
            entry = docstrings.Entry(f"text {i}", *docstrings.split_title(text))
            if entry.title and entry.text:
                dev.append(entry)

    docstrings.write(to_train(), folder / "train.jsonl")
    docstrings.write(dev, folder / "dev.jsonl")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", help="your own base model: folder or hub name")
    parser.add_argument("--corpus", nargs="+", help="your own text: files or folders")
    parser.add_argument("--work", type=Path, default=Path("demo"), help="default: %(default)s")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if Path.cwd() != ROOT:
        raise InputError(f"run it from {ROOT}, so that its commands can be typed again")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    work = args.work
    empty_folder(work)
    demo = Demo(work)
    if args.corpus:
        with demo.timed("corpus"):
            hold_out(args.corpus, work / "corpus")
    else:
        demo.step("corpus", f"python data_prep/docstrings.py --output {work / 'corpus'}")
    base = args.model or str(base_from_scratch(demo))
    demo.step(
        "shard",
        f"python data_prep/shard.py --input {work / 'corpus' / 'train.jsonl'} --tokenizer {base} "
        f"--output {work / 'shards'} {OWN_CUTS if args.corpus else PAIRS}",
    )
    flags = OWN_GEM if args.model or args.corpus else GEM
    demo.train("train", f"--model {base}", work / "shards", work / "run", flags)
    demo.step("export", f"python launch/export.py --run {work / 'run'} --output {work / 'gem'}")
    with (work / "corpus" / "dev.jsonl").open(encoding="utf-8") as stream:
        dev = [json.loads(line) for line in stream]
    with demo.timed("measure"):
        results = measure(base, work / "gem", dev)
    results |= {"held_out": len(dev), "seconds": demo.seconds}
    (work / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{report(results)}\n\n{work}/results.json, {sum(demo.seconds.values()):.0f} s")


if __name__ == "__main__":
    run(main)
