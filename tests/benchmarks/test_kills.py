"""A small torture: see benchmarks/kills.py, which is the large one."""

from pathlib import Path

import pytest
from kills import ALL, MAIN, torture

pytestmark = pytest.mark.slow


def test_killed_runs_finish_byte_for_byte(tmp_path: Path) -> None:
    work = torture(tmp_path / "work", kills=4, megabytes=0.6, seed=1)
    assert work.result.faults == [], work.log.read_text()
    assert len(work.result.kills) == 4
    assert {MAIN, ALL} & {kill.victim for kill in work.result.kills}
    assert work.result.runs > work.result.folders
