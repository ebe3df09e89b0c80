"""Data preparation: speed, memory, fill and reading, against the bare tokenizer and datatrove.

    python benchmarks/prepare.py --corpus corpus.jsonl --tokenizer base --json out.json
    python benchmarks/prepare.py --corpus … --tokenizer … --parts memory --large-mb 10000

Speed is in MB/s of UTF-8 text. What is compared runs in turns, in a random order, each in a process
of its own, and ratios are medians over the rounds. "One core" is one: the process is bound to it.
Some minutes; Linux only.
"""

import json
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
import prepare_speed
from prepare_bench import ROOT, ROW, Bench, run

from gem_ds import errors, layout
from gem_ds.flags import Parser, whole
from gem_ds.shards import packing, unit_worker
from gem_ds.shards.dataset import Shards
from gem_ds.shards.documents import Document


def fill(bench: Bench) -> dict[str, Any]:
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
            sizes = np.cumsum(lengths[at : at + unit_worker.WINDOW_TEXTS])
            end = at + int(np.searchsorted(sizes, unit_worker.WINDOW_TOKENS)) + 1
            window = [
                Document(np.zeros(m, dtype=np.int32), layout.plain(0, int(m)), "plain", 0)
                for m in lengths[at:end]
            ]
            at = end
            rows += sum(1 for _ in packer.rows(window, last=at >= n))
        found[name] = float(lengths.sum() / (rows * ROW))
    return found


def memory(bench: Bench) -> dict[str, Any]:
    """Peak resident memory of the largest worker, from the kernel, while the command runs."""
    found: dict[str, Any] = {}
    for mb in (10, bench.args.large_mb):
        corpus = bench.work / f"{mb}mb.jsonl"
        bench.write(corpus, mb * 1_000_000)
        command = bench.shard("--workers", bench.args.memory_workers, corpus=corpus)
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


def reading(bench: Bench) -> dict[str, Any]:
    """Rows in a random order and in their own, by the reader that training has."""
    run(bench.shard("--workers", 2, "--kinds", "plain=1"))
    reader = Shards(bench.work / "shards")
    order = np.random.default_rng(0).permutation(len(reader))
    random_rows, sequential = [], []
    for _ in range(bench.args.rounds):
        reader = Shards(bench.work / "shards")
        began = time.perf_counter()
        for i in order:
            reader.read(int(i))
        random_rows.append(len(order) / (time.perf_counter() - began))
        reader = Shards(bench.work / "shards")
        began = time.perf_counter()
        n_bytes = sum(reader.read(i).input_ids.nbytes for i in range(len(reader)))
        sequential.append(n_bytes / 1e6 / (time.perf_counter() - began))
    return {
        "random rows/s": statistics.median(random_rows),
        "sequential MB/s of tokens": statistics.median(sequential),
        "rows": len(reader),
    }


def training(bench: Bench) -> dict[str, Any]:
    """The share of a step that a real training of a small model waits for its data."""
    run(bench.shard("--workers", 2))
    run_folder = bench.work / "run"
    shutil.rmtree(run_folder, ignore_errors=True)
    config = bench.work / "model"
    config.mkdir(exist_ok=True)
    model = json.loads((Path(bench.tokenizer) / "config.json").read_text())
    model |= {"max_position_embeddings": ROW, "num_hidden_layers": 2}
    (config / "config.json").write_text(json.dumps(model))
    run(
        [
            *(sys.executable, "launch/train.py", "--deepspeed", "ds_configs/zero3.json"),
            *("--config", config, "--shards", bench.work / "shards", "--output", run_folder),
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


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "encode": prepare_speed.encode,
    "datatrove": prepare_speed.datatrove,
    "workers": prepare_speed.workers,
    "fill": fill,
    "memory": memory,
    "reading": reading,
    "training": training,
}


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
    parser = Parser(__doc__)
    parser.add_argument("--corpus", nargs="+", required=True, help="as shard.py's --input")
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--mb", type=whole(1), default=32, help="text that speed is measured on")
    parser.add_argument("--rounds", type=whole(1), default=5, help="of every measurement")
    parser.add_argument(
        "--large-mb", type=whole(1), default=1000, help="the larger input of `memory`"
    )
    parser.add_argument(
        "--memory-workers", type=whole(1), default=2, help="processes of the larger input"
    )
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
            results[part] = PARTS[part](bench)
            print(report({part: results[part]}), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
