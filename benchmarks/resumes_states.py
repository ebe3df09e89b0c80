"""What may have happened to the folder of a run of six steps whose checkpoints 4 and 6 are there.

With what the same command has to do then, for eight steps: see docs/running.md.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gem_ds.checkpoints import checkpoint

FOUR, SIX = checkpoint.name_of(4), checkpoint.name_of(6)


@dataclass(frozen=True)
class State:
    """What happens to a folder; the step to continue from, or None where it is refused; what is
    said, as a pattern; other flags; what is not the run's and stays."""

    happens: Callable[[Path], object]
    start: int | None
    says: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    stays: frozenset[str] = frozenset()


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("echo harm",)


def _latest(text: bytes) -> Callable[[Path], object]:
    return lambda run: (run / "checkpoints" / "latest").write_bytes(text)


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def _remove(*names: str) -> Callable[[Path], object]:
    def remove(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _folder(name: str) -> Callable[[Path], object]:
    """A folder in the place of a file."""

    def make(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return make


def _append(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes() + content)


def _flip(*names: str) -> Callable[[Path], object]:
    """A bit of the optimizer's file of checkpoints."""

    def flip(run: Path) -> None:
        for name in names:
            path = next((run / "checkpoints" / name).glob("*optim_states.pt"))
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

    return flip


def _copy(name: str) -> Callable[[Path], object]:
    return lambda run: shutil.copytree(run / "checkpoints" / FOUR, run / "checkpoints" / name)


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda run: (run / "checkpoints" / old).rename(run / "checkpoints" / new)


def _all(*happen: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda run: [each(run) for each in happen]


def _harm(run: Path) -> None:
    folder = run / "checkpoints" / SIX
    state = checkpoint.read_state(folder)
    written = state.pop("files")
    path = next(folder.glob("*optim_states.pt"))
    torch.save({"more": _Harmful()}, path)
    checkpoint.write_state(folder, state, written | {path.name: checkpoint.entry_of(path)})


def _first_under_way(run: Path) -> None:
    """Killed when the first checkpoint was named and had no name yet."""
    _remove(f"checkpoints/{FOUR}", "saves.jsonl")(run)
    _rename(SIX, f"{SIX}.tmp")(run)


def _later(run: Path) -> None:
    """Every file of a clock that is a day ahead."""
    for path in run.rglob("*"):
        os.utime(path, (time.time() + 86400,) * 2)


def _lock(**owner: object) -> Callable[[Path], object]:
    return _write("lock.json", json.dumps(owner).encode())


_GONE = r"error: .*put them back, or choose another --output"
_CURE = r"error: \S*latest .*write the one to go on from into it: echo step-00000006 > "
_AHEAD = {"host": "elsewhere", "pid": 1, "job": None, "time": time.time() + 600}
_WAITS = r"lock\.json was left by process .* on .*waiting until .*continuing"
STATES = {
    "nothing happens": State(lambda run: None, 6),
    # The name of the one to go on from.
    "latest before all": State(_latest(b"step-00000001"), None, _CURE),
    "latest after all": State(_latest(b"step-00000099"), None, _CURE),
    "latest between two": State(_latest(b"step-00000005\n"), None, _CURE),
    "latest is the one before": State(
        _latest(FOUR.encode()), 4, r"metrics\.jsonl loses its lines of steps 4 to 5, taken again"
    ),
    "latest is missing": State(_remove("checkpoints/latest"), None, _CURE),
    "latest is empty": State(_latest(b""), None, _CURE),
    "latest is binary": State(_latest(b"\xff\x00\xfe"), None, _CURE),
    "latest names something else": State(_latest(b"the last one"), None, _CURE),
    "latest is a folder": State(_folder("checkpoints/latest"), None, _CURE),
    "latest is a path, without a line's end": State(_latest(f"a/b/{SIX}".encode()), 6),
    "latest is short, with a line's end of Windows": State(_latest(b"step-6\r\n"), 6),
    # Checkpoints that are gone, incomplete, damaged, not the run's.
    "the newest is gone": State(
        _remove(f"checkpoints/{SIX}"), None, r"error: \S*latest names .*06"
    ),
    "the older is gone": State(_remove(f"checkpoints/{FOUR}"), 6),
    "all are gone": State(_remove(f"checkpoints/{FOUR}", f"checkpoints/{SIX}"), None, _GONE),
    "all are gone, latest too": State(
        _remove(*(f"checkpoints/{name}" for name in (FOUR, SIX, "latest"))), None, _GONE
    ),
    "their folder is gone": State(_remove("checkpoints"), None, _GONE),
    "their folder is a file": State(
        _all(_remove("checkpoints"), _write("checkpoints", b"")), None, r"error: "
    ),
    "the newest is half removed": State(
        _remove(f"checkpoints/{SIX}/gem.json"), 4, r"WARNING: .*06.*; the one before is taken"
    ),
    "the older is half removed": State(_remove(f"checkpoints/{FOUR}/gem.json"), 6),
    "the newest is damaged": State(_flip(SIX), 4, r"WARNING: .*06.* is damaged"),
    "all are damaged": State(_flip(FOUR, SIX), None, r"error: no checkpoint of .* is whole"),
    "a file of the newest is gone": State(
        _remove(f"checkpoints/{SIX}/model/config.json"), 4, r"WARNING: .*config\.json"
    ),
    "the newest is renamed": State(
        _all(_rename(SIX, "step-00000007"), _latest(b"step-00000007")),
        4,
        r"WARNING: .*07 is of step 6",
        stays=frozenset({"step-00000007"}),  # as one of the two newest
    ),
    "the newest would run code": State(_harm, 4, r"WARNING: .* would run code \(\w+\.system\)"),
    "the first was under way": State(_first_under_way, 0, r"metrics\.jsonl, .*is metrics-1\.jsonl"),
    "a copy under another name": State(
        _all(_copy("step-original"), _copy("step-00000004-copy")),
        6,
        stays=frozenset({"step-original", "step-00000004-copy"}),
    ),
    "a later folder": State(
        lambda run: (run / "checkpoints" / "step-00000099").mkdir(),
        6,
        stays=frozenset({"step-00000099"}),
    ),
    "one was being written": State(_copy("step-00000008.tmp"), 6),
    "one was being removed": State(_copy("step-00000002.removed.tmp"), 6),
    "one was being converted": State(_copy("step-00000004.universal"), 6),
    "a name was being changed": State(_write("checkpoints/latest.elsewhere-1.tmp", b"step"), 6),
    # Metrics.
    "metrics are gone": State(_remove("metrics.jsonl"), 6),
    "metrics are empty": State(_write("metrics.jsonl", b""), 6),
    "metrics end with half a line": State(_append("metrics.jsonl", b'{"step": 6, "lo'), 6),
    "metrics have other lines": State(
        _append("metrics.jsonl", b"\n[1]\n7\n{\n" + b'{"step": "x"}\n'),
        6,
        r"WARNING: \S*metrics\.jsonl loses 5 lines that are not of metrics",
    ),
    "metrics are binary": State(
        _write("metrics.jsonl", bytes(range(256))), 6, r"WARNING: \S*metrics\.jsonl loses 1 lines"
    ),
    "metrics are a folder": State(_folder("metrics.jsonl"), None, r"error: .* is no file"),
    "metrics without a checkpoint": State(
        _remove("checkpoints", "saves.jsonl"), 0, r"metrics\.jsonl, .* is metrics-1\.jsonl now"
    ),
    # Flags and records.
    "another seed": State(
        lambda run: None, None, r"error: .* seed = 0, this run has 1", {"seed": 1}
    ),
    "more rows a step": State(
        lambda run: None, None, r"error: .* rows_per_step = 8, .* 16", {"rows_per_step": 16}
    ),
    "fewer steps": State(lambda run: None, None, r"error: .*06 is of more steps", {"steps": 4}),
    "as many steps": State(lambda run: None, 6, r"6 of \S+, its last: nothing", {"steps": 6}),
    "not to be continued": State(
        lambda run: None, None, r"error: .*already has checkpoints", {"resume": "never"}
    ),
    "not to be continued, and no checkpoint": State(
        _remove("checkpoints", "saves.jsonl"), 0, r"is metrics-1\.jsonl now", {"resume": "never"}
    ),
    "the record is gone": State(_remove("run.json", "starts.jsonl"), 6),
    "the record is half written": State(_write("run.json", b'{"config": '), 6),
    "the list of starts is a folder": State(_folder("starts.jsonl"), None, r"error: .* is no file"),
    # Locks and clocks.
    "the lock is of a machine whose clock is ahead": State(_lock(**_AHEAD), 6, _WAITS),
    "the lock is a list": State(_write("lock.json", b"[1, 2]"), 6, _WAITS),
    "the lock is of a dead run here": State(_lock(**{**_AHEAD, "host": socket.gethostname()}), 6),
    "the lock is empty": State(_write("lock.json", b""), 6),
    "the lock is a folder": State(_folder("lock.json"), None, r"error: .*lock\.json is a folder"),
    "all files are of tomorrow": State(_later, 6),
}
