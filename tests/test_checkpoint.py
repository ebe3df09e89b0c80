"""Checkpoints as folders: the latest, damaged, superfluous ones; copies; the lock; leaps.

Real saves and loads are in test_engine, test_elastic and test_faults.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gem_ds import checkpoint
from gem_ds.errors import InputError
from gem_ds.health import Health
from gem_ds.lock import FILE, Lock
from gem_ds.saving import Retention, copied

FILES = {"a.pt": b"x" * 1000, "model/config.json": b"{}", "empty.pt": b""}


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
    "a byte of a file": lambda folder: flip(folder / "a.pt", 0.5),
    "its last byte": lambda folder: flip(folder / "a.pt", 1),
    "the end of a file": lambda folder: os.truncate(folder / "a.pt", 999),
    "a file": lambda folder: (folder / "empty.pt").unlink(),
    "a byte more": lambda folder: (folder / "empty.pt").write_bytes(b"x"),
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
    DAMAGES[name](first) if "digit" not in name else flip(first / "a.pt", 0)
    with pytest.raises(InputError, match=r"no checkpoint of .* is whole \(.*; .*; restore one"):
        checkpoint.newest_whole(tmp_path)


def test_latest_says_where_to_go_on(tmp_path: Path) -> None:
    first, second = made(tmp_path, 5, 10)
    latest = checkpoint.folder_of(tmp_path) / checkpoint.LATEST
    latest.write_text(first.name)
    assert checkpoint.find(tmp_path) == first
    assert checkpoint.newest_whole(tmp_path) == (first, [])
    latest.write_text("step-00000020")  # its folder is gone
    assert checkpoint.find(tmp_path) == second
    for damage in (latest.unlink, lambda: latest.write_text("step-x")):
        damage()
        with pytest.raises(InputError, match=rf"such as: echo {second.name} > {latest}"):
            checkpoint.find(tmp_path)
    (second / checkpoint.STATE).unlink()
    (first / checkpoint.STATE).unlink()
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.find(tmp_path)


def test_the_newest_stay_and_those_of_every_so_many_steps() -> None:
    paths = [Path(checkpoint.name_of(step)) for step in (10, 20, 30, 40, 50, 60)]
    assert Retention(2).superfluous(paths, 60) == paths[:4]
    assert Retention(2, every=20).superfluous(paths, 60) == [paths[0], paths[2]]
    assert Retention(9).superfluous(paths, 60) == []
    # Set back to 20 and saved at 30: what is later is not ours to remove.
    assert Retention(1).superfluous(paths, 30) == paths[:2]


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


HOLD = """
import sys, time
from pathlib import Path
from gem_ds.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_dead_job_keeps_no_lock(tmp_path: Path) -> None:
    held = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert held.stdout is not None
        held.stdout.readline()
        message = rf"written by another run \(process {held.pid} on {socket.gethostname()}\)"
        with pytest.raises(InputError, match=message):
            Lock(tmp_path)
    finally:
        held.kill()
        held.wait()
    lock = Lock(tmp_path)
    with pytest.raises(InputError, match=rf"process {os.getpid()} "):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be written \(Not a directory\); choose"):
        Lock(tmp_path / "file" / "run")


def test_a_job_of_another_machine_that_lives_keeps_it(tmp_path: Path) -> None:
    """There the file system's lock may not be seen."""
    owner = {"host": "elsewhere", "pid": 7, "job": "12", "time": time.time()}
    (tmp_path / FILE).write_text(json.dumps(owner))
    began = time.monotonic()
    Lock(tmp_path, sign_seconds=0.1).release()  # no other sign comes
    assert time.monotonic() - began < 5

    def live() -> None:
        for _ in range(20):
            time.sleep(0.05)
            (tmp_path / FILE).write_text(json.dumps({**owner, "time": time.time()}))

    (tmp_path / FILE).write_text(json.dumps({**owner, "time": time.time()}))
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(InputError, match=r"job 12, process 7 on elsewhere"):
        Lock(tmp_path, sign_seconds=0.5)
    thread.join()
    (tmp_path / FILE).write_text(json.dumps({**owner, "time": time.time() - 100}))
    Lock(tmp_path).release()


def test_a_loss_that_leaps_is_told_and_its_rows_are_written_down(tmp_path: Path) -> None:
    health = Health(tmp_path)

    def see(step: int, ntp: float, skipped: float = 0.0) -> list[str]:
        values = {"loss/ntp": ntp, "loss/contrastive": 0.0, "train/skipped": skipped}
        return health.see(step, values, [step, step + 1])

    noise = torch.randn(300, generator=torch.Generator().manual_seed(0)).tolist()
    falling = [5 - i / 100 + 0.1 * noise[i] for i in range(300)]
    assert [step for step, loss in enumerate(falling) if see(step, loss)] == []
    assert "loss/ntp leapt to 1000.0000, above" in see(300, 1000.0)[0]
    assert see(301, 2.0) == []
    assert see(302, float("nan"), skipped=1)
    assert health.skipped == 1
    assert see(303, 4.0), "one leap does not hide the next"
    assert health.skipped == 0
    lines = (tmp_path / "unusual-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["rows"] for line in lines] == [[300, 301], [302, 303], [303, 304]]
