"""Data preparation: speed, memory, fill and reading, against the bare tokenizer and datatrove.

    python benchmarks/prepare.py --corpus corpus.jsonl --tokenizer base --json out.json
    python benchmarks/prepare.py --corpus … --tokenizer … --parts memory --large-mb 10000

Speed is in MB/s of UTF-8 text. What is compared runs in turns, in a random order, each in a process
of its own, and ratios are medians over the rounds. "One core" is one: the process is bound to it.
Some minutes; Linux only.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gem_ds import inputs, layout, packing, sharding, sources
from gem_ds.documents import Document
from gem_ds.records import Skip
from gem_ds.shards import Shards

ROOT = Path(__file__).resolve().parents[1]
ROW = 8192
PARTS = ("encode", "datatrove", "workers", "fill", "memory", "reading", "training")
BATCHES = (32, 128, 1000)  # texts a call of the bare tokenizer: the best of them counts

# Prints the seconds that the tokenizer alone takes, texts in memory, best batch size.
BARE = """
import json, os, sys, time
from tokenizers import Tokenizer
texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
tokenizer.encode_special_tokens = True
def seconds(size):
    began = time.perf_counter()
    for i in range(0, len(texts), size):
        tokenizer.encode_batch_fast(texts[i : i + size], add_special_tokens=False)
    return time.perf_counter() - began
tokenizer.encode_batch_fast(texts[:100], add_special_tokens=False)
print(seconds(int(sys.argv[3])))
"""
# Prints the seconds of one worker for all units: text to shard, hashed and synced.
WORKER = """
import functools, sys, time
from pathlib import Path
from gem_ds import job, local, sharding
from gem_ds.units import Plan
folder = Path(sys.argv[1])
plan = Plan.load(folder)
job.load(folder, plan.digest)
began = time.perf_counter()
for unit in local.in_order(plan):
    sharding.write_unit(unit, lambda n: None, folder=folder, digest=plan.digest)
print(time.perf_counter() - began)
"""
# datatrove's own pipeline from JSONL to token files, one task.
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    corpus, tokenizer, output, eos = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(corpus),
            DocumentTokenizer(output, tokenizer_name_or_path=tokenizer, eos_token=eos),
        ],
        tasks=1, workers=1, logging_dir=output + "-logs",
    ).run()
"""


