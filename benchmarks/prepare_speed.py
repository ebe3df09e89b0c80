"""Speed of data preparation: one worker, the same beside others' tools, and two workers."""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from prepare_bench import Bench, run

BATCHES = (32, 128, 1000)  # texts a call of the bare tokenizer: the best of them counts

# Prints the seconds that the tokenizer alone takes, texts in memory, best batch size.
BARE = """
import json, sys, time
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
import sys, time
from pathlib import Path
from gem_ds.shards import executors, unit_context, unit_worker
from gem_ds.shards.work_plan import Plan
folder = Path(sys.argv[1])
plan = Plan.load(folder)
unit_context.load(folder, plan.digest)
began = time.perf_counter()
for unit in executors.in_order(plan):
    unit_worker.write_unit(unit, lambda n: None, folder=folder, digest=plan.digest)
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


def encode(bench: Bench) -> dict[str, Any]:
    """A worker, beside the tokenizer alone on texts in memory."""

    def ours() -> float:
        run(bench.shard("--only-plan"), bench.core)
        return float(run([sys.executable, "-c", WORKER, bench.work / "shards"], bench.core)[1])

    def bare(size: int) -> float:
        words = [sys.executable, "-c", BARE, bench.corpus, bench.tokenizer, size]
        return float(run(words, bench.core)[1])

    seconds = bench.rounds(
        {"worker": ours, **{f"bare {n}": (lambda n=n: bare(n)) for n in BATCHES}}  # type: ignore[misc]
    )
    best = min(BATCHES, key=lambda n: statistics.median(seconds[f"bare {n}"]))
    return _compared(bench, seconds, "worker", f"bare {best}")


def datatrove(bench: Bench) -> dict[str, Any]:
    """The command with one worker, beside datatrove's pipeline with one task."""
    config = json.loads((Path(bench.tokenizer) / "tokenizer_config.json").read_text())
    eos = config["eos_token"]
    eos = eos["content"] if isinstance(eos, dict) else eos
    script = bench.work / "datatrove_run.py"
    script.write_text(DATATROVE)

    def theirs() -> float:
        output = bench.work / "datatrove"
        for path in (output, Path(f"{output}-logs")):
            shutil.rmtree(path, ignore_errors=True)
        tokenizer = Path(bench.tokenizer) / "tokenizer.json"
        command = [sys.executable, script, bench.corpus.parent, tokenizer, output, eos]
        return run(command, bench.core)[0]

    return _compared(
        bench,
        bench.rounds(
            {"ours": lambda: run(bench.shard("--workers", 1), bench.core)[0], "theirs": theirs}
        ),
        *("ours", "theirs"),
    )


def workers(bench: Bench) -> dict[str, Any]:
    """The command with two workers, beside one."""
    flags = ("--unit-megabytes", max(1, bench.args.mb // 32))
    found = bench.rounds(
        {
            f"{n} workers": (lambda n=n: run(bench.shard("--workers", n, *flags))[0])  # type: ignore[misc]
            for n in (1, 2)
        }
    )
    return _compared(bench, found, "2 workers", "1 workers")


def _compared(
    bench: Bench, seconds: dict[str, list[float]], ours: str, other: str
) -> dict[str, Any]:
    """Speeds of all, and how many times as fast as `other` `ours` is, round by round."""
    ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
    speeds = {n: bench.n_bytes / 1e6 / statistics.median(s) for n, s in seconds.items()}
    return {"MB/s": speeds, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}
