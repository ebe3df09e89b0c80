"""ds_configs/: every file resolves, says nothing that DeepSpeed does not know, and starts a run."""

import json
import math

import plan_table
import pytest
from runs import ROOT, bf16, llama_config, metrics, random_base, random_shards
from several_runs import several_runs

from gem_ds.errors import InputError
from gem_ds.planning import zero_settings
from gem_ds.training import deepspeed_keys
from gem_ds.training.config import TrainConfig
from gem_ds.training.deepspeed_config import read_json, resolve_deepspeed

FILES = sorted((ROOT / "ds_configs").glob("*.json"))
BF16_STATES = "llama8b_1x141gb"
LARGE = [path for path in FILES if path.stem in plan_table.FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_is_known_and_every_auto_filled(path):
    raw = read_json(path)
    deepspeed_keys.check(raw, str(path))
    config = TrainConfig("s", "o", str(path), rows_per_step=32, rows_per_micro_batch=1)
    resolved = resolve_deepspeed(raw, config, 32, 4096, True, 8)
    deepspeed_keys.check_groups(resolved, 32, 8, str(path))
    assert "auto" not in json.dumps(resolved)
    assert resolved["data_types"] == {"grad_accum_dtype": "fp32"}
    assert zero_settings.of_json(resolved).stage in (2, 3)


def test_the_groups_of_hpz_are_the_ranks_of_a_machine():
    path = ROOT / "ds_configs" / "llama8b_4x8x80gb.json"
    config = TrainConfig("s", "o", str(path), rows_per_step=32)
    assert (
        zero_settings.of_json(resolve_deepspeed(read_json(path), config, 32, 4096, True, 8)).hpz
        == 8
    )


def test_states_in_bf16_are_refused_where_weights_are_not():
    path = ROOT / "ds_configs" / f"{BF16_STATES}.json"
    config = TrainConfig("s", "o", str(path))
    with pytest.raises(InputError, match="states in bf16 need weights in bf16"):
        resolve_deepspeed(read_json(path), config, 1, 4096, bf16=False)
    assert zero_settings.of_json(resolve_deepspeed(read_json(path), config, 1, 4096)).bf16_states


@pytest.fixture(scope="module")
def started(tmp_path_factory, tokenizer_dir):
    """Two steps with each file for a real size, on two CPU ranks that are one machine.

    These take the files as they are, pinned memory and overlap included, which do nothing there,
    but for two things: bf16 is on where states are in bf16, and hpZ's groups are both ranks.
    """
    folder = tmp_path_factory.mktemp("ds_configs")
    base = random_base(folder / "base", llama_config(folder / "config"), tokenizer_dir)
    flags = {
        "model": base,
        "shards": random_shards(folder / "shards", tokenizer_dir),
        "steps": 2,
        "rows_per_step": 2,
        "alpha_start": 0,
        "rehearse": False,
    }
    files = {path.stem: path for path in LARGE}
    files[BF16_STATES] = bf16(f"{BF16_STATES}.json", folder)
    several_runs(
        folder / "runs", 2, {name: {**flags, "deepspeed": path} for name, path in files.items()}
    )
    return folder / "runs"


@pytest.mark.parametrize("name", [path.stem for path in LARGE])
def test_a_run_starts_with_it(started, name):
    lines = metrics(started / name)
    assert len(lines) == 2
    assert all(math.isfinite(line["loss/total"]) and not line["train/skipped"] for line in lines)


def test_the_files_are_what_the_plan_writes():
    assert [path.stem for path in LARGE] == sorted(plan_table.FILES)
    for name in plan_table.FILES:
        assert (ROOT / "ds_configs" / f"{name}.json").read_text() == plan_table.file_of(name)
