"""benchmarks/encode.py: its rows tell what they found, of an export that is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exports import export_tiny
from runs import ROOT

pytestmark = pytest.mark.slow


def test_rows_of_a_given_export(tokenizer_dir: Path, tmp_path: Path) -> None:
    export = export_tiny(tokenizer_dir, tmp_path, positions=1024)[1]
    script = [sys.executable, str(ROOT / "benchmarks" / "encode.py")]
    given = ["--model", str(export), "--json", str(tmp_path / "out.json"), "--texts", "4"]
    (tmp_path / "out.json").write_text('{"other": {}}')
    only = ["--only", "agreement", "memory"]
    done = subprocess.run([*script, *given, *only], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "out.json").read_text())
    assert set(rows) == {"other", "agreement", "memory"}
    assert rows["agreement"]["good"]
    assert 1 > rows["agreement"]["transformers"] - 1e-6 > 0.9999
    assert (
        rows["memory"]["memory_bytes"] * rows["memory"]["tokens"] == rows["memory"]["cache_bytes"]
    )
    rounds = ["--only", "speed", "--rounds", "1"]
    done = subprocess.run([*script, *given, *rounds], capture_output=True, text=True)
    row = json.loads((tmp_path / "out.json").read_text())["speed"]
    assert row["good"] == (row["ratio"] >= 1.5)
    assert (done.returncode == 0) == row["good"]
    if not row["good"]:
        assert "error: not as it should be: speed" in done.stderr
