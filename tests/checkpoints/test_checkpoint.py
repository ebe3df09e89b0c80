"""Checkpoints as folders: the latest, damaged, superfluous ones; copies.

Real saves and loads are in test_engine, test_elastic and test_faults.
"""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from gem_ds.checkpoints import checkpoint, zero_reader
from gem_ds.checkpoints.writer import Retention, copied
from gem_ds.errors import InputError

FILES = {"a.bin": b"x" * 1000, "model/config.json": b"{}", "empty.bin": b""}


def made(run: Path, *steps: int) -> list[Path]:
    """Checkpoints of these steps, the last of which is the latest."""
    folders = []
    for step in steps:
        folder = checkpoint.folder_of(run) / checkpoint.name_of(step)
        (folder / "model").mkdir(parents=True)
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        written = {name: checkpoint.entry_of(folder / name) for name in FILES}
        checkpoint.write_state(folder, {"step": step, "k": 1}, written)
        folders.append(folder)
    (checkpoint.folder_of(run) / checkpoint.LATEST).write_text(f"{folders[-1].name}\n")
    return folders


def test_one_that_is_whole_is_found_and_read(tmp_path: Path) -> None:
    first, second = made(tmp_path, 5, 10)
    assert checkpoint.find(tmp_path) == second
    assert checkpoint.find(tmp_path, 5) == first
    assert checkpoint.damage(second) == ""
    assert checkpoint.newest_whole(tmp_path) == (second, [])
    assert checkpoint.read_state(second)["step"] == 10
    assert checkpoint.newest_whole(tmp_path / "other") == (None, [])


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a byte of a file": lambda folder: flip(folder / "a.bin", 0.5),
    "its last byte": lambda folder: flip(folder / "a.bin", 1),
    "the end of a file": lambda folder: os.truncate(folder / "a.bin", 999),
    "a file": lambda folder: (folder / "empty.bin").unlink(),
    "a byte more": lambda folder: (folder / "empty.bin").write_bytes(b"x"),
    "a byte of the model's": lambda folder: flip(folder / "model" / "config.json", 0),
    "the state's first byte": lambda folder: flip(folder / checkpoint.STATE, 0),
    "a digit in the state": lambda folder: (folder / checkpoint.STATE).write_text(
        (folder / checkpoint.STATE).read_text().replace('"step": 10', '"step": 11')
    ),
    "the end of the state": lambda folder: os.truncate(folder / checkpoint.STATE, 100),
    "all of the state": lambda folder: os.truncate(folder / checkpoint.STATE, 0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_noticed_and_the_one_before_is_taken(name: str, tmp_path: Path) -> None:
    first, second = made(tmp_path, 5, 10)
    DAMAGES[name](second)
    path, warnings = checkpoint.newest_whole(tmp_path)
    assert path == first
    assert len(warnings) == 1
    assert str(second) in warnings[0]
    parts = [checkpoint.damage(second, part, 3) for part in range(3)]
    assert any(parts), "noticed by one of several ranks"
    DAMAGES[name](first) if "digit" not in name else flip(first / "a.bin", 0)
    with pytest.raises(InputError, match=r"no checkpoint of .* is whole \(.*; .*; restore one"):
        checkpoint.newest_whole(tmp_path)


def test_latest_says_where_to_go_on(tmp_path: Path) -> None:
    first, _ = made(tmp_path, 5, 10)
    latest = checkpoint.folder_of(tmp_path) / checkpoint.LATEST
    for text in (first.name, "step-5", str(first)):
        latest.write_text(text)
        assert checkpoint.find(tmp_path) == first
        assert checkpoint.newest_whole(tmp_path) == (first, [])


def unlink(run: Path, *steps: int) -> None:
    for path in checkpoint.folders(run):
        if checkpoint.step_of(path) in steps:
            shutil.rmtree(path)


def write(run: Path, text: bytes) -> None:
    (checkpoint.folder_of(run) / checkpoint.LATEST).write_bytes(text)


def saved(run: Path) -> None:
    (run / checkpoint.SAVES).write_text('{"step": 5}\n')


THERE = r"and there are step-00000005, step-00000010; write .*: echo step-00000010 > "
CONTRADICTIONS = {  # what happens to a folder with the checkpoints 5 and 10, and what is said of it
    "latest before all": (
        lambda run: write(run, b"step-00000001"),
        r"names .*01, which is not there, " + THERE,
    ),
    "latest after all": (
        lambda run: write(run, b"step-00000020"),
        r"names .*20, which is not there, " + THERE,
    ),
    "latest between": (
        lambda run: write(run, b"step-00000007"),
        r"names .*07, which is not there, " + THERE,
    ),
    "no name": (lambda run: write(run, b"step-x"), r"does not name a checkpoint, " + THERE),
    "empty": (lambda run: write(run, b""), r"does not name a checkpoint, " + THERE),
    "binary": (lambda run: write(run, b"\xff\x00"), r"cannot be read \(.*utf-8.*\), " + THERE),
    "missing": (
        lambda run: (checkpoint.folder_of(run) / checkpoint.LATEST).unlink(),
        r"latest is missing, " + THERE,
    ),
    "the named one is gone": (
        lambda run: unlink(run, 10),
        r"names .*10, which is not there, and there are step-00000005; write",
    ),
    "all are gone": (
        lambda run: unlink(run, 5, 10),
        r"has no checkpoint, but \S*latest names step-00000010.*put them back, or .* --output",
    ),
    "their folder is gone": (
        lambda run: (saved(run), shutil.rmtree(checkpoint.folder_of(run))),
        r"has no checkpoint, but \S*saves\.jsonl tells of some; put them back",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_with_a_cure(name: str, tmp_path: Path) -> None:
    made(tmp_path, 5, 10)
    happens, says = CONTRADICTIONS[name]
    happens(tmp_path)
    with pytest.raises(InputError, match=says):
        checkpoint.newest_whole(tmp_path)


def test_only_complete_checkpoints_are_found_and_no_copies(tmp_path: Path) -> None:
    first, second = made(tmp_path, 5, 10)
    shutil.copytree(first, first.with_name("step-original"))
    shutil.copytree(first, first.with_name("step-00000007-copy"))
    (second / checkpoint.STATE).unlink()
    assert checkpoint.found(tmp_path) == [first]
    assert checkpoint.folders(tmp_path) == [first, second]
    path, (warning,) = checkpoint.newest_whole(tmp_path)
    assert path == first
    assert str(second) in warning


def test_the_first_one_is_named_before_it_has_its_name(tmp_path: Path) -> None:
    """A run that is killed between the two has none."""
    (path,) = made(tmp_path, 5)
    path.rename(path.with_name(f"{path.name}.tmp"))
    assert checkpoint.newest_whole(tmp_path) == (None, [])


def test_a_renamed_checkpoint_is_not_of_that_step(tmp_path: Path) -> None:
    first, second = made(tmp_path, 5, 10)
    second.rename(second.with_name("step-00000011"))
    write(tmp_path, b"step-00000011")
    path, (warning,) = checkpoint.newest_whole(tmp_path)
    assert path == first
    assert "step-00000011 is of step 10" in warning


class Harmful:
    """What a file may have in it that was not made by a run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harm",)


def test_a_checkpoint_that_would_run_code_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = made(tmp_path, 5, 10)
    torch.save({"weights": torch.zeros(3), "more": Harmful()}, second / "a.pt")
    written = {name: checkpoint.entry_of(second / name) for name in [*FILES, "a.pt"]}
    checkpoint.write_state(second, {"step": 10}, written)
    path, (warning,) = checkpoint.newest_whole(tmp_path)
    assert path == first
    assert re.search(r"a\.pt would run code \(\w+\.system\)", warning)
    with pytest.raises(pickle.UnpicklingError):
        zero_reader.read(second / "a.pt")
    assert not (tmp_path / "harm").exists()


def test_the_newest_stay_and_those_of_every_so_many_steps(tmp_path: Path) -> None:
    paths = made(tmp_path, 10, 20, 30, 40, 50, 60)
    assert Retention(2).superfluous(tmp_path, 60) == paths[:4]
    assert Retention(2, every=20).superfluous(tmp_path, 60) == [paths[0], paths[2]]
    assert Retention(9).superfluous(tmp_path, 60) == []
    # Set back to 20 and saved at 30: what is later is not ours to remove.
    assert Retention(1).superfluous(tmp_path, 30) == paths[:2]
    # Half removed: it neither stays nor counts.
    (paths[4] / checkpoint.STATE).unlink()
    assert Retention(2).superfluous(tmp_path, 60) == [*paths[:3], paths[4]]
    assert Retention(2).superfluous(tmp_path, 40) == paths[:2]


def test_copies_are_of_their_own_and_what_was_one_stays_one() -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "again": [weight, weight[0]], "n": 3, "none": (torch.empty(0), None)}
    copy = copied(state, {})
    weight += 1
    assert torch.equal(copy["a"], weight - 1)
    assert copy["a"] is copy["again"][0]
    assert torch.equal(copy["again"][1], weight[0] - 1)
    assert copy["n"] == 3
    assert copy["none"][1] is None
