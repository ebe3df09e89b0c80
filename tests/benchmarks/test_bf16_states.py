"""benchmarks/bf16_states.py: both kinds of states train the same model on the same rows."""

import json
import subprocess
import sys
from pathlib import Path

import bf16_states as benchmark
import pytest
from runs import ROOT, small_llama
from several_runs import several_runs

pytestmark = pytest.mark.slow


def test_the_files_differ_in_the_states_alone(tmp_path: Path):
    benchmark.files(tmp_path)
    fp32, bf16 = (json.loads((tmp_path / f"{s}.json").read_text()) for s in benchmark.STATES)
    states = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    assert fp32["bf16"] == {"enabled": True}
    assert bf16 == {**fp32, "bf16": {"enabled": True, **states}}


def test_a_few_steps_of_each(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bf16_states.py"), "--steps", "3"]
    command += ["--rates", "3e-2", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["losses"]["3e-2"]
    assert found["fp32"][0] == found["bf16"][0], "no step was taken before it"
    assert found["fp32"] == pytest.approx(found["bf16"], rel=0.02)
    assert found["fp32"][-1] != found["bf16"][-1]
    assert f"| {sum(found['fp32']) / 3:.3f} | {sum(found['bf16']) / 3:.3f} |" in done.stdout


def test_a_rate_that_bf16_rounds_away_is_said(tmp_path: Path, tokenizer_dir: Path):
    """New weights spread by 0.02, a 256th of which is 8e-5."""
    benchmark.files(tmp_path)
    made = small_llama(tmp_path / "made", tokenizer_dir)
    flags = {"config": made / "untied", "shards": made / "shards", "save": False, "steps": 1}
    flags |= {"rows_per_step": 2, "deepspeed": tmp_path / "bf16.json"}
    for rate, warned in ((2e-5, True), (2e-4, False)):
        said = several_runs(tmp_path / "runs", 1, {str(rate): {**flags, "learning_rate": rate}})
        assert ("below 1/256 of a typical weight (0.02" in said) == warned, rate
