"""Steps of whole models beside their plans, in small and on a CPU."""

import json
import subprocess
import sys

import pytest
from runs import ROOT, llama_config

pytestmark = pytest.mark.slow


def test_a_models_steps_are_measured_beside_its_plan(tmp_path):
    model = llama_config(tmp_path / "config", positions=512, vocab_size=1000) / "config.json"
    out = tmp_path / "out.json"
    command = [sys.executable, ROOT / "benchmarks/full_size.py", "--models", model, "missing"]
    command += ["--row-length", 128, "--json", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "missing: no such shape or file" in done.stderr
    (found,) = json.loads(out.read_text())
    assert found["tokens_per_second"] > 0
    assert 0 < found["planned_gib"] < found["gib"] < 2, "a process's memory, on a CPU"
    assert f"| {model} | {found['tokens_per_second']:,.0f} |" in done.stdout
