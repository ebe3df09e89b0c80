"""Parts are done once, whatever interrupts; what is there was whole."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import free_port
from runs import ROOT

from gem_ds.errors import InputError
from gem_ds.inference import resumable_parts
from gem_ds.inference.text_files import Text

TEXTS = [Text(str(i), f"text {i}") for i in range(10)]


class Work:
    """Counts what it writes, and may fail at a part."""

    def __init__(self, output: Path, fails_at: int | None = None) -> None:
        self.output = output
        self.fails_at = fails_at
        self.written: list[str] = []

    def write(self, path: Path, texts: Sequence[Text]) -> None:
        if self.fails_at == len(self.written):
            raise InputError("no more")
        self.written.append(path.name)
        path.write_text(",".join(text.id for text in texts))

    def join(self, parts: Sequence[Path], output: Path) -> None:
        output.write_text(" ".join(part.read_text() for part in parts))

    def run(self, **identity: str) -> None:
        resumable_parts.run(TEXTS, identity, self.output, ".x", self.write, self.join, part=4)


def test_parts_are_done_and_joined(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    work.run()
    assert (tmp_path / "out").read_text() == "0,1,2,3 4,5,6,7 8,9"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(work.written) == 3


def test_only_what_is_missing_is_done_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(InputError, match="no more"):
        Work(output, fails_at=2).run()
    assert not output.exists()
    second = Work(output)
    second.run()
    assert second.written == ["part-000002.x"]
    assert output.read_text() == "0,1,2,3 4,5,6,7 8,9"


def test_work_of_other_settings_is_refused_where_there_is_any(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(InputError):
        Work(output, fails_at=0).run(prompt="a")
    assert list(tmp_path.iterdir()) == [], "nothing to go on from"
    with pytest.raises(InputError):
        Work(output, fails_at=1).run(prompt="a", model="m")
    with pytest.raises(InputError, match=r"out\.parts holds unfinished .* settings \(prompt\)"):
        Work(output).run(prompt="b", model="m")
    plan = json.loads((tmp_path / "out.parts" / "plan.json").read_text())
    assert plan == {"prompt": "a", "model": "m", "part": 4}


RANK = """
import os, sys
from pathlib import Path
import torch
from gem_ds import distributed
from gem_ds.inference.text_files import Text
from gem_ds.errors import InputError, run
from gem_ds.inference import resumable_parts

def write(path, texts):
    if distributed.rank() == 1 and path.name == "part-000001.x":
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), 9)
        raise InputError("this rank's disk is full")
    path.write_text(" ")

def main():
    with distributed.meeting():
        torch.distributed.init_process_group("gloo")
    texts = [Text(str(i), "text") for i in range(4)]
    done = lambda parts, out: out.touch()
    resumable_parts.run(texts, {}, Path(sys.argv[1]), ".x", write, done, part=1)

run(main)
"""


@pytest.mark.parametrize("how", ["failed", "killed"])
def test_ranks_do_not_wait_for_one_that_is_gone(how: str, tmp_path: Path) -> None:
    """Nor is there a launcher that would end them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "out"), how],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    began = time.monotonic()
    try:
        said = ranks[0].communicate(timeout=60)[1]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert time.monotonic() - began < 60
    assert ranks[0].returncode == 2, said
    end = "ended doing part 1: this rank's disk is full" if how == "failed" else "is dead: killed"
    again = "the same command does what is missing"
    assert re.search(rf"error \[rank 0\]: rank 1 \(.*\) {end}.*; {again}", said), said
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.parts" / "part-000000.x").exists(), "to go on from"
