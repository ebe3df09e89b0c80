"""What an older version wrote goes on and loads: `data/older.tar.xz`, of commit 28014a1.

A run of four steps, with an adapter beside a frozen base, as it was after two; the export of that;
and in `expected.json` what that version went on to measure, embed and write.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, metrics

from gem_ds import GemModel


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with tarfile.open(ROOT / "tests" / "data" / "older.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_run_goes_on_with_the_same_numbers(older: Path) -> None:
    flags = "--shards shards --model base --output run --rows-per-step 2 --save-every 2 --steps 4"
    flags += " --adapter summary --alpha-start 1 --alpha 0.5 --learning-rate 1e-4 --resume auto"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "launch/train.py",
            "--deepspeed",
            "fp32-zero3.json",
            *flags.split(),
        ],
        cwd=older,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "continuing from step 2 of run" in done.stdout + done.stderr
    expected = json.loads((older / "expected.json").read_text())["metrics"]
    found = {str(line["step"]): line for line in metrics(older / "run")}
    assert found.keys() == expected.keys() == {"0", "1", "2", "3"}
    for step, values in expected.items():
        assert {name: found[step][name] for name in values} == pytest.approx(values, rel=1e-4)


def test_its_export_embeds_and_writes_the_same(older: Path) -> None:
    expected = json.loads((older / "expected.json").read_text())
    gem = GemModel.from_pretrained(older / "export", verify=True)
    assert np.allclose(gem.encode(expected["texts"]), expected["vectors"], atol=1e-5)
    assert gem.generate("The string", max_new_tokens=8) == expected["written"]
