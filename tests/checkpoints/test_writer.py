"""When checkpoints are written, and what a run removes of what it finds. Real saves, one rank.

Where a run goes on: test_resumes. Kills while it saves: test_kills_saves.
"""

import shutil
from pathlib import Path

import pytest
from runs import fp32, llama_config, random_shards
from several_runs import several_runs

from gem_ds.checkpoints import checkpoint
from gem_ds.checkpoints.checkpoint import SAVES, damage, found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A folder of runs of six steps with a checkpoint every two, and of what they need."""
    folder = tmp_path_factory.mktemp("saving")
    random_shards(folder / "shards", tokenizer_dir, n_rows=8)
    llama_config(folder / "llama")
    fp32("zero2.json", folder)
    common = settings(folder)
    runs = {
        "minutes": {**common, "steps": 3, "save_every": 100, "save_minutes": 1e-6, "keep_last": 9},
        "hours": {**common, "steps": 3, "save_every": 100, "save_minutes": 600.0},
        "whole": common,
        "blown": {**common, "steps": 2},
    }
    several_runs(folder / "runs", 1, runs)
    return folder


def settings(folder: Path) -> dict[str, object]:
    return {
        "shards": folder / "shards",
        "config": folder / "llama",
        "deepspeed": folder / "fp32-zero2.json",
        "rows_per_step": 2,
        "rehearse": False,
        "alpha_start": 2,
        "save_every": 2,
        "keep_last": 1,
        "resume": "auto",
        "steps": 6,
    }


def names(run: Path) -> set[str]:
    return {path.name for path in checkpoint.folder_of(run).iterdir()}


def step(number: int) -> str:
    return checkpoint.name_of(number)


def test_a_checkpoint_is_written_whenever_so_many_minutes_have_passed(made: Path) -> None:
    assert [path.name for path in found(made / "runs/minutes")] == [step(n) for n in (1, 2, 3)]
    assert [path.name for path in found(made / "runs/hours")] == [step(3)]


def test_what_is_half_removed_or_half_written_goes_and_what_is_not_ours_stays(made: Path) -> None:
    run = made / "runs/left"
    shutil.copytree(made / "runs/whole", run)
    folder, newest = checkpoint.folder_of(run), checkpoint.folder_of(run) / step(6)
    for name in (step(4), f"{step(8)}.tmp", f"{step(2)}.removed.tmp", f"{step(6)}.universal"):
        shutil.copytree(newest, folder / name)
    (folder / step(4) / checkpoint.STATE).unlink()
    shutil.copytree(newest, folder / "step-original")
    shutil.copytree(newest, folder / f"{step(6)}-mine")
    (folder / f"{step(99)}").mkdir()
    (folder / "probe-7.tmp").touch()
    (folder / "latest.a-1.tmp").touch()
    (run / "run.json.a-1.tmp").touch()
    (run / "notes.my-own.tmp").touch()
    several_runs(made / "runs", 1, {"left": {**settings(made), "steps": 8}})
    theirs = {"step-original", f"{step(6)}-mine", step(99)}
    assert names(run) == {"latest", step(8), *theirs}
    assert (run / "notes.my-own.tmp").exists()
    assert not (run / "run.json.a-1.tmp").exists()


def test_a_run_with_nothing_left_to_do_removes_what_it_would_have(made: Path) -> None:
    """It was killed when its last checkpoint was there and the one before was to be removed."""
    run = made / "runs/done"
    shutil.copytree(made / "runs/whole", run)
    folder = checkpoint.folder_of(run)
    shutil.copytree(folder / step(6), folder / step(4))
    said = several_runs(made / "runs", 1, {"done": settings(made)})
    assert f"continuing from step 6 of {run}, its last: nothing is left to do" in said
    assert names(run) == {"latest", step(6)}
    shutil.copytree(folder / step(6), folder / step(4))
    several_runs(made / "runs", 1, {"done": {**settings(made), "save": False}})
    assert names(run) == {"latest", step(4), step(6)}, "it saves nothing"


def test_a_run_that_was_set_back_replaces_what_is_later(made: Path) -> None:
    run = made / "runs/back"
    flags = {**settings(made), "keep_last": 3}
    several_runs(made / "runs", 1, {"back": flags})
    later = checkpoint.folder_of(run) / step(4) / "later"
    later.touch()
    (checkpoint.folder_of(run) / "latest").write_text(step(2))
    said = several_runs(made / "runs", 1, {"back": flags})
    assert f"continuing from step 2 of {run}\n" in said
    assert not later.exists()
    assert names(run) == {"latest", *map(step, (2, 4, 6))}
    assert all(damage(path) == "" for path in found(run))
    saves = (run / SAVES).read_text().splitlines()
    assert [line.split(",")[0] for line in saves] == [f'{{"step": {n}' for n in (2, 4, 6, 4, 6)]


def test_the_checkpoint_that_a_run_goes_on_from_is_not_written_again(made: Path) -> None:
    """All steps after it are skipped, so nothing has changed: it stays, and is never without."""
    run = made / "runs/blown"
    flags = {**settings(made), "learning_rate": 1e30, "warmup_steps": 0, "max_skipped_steps": 2}
    flags["save_every"] = 100
    state = checkpoint.folder_of(run) / step(3) / checkpoint.STATE
    written = []
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"2 steps in a row, the last 4, .* the latest"):
            several_runs(made / "runs", 1, {"blown": flags})
        written.append(state.stat().st_mtime_ns)
        assert checkpoint.find(run).name == step(3), "of before the steps that were skipped"
    assert written[0] == written[1]
