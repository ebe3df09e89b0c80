"""Every ZeRO stage trains the same, in bf16 too; the temperature is exact in all of them."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from runs import ROOT, metrics, random_base, small_llama
from several_runs import several_runs

from gem_ds.checkpoints.checkpoint import find, load_weights

pytestmark = pytest.mark.slow

OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
STAGES = {"1": {}, "2": {}, "3": {}, "3, offloaded": OFFLOAD}
RATE = 1e-3  # the logarithm of the temperature moves by no more a step; bf16 would move it by 1/64


def deepspeed_file(folder: Path, name: str, stage: str, bf16: dict) -> Path:
    raw = json.loads((ROOT / "ds_configs" / "zero3.json").read_text()) | {"bf16": bf16}
    zero = raw["zero_optimization"] | {"stage": int(stage[0]), **STAGES[stage]}
    zero["stage3_param_persistence_threshold"] = 0
    path = folder / f"{name}.json"
    path.write_text(json.dumps(raw | {"zero_optimization": zero}))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """Runs of each stage in fp32 and in bf16, and with states in bf16."""
    made = small_llama(tmp_path_factory.mktemp("stages"), tokenizer_dir)
    common = {
        "shards": made / "shards",
        "model": random_base(made / "base", made / "untied", tokenizer_dir),
        "rows_per_step": 4,
        "steps": 4,
        "save_every": 2,
        "alpha_start": 0,
        "warmup_steps": 0,
        "learning_rate": RATE,
    }
    settings = {}
    for stage in STAGES:
        for dtype in ("fp32", "bf16"):
            name = f"{dtype}, stage {stage}"
            file = deepspeed_file(made, name, stage, {"enabled": dtype == "bf16"})
            settings[name] = {**common, "deepspeed": file}
    several_runs(made / "runs", 2, settings)
    again = {name: {**settings[name], "resume": "auto"} for name in settings if "bf16" in name}
    for name in again:
        shutil.copytree(made / "runs" / name, made / "again" / name)
        (made / "again" / name / "checkpoints" / "latest").write_text("step-00000002\n")
    moved = {**again["bf16, stage 1"], "deepspeed": again["bf16, stage 3"]["deepspeed"]}
    shutil.copytree(made / "again" / "bf16, stage 1", made / "again" / "moved")
    states = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    file = deepspeed_file(made, "states", "3", states)
    fixed = {**settings["bf16, stage 3"], "learn_temperature": False, "save": False}
    several_runs(
        made / "again",
        2,
        {
            **again,
            "moved": moved,
            "fixed": fixed,
            "states": {**settings["bf16, stage 3"], "deepspeed": file, "save": False},
        },
    )
    return made


def temperatures(run: Path) -> list[float]:
    return [line["schedule/temperature"] for line in metrics(run)]


def test_every_stage_trains_the_same_and_is_exported(runs: Path) -> None:
    for dtype, rel in (("fp32", 1e-5), ("bf16", 5e-3)):
        runs_of = {stage: runs / "runs" / f"{dtype}, stage {stage}" for stage in STAGES}
        losses = {s: [line["loss/total"] for line in metrics(run)] for s, run in runs_of.items()}
        for stage in STAGES:
            assert losses[stage] == pytest.approx(losses["3"], rel=rel)
    expected = load_weights(find(runs / "runs" / "fp32, stage 3"))
    for stage in STAGES:
        found = load_weights(find(runs / "runs" / f"fp32, stage {stage}"))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_temperature_is_kept_in_fp32(runs: Path, stage: str) -> None:
    found = temperatures(runs / "runs" / f"bf16, stage {stage}")
    assert found[0] == pytest.approx(20, rel=1e-6), "20.09 in bf16"
    steps = [abs(after / before - 1) for before, after in pairwise(found)]
    assert all(0 < step < 1.5 * RATE for step in steps)
    exact = temperatures(runs / "runs" / f"fp32, stage {stage}")
    assert found == pytest.approx(exact, rel=1e-3)
    assert temperatures(runs / "again" / f"bf16, stage {stage}") == found, "resumed"


def test_stage_1_goes_on_as_stage_3(runs: Path) -> None:
    before, after = runs / "runs" / "bf16, stage 1", runs / "again" / "moved"
    assert temperatures(after) == pytest.approx(temperatures(before), rel=1e-4)
    starts = (after / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2


def test_a_temperature_that_is_not_learned_is_the_one_that_was_given(runs: Path) -> None:
    assert temperatures(runs / "again" / "fixed") == pytest.approx([20] * 4, rel=1e-6)


def test_with_states_in_bf16_it_begins_exactly(runs: Path) -> None:
    assert temperatures(runs / "again" / "states")[0] == pytest.approx(20, rel=1e-6)
