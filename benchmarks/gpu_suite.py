"""All that needs one CUDA GPU, in one command of under 8 minutes.

    python benchmarks/gpu_suite.py

The GPU tests, the attention table with its memory, training steps of layers shaped as those of
Llama 3.1 8B, a small run of the trainer, the loss, and steps of whole models of 1 B and 8 B beside
their plans. Needs torch, transformers, NumPy and pytest alone; what trains runs where DeepSpeed is
installed, and Liger is measured where that is.
Writes benchmarks/results/<date>-<gpu>.json and .md, also when a part fails, and then ends with a
non-zero exit status.
"""

import datetime
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gem_ds.errors import run
from gem_ds.flags import Parser

ROOT = Path(__file__).resolve().parent.parent
# Of each part: the Python command lines, and the seconds that all may take.
PARTS: dict[str, tuple[list[str], int]] = {
    "tests": (["-m pytest --noconftest -o addopts= -v tests/test_gpu.py"], 110),
    "attention": (["benchmarks/attention.py --json {folder}/figures.json"], 60),
    "layers": (["benchmarks/layers.py --json {folder}/figures.json"], 80),
    "trainer": (
        [
            "data_prep/docstrings.py --output {folder}/corpus",
            "data_prep/train_tokenizer.py --input {folder}/corpus/train.jsonl --vocab-size 4096 "
            "--output {folder}/tokenizer",
            "data_prep/shard.py --input {folder}/corpus/dev.jsonl --tokenizer {folder}/tokenizer "
            "--output {folder}/shards --row-length 1024",
            "launch/train.py --deepspeed ds_configs/zero3.json --config examples/demo_llama.json "
            "--shards {folder}/shards --output {folder}/run --steps 30 --alpha-start 10 "
            "--rows-per-step 8 --rows-per-micro-batch 4",
            "-m pytest --noconftest -o addopts= -q -m gpu tests/training/test_waiting.py "
            "tests/model/test_layer_options.py",
        ],
        60,
    ),
    "loss": (["benchmarks/loss.py --device cuda --json {folder}/figures.json"], 20),
    "full_size": (["benchmarks/full_size.py --json {folder}/figures.json"], 150),
}
NEED_DEEPSPEED = ("trainer", "full_size")


def part(name: str) -> dict[str, Any]:
    """Run one part in processes of its own; its figures, or why there are none."""
    commands, limit = PARTS[name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    began = time.perf_counter()
    status, output = 0, ""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            words = [sys.executable, *command.format(folder=folder).split()]
            left = max(1.0, began + limit - time.perf_counter())
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output += process.communicate(timeout=left)[0]
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                output += f"{process.communicate()[0]}\nstopped after {limit} s"
                status = 124
            if status:
                break
        figures = Path(folder, "figures.json")
        if figures.exists():
            result["figures"] = json.loads(figures.read_text())
    seconds = round(time.perf_counter() - began, 1)
    print(f"== {name}: status {status}, {seconds} s\n{output[-4000:]}", flush=True)
    return {"status": status, "seconds": seconds, "output": output[-8000:], **result}


def markdown(gpu: str, results: dict[str, Any]) -> str:
    lines = [f"# {gpu}, torch {torch.__version__}", ""]
    for name, result in results.items():
        state = "passed" if result["status"] == 0 else f"FAILED ({result['status']})"
        lines += [f"## {name}: {state}, {result['seconds']} s", "", result["output"].strip(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA GPU here; benchmarks/attention.py measures a CPU")
    gpu = torch.cuda.get_device_name()
    args.output.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.date.today()}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower())}"
    results: dict[str, Any] = {}
    for each in args.parts:
        if each in NEED_DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
            print(f"== {each}: not run, DeepSpeed is not installed")
            continue
        results[each] = part(each)
        (args.output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.output / f"{name}.md").write_text(markdown(gpu, results))
    print(args.output / f"{name}.md")
    sys.exit(any(result["status"] for result in results.values()))


if __name__ == "__main__":
    run(main)