def run(command: list[Any], cores: set[int] | None = None) -> tuple[float, str]:
    """Wall seconds and standard output of a command, bound to `cores`."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds, done.stdout


class Bench:
    """The corpus in a form that everybody reads, and where results go."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args = args
        self.work = work
        self.tokenizer = args.tokenizer
        self.corpus = work / "corpus" / "corpus.jsonl"
        self.n_bytes = self._write(self.corpus, args.mb * 1_000_000)
        self.core = {max(os.sched_getaffinity(0))}

    def _texts(self) -> Iterator[str]:
        found = inputs.find(self.args.corpus)
        for block in sources.blocks(found, sources.whole(found), lambda _: ["text"]):
            for record in block.records:
                try:
                    yield record.text("text")
                except Skip:
                    continue

    def _write(self, path: Path, n_bytes: int) -> int:
        """As much text, over and over if need be, as JSONL; the bytes of text written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with path.open("w", encoding="utf-8") as out:
            while written < n_bytes:
                for text in self._texts():
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    written += len(text.encode())
                    if written >= n_bytes:
                        break
        return written

    def shard(self, *flags: Any, corpus: Path | None = None) -> list[Any]:
        """The command, into a new folder."""
        output = self.work / "shards"
        shutil.rmtree(output, ignore_errors=True)
        return [
            *(sys.executable, "data_prep/shard.py", "--input", corpus or self.corpus),
            *("--tokenizer", self.tokenizer, "--output", output, "--row-length", ROW, *flags),
        ]

    def rounds(self, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Seconds of each contestant, round by round."""
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        order = list(contestants)
        for _ in range(self.args.rounds):
            random.shuffle(order)
            for name in order:
                seconds[name].append(contestants[name]())
        return seconds

    def encode(self) -> dict[str, Any]:
        def ours() -> float:
            run([*self.shard("--only-plan")], self.core)
            return float(run([sys.executable, "-c", WORKER, self.work / "shards"], self.core)[1])

        def bare(size: int) -> float:
            words = [sys.executable, "-c", BARE, self.corpus, self.tokenizer, size]
            return float(run(words, self.core)[1])

        seconds = self.rounds(
            {"worker": ours, **{f"bare {n}": (lambda n=n: bare(n)) for n in BATCHES}}  # type: ignore[misc]
        )
        best = min(BATCHES, key=lambda n: statistics.median(seconds[f"bare {n}"]))
        return self._compared(seconds, "worker", f"bare {best}")

    def datatrove(self) -> dict[str, Any]:
        config = json.loads((Path(self.tokenizer) / "tokenizer_config.json").read_text())
        eos = config["eos_token"]
        eos = eos["content"] if isinstance(eos, dict) else eos
        script = self.work / "datatrove_run.py"
        script.write_text(DATATROVE)

        def theirs() -> float:
            output = self.work / "datatrove"
            for path in (output, Path(f"{output}-logs")):
                shutil.rmtree(path, ignore_errors=True)
            tokenizer = Path(self.tokenizer) / "tokenizer.json"
            command = [sys.executable, script, self.corpus.parent, tokenizer, output, eos]
            return run(command, self.core)[0]

        return self._compared(
            self.rounds(
                {"ours": lambda: run(self.shard("--workers", 1), self.core)[0], "theirs": theirs}
            ),
            *("ours", "theirs"),
        )

    def workers(self) -> dict[str, Any]:
        flags = ("--unit-megabytes", max(1, self.args.mb // 32))
        found = self.rounds(
            {
                f"{n} workers": (lambda n=n: run(self.shard("--workers", n, *flags))[0])  # type: ignore[misc]
                for n in (1, 2)
            }
        )
        return self._compared(found, "2 workers", "1 workers")

    def _compared(self, seconds: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
        ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
        speeds = {n: self.n_bytes / 1e6 / statistics.median(s) for n, s in seconds.items()}
        return {"MB/s": speeds, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}

    def fill(self) -> dict[str, Any]:
        """Of one unit of 256 MB, 64 million tokens, window by window as a unit does."""
        found = {}
        for name, median, sigma in (
            ("web", 700, 1.0),
            ("pairs", 1500, 0.8),
            ("sentences", 25, 0.5),
        ):
            rng = np.random.default_rng(0)
            n = int(64e6 / (median * np.exp(sigma**2 / 2)))
            lengths = np.clip(rng.lognormal(np.log(median), sigma, n), 2, ROW).astype(int)
            packer = packing.Packer(ROW, "0")
            rows, at = 0, 0
            while at < n:
                sizes = np.cumsum(lengths[at : at + sharding.WINDOW_TEXTS])
                end = at + int(np.searchsorted(sizes, sharding.WINDOW_TOKENS)) + 1
                window = [
                    Document(np.zeros(m, dtype=np.int32), layout.plain(0, int(m)), "plain", 0)
                    for m in lengths[at:end]
                ]
                at = end
                rows += sum(1 for _ in packer.rows(window, last=at >= n))
            found[name] = float(lengths.sum() / (rows * ROW))
        return found

    def memory(self) -> dict[str, Any]:
        """Peak resident memory of the largest worker, from the kernel, while the command runs."""
        found: dict[str, Any] = {}
        for mb in (10, self.args.large_mb):
            corpus = self.work / f"{mb}mb.jsonl"
            self._write(corpus, mb * 1_000_000)
            command = self.shard("--workers", self.args.memory_workers, corpus=corpus)
            began = time.perf_counter()
            process = subprocess.Popen(
                [str(word) for word in command], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            peaks: dict[int, int] = {}
            while process.poll() is None:
                for pid in descendants(process.pid):
                    peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))
                time.sleep(0.25)
            if process.returncode:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            found[f"{mb} MB"] = {
                "worker, MB": max(peaks.values()) * 1024 / 1e6,
                "seconds": time.perf_counter() - began,
            }
            corpus.unlink()
        small, large = (entry["worker, MB"] for entry in found.values())
        return found | {"large / small": large / small}

    def reading(self) -> dict[str, Any]:
        run(self.shard("--workers", 2, "--kinds", "plain=1"))
        reader = Shards(self.work / "shards")
        order = np.random.default_rng(0).permutation(len(reader))
        random_rows, sequential = [], []
        for _ in range(self.args.rounds):
            reader = Shards(self.work / "shards")
            began = time.perf_counter()
            for i in order:
                reader.read(int(i))
            random_rows.append(len(order) / (time.perf_counter() - began))
            reader = Shards(self.work / "shards")
            began = time.perf_counter()
            n_bytes = sum(reader.read(i).input_ids.nbytes for i in range(len(reader)))
            sequential.append(n_bytes / 1e6 / (time.perf_counter() - began))
        return {
            "random rows/s": statistics.median(random_rows),
            "sequential MB/s of tokens": statistics.median(sequential),
            "rows": len(reader),
        }

    def training(self) -> dict[str, Any]:
        """The share of a step that a real training of a small model waits for its data."""
        run(self.shard("--workers", 2))
        run_folder = self.work / "run"
        shutil.rmtree(run_folder, ignore_errors=True)
        config = self.work / "model"
        config.mkdir(exist_ok=True)
        model = json.loads((Path(self.tokenizer) / "config.json").read_text())
        model |= {"max_position_embeddings": ROW, "num_hidden_layers": 2}
        (config / "config.json").write_text(json.dumps(model))
        run(
            [
                *(sys.executable, "launch/train.py", "--deepspeed", "ds_configs/zero3.json"),
                *("--config", config, "--shards", self.work / "shards", "--output", run_folder),
                *("--steps", 8, "--rows-per-step", 2, "--rows-per-micro-batch", 1),
                *("--alpha-start", 0),
            ]
        )
        lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").open()]
        steps = [line for line in lines if "speed/data_seconds" in line][2:]
        waits = [line["speed/data_seconds"] / line["speed/step_seconds"] for line in steps]
        return {
            "share of a step": statistics.median(waits),
            "step, s": statistics.median(line["speed/step_seconds"] for line in steps),
        }


def descendants(pid: int) -> Iterator[int]:
    """All processes below one, itself left out."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def peak_kib(pid: int) -> int:
    """Peak resident memory of a process; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) if lines else 0


def report(results: dict[str, Any]) -> str:
    """A line of Markdown for each figure."""
    lines = ["| part | figure | |", "|---|---|---|"]
    for part, found in results.items():
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {number:.2f}" for key, number in value.items())
            elif isinstance(value, float):
                value = f"{value:.4f}"
            elif isinstance(value, list):
                value = ", ".join(f"{number:.2f}" for number in value)
            lines.append(f"| {part} | {name} | {value} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True, help="as shard.py's --input")
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--mb", type=int, default=32, help="text that speed is measured on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mb", type=int, default=1000, help="the larger input of `memory`")
    parser.add_argument("--memory-workers", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--work", type=Path, help="a folder for scratch files; else a temporary one"
    )
    args = parser.parse_args()
    args.tokenizer = str(Path(args.tokenizer).resolve())
    args.corpus = [str(Path(name).resolve()) for name in args.corpus]
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        bench = Bench(args, Path(folder))
        results = {}
        for part in args.parts:
            results[part] = getattr(bench, part)()
            print(report({part: results[part]}), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
