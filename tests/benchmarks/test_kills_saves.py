"""A small torture: see benchmarks/kills_saves.py, which is the large one."""

from pathlib import Path

import pytest
from faults_runs import Work
from kills_saves import torture

pytestmark = pytest.mark.slow


def test_runs_that_are_killed_while_they_save_end_with_the_same_bits(tmp_path: Path) -> None:
    result = torture(Work(tmp_path / "work"), kills=3, seed=2)
    assert result.faults == []
    assert set(result.kills) == {"remove", "rename", "write"}
    assert sum(result.starts.values()) == 3
