"""benchmarks/trainer.py: a round of it runs, and its ratios are of the same round."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trainer as benchmark
from runs import ROOT

pytestmark = pytest.mark.slow


def test_ratios_are_medians_of_rounds():
    rates = {"bare": [10.0, 100.0, 20.0], "ntp": [5.0, 100.0, 30.0], "views": [1.0, 1.0, 10.0]}
    assert benchmark.shares(rates) == {"ntp": 1.0, "views": 0.1}


def test_a_round_of_every_loop(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "trainer.py"), "--ranks", "1"]
    command += ["--rounds", "1", "--steps", "1", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # whether it was fast enough here
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["tokens_a_second"]) == ["bare", "ntp", "views"]
    assert all(each > 0 for (each,) in found["tokens_a_second"].values())
    assert done.returncode == any(found["shares"][n] < goal for n, goal in benchmark.GOALS.items())
    assert found["shares"]["ntp"] == pytest.approx(
        found["tokens_a_second"]["ntp"][0] / found["tokens_a_second"]["bare"][0]
    )
