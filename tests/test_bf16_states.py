"""benchmarks/bf16_states.py: both kinds of states train the same model on the same rows."""

import json
import subprocess
import sys
from pathlib import Path

import bf16_states as benchmark
import pytest
from runs import ROOT


def test_the_files_differ_in_the_states_alone(tmp_path: Path):
    benchmark.files(tmp_path)
    fp32, bf16 = (json.loads((tmp_path / f"{s}.json").read_text()) for s in benchmark.STATES)
    states = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    assert fp32["bf16"] == {"enabled": True}
    assert bf16 == {**fp32, "bf16": {"enabled": True, **states}}


def test_two_steps_of_each(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bf16_states.py"), "--steps", "2"]
    command += ["--rates", "3e-2", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["losses"]["3e-2"]
    assert found["fp32"][0] == found["bf16"][0], "no step was taken before it"
    assert found["fp32"][1] == pytest.approx(found["bf16"][1], rel=0.01)
    assert found["fp32"][1] != found["bf16"][1]
    assert f"| {sum(found['fp32']) / 2:.3f} | {sum(found['bf16']) / 2:.3f} |" in done.stdout
