"""What measuring data preparation needs: a corpus that everybody reads, and commands in turns."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gem_ds.corpus import discovery, record_reader
from gem_ds.corpus.records import Skip

ROOT = Path(__file__).resolve().parents[1]
ROW = 8192


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
        self.n_bytes = self.write(self.corpus, args.mb * 1_000_000)
        self.core = {max(os.sched_getaffinity(0))}

    def _texts(self) -> Iterator[str]:
        found = discovery.find(self.args.corpus)
        for block in record_reader.blocks(found, record_reader.whole(found), lambda _: ["text"]):
            for record in block.records:
                try:
                    yield record.text("text")
                except Skip:
                    continue

    def write(self, path: Path, n_bytes: int) -> int:
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
