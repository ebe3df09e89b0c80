"""Going on with other ranks and another ZeRO stage: the same rows, the same loss."""

import json
import shutil

import pytest
from runs import fp32, llama_config, metrics, random_base, random_shards
from several_runs import several_runs

from gem_ds.checkpoints.checkpoint import find

STEPS = 9
# Where all weights are trained, and where a frozen base has adapters.
RECIPES = {"all": {"adapter": "none", "weight_decay": 0.1}, "adapters": {"adapter": "summary"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("elastic")
    random_shards(folder / "shards", tokenizer_dir, n_rows=24, k=2, gem_share=0.8)
    random_base(folder / "base", llama_config(folder / "llama", tied=False), tokenizer_dir)
    for name in ("zero2.json", "zero3.json"):
        fp32(name, folder)
    return folder


def setting(made, recipe, stage, ranks):
    """The same rows are compared with each other on one rank and on two."""
    return {
        "shards": made / "shards",
        "model": made / "base",
        "deepspeed": made / f"fp32-zero{stage}.json",
        "rows_per_step": 4,
        "rows_per_micro_batch": 2 // ranks,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "alpha_start": 2,
        "save_every": 3,
        "keep_last": 3,
        "resume": "auto",
        "steps": STEPS,
        **RECIPES[recipe],
    }


def test_from_two_ranks_to_one_and_back_and_from_stage_3_to_2_and_back(made):
    """Three starts of each run: 2 ranks and stage 3, 1 rank and stage 2, 2 ranks and stage 3."""
    names = {f"{recipe}-whole": recipe for recipe in RECIPES}
    several_runs(made / "runs", 2, {n: setting(made, r, 3, 2) for n, r in names.items()})
    for name, recipe in names.items():
        set_back(made / "runs" / name, made / "runs" / recipe, 3)
    several_runs(made / "runs", 1, {recipe: setting(made, recipe, 2, 1) for recipe in RECIPES})
    for recipe in RECIPES:
        set_back(made / "runs" / recipe, made / "runs" / recipe, 6)
    several_runs(made / "runs", 2, {recipe: setting(made, recipe, 3, 2) for recipe in RECIPES})
    for name, recipe in names.items():
        whole, moved = (metrics(made / "runs" / x) for x in (name, recipe))
        assert [m["step"] for m in moved] == list(range(STEPS))
        for a, b in zip(whole, moved, strict=True):
            for key in ("data/targets", "data/anchors"):
                assert a[key] == b[key], key
            assert b["loss/total"] == pytest.approx(a["loss/total"], rel=1e-5)
        assert whole[-1]["loss/total"] < whole[0]["loss/total"] - 0.1, "it learns"
        starts = (made / "runs" / recipe / "starts.jsonl").read_text().splitlines()
        assert [json.loads(x)["world_size"] for x in starts] == [2, 1, 2]
        assert not list((made / "runs" / recipe / "checkpoints").glob("*.universal"))
        assert find(made / "runs" / recipe).name == f"step-{STEPS:08d}"


def set_back(source, target, step):
    """A copy of a run as it was after a step."""
    if source != target:
        shutil.copytree(source, target)
    (target / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
