"""gem_ds.training.monitoring: what a person is shown of a run without a terminal."""

import json
from pathlib import Path

import pytest

from gem_ds.checkpoints.run_record import METRICS
from gem_ds.training import monitoring
from gem_ds.training.monitoring import Metrics, hours, shown

VALUES = {
    "loss/ntp": 0.0,
    "loss/contrastive": 1.25,
    "data/targets": 0,
    "data/anchors": 4,
    "schedule/learning_rate": 1e-4,
    "speed/tokens_per_second": 898.4,
    "speed/loop_seconds": 120.0,
}


def logged(run: Path, steps: int, first: int = 0, until: int | None = None) -> None:
    run.mkdir(exist_ok=True)
    log = Metrics(run, first, steps, enabled=True)
    for step in range(first, steps if until is None else until):
        log.log(step, {**VALUES, "speed/loop_seconds": 999.0 if step == first else 120.0})
    log.close()


def test_a_loss_is_shown_where_it_is_computed() -> None:
    assert shown(VALUES) == {"cl": "1.250", "lr": "1.0e-04", "tok/s": "898"}
    both = {**VALUES, "data/targets": 3, "loss/ntp": 2.5, "data/anchors": 0}
    assert list(shown(both)) == ["ntp", "lr", "tok/s"]


def test_without_a_terminal_progress_is_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(tmp_path, 9)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"step {n}/9: cl=1.250, lr=1.0e-04, tok/s=898" for n in (1, 9)]
    monkeypatch.setattr(monitoring, "LINE_SECONDS", 0.0)
    logged(tmp_path, 9)
    assert len(capsys.readouterr().err.splitlines()) == 9
    assert len((tmp_path / METRICS).read_text().splitlines()) == 9
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[0])["loss/ntp"] == 0


def test_after_the_first_steps_the_run_says_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path, 1000, first=100, until=110)
    said = capsys.readouterr().out
    assert said.splitlines() == ["120 s a step: about 29.8 hours for the 895 to come"]
    logged(tmp_path / "another", 5)
    assert capsys.readouterr().out == "", "nothing is left"


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_that_are_taken_again_go_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / METRICS
    logged(tmp_path, 6)
    with path.open("ab") as file:
        file.write(b'[1]\n{"step": "7"}\n\xff\n{"step": 6, "lo')
    capsys.readouterr()
    logged(tmp_path, 6, first=4)
    assert steps(path) == list(range(6))
    assert capsys.readouterr().out.splitlines() == [
        f"{path} loses its lines of steps 4 to 5, taken again now",
        f"WARNING: {path} loses 3 lines that are not of metrics",
    ]
    logged(tmp_path, 8, first=6)
    assert steps(path) == list(range(8))
    assert capsys.readouterr().out == "", "nothing is lost"


def test_lines_of_a_start_from_nothing_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in (3, 2, 1):
        logged(tmp_path, n)
    kept = {name: steps(tmp_path / name) for name in ("metrics-1.jsonl", "metrics-2.jsonl")}
    assert kept == {"metrics-1.jsonl": [0, 1, 2], "metrics-2.jsonl": [0, 1]}
    assert steps(tmp_path / METRICS) == [0]
    assert "metrics.jsonl, of a start that made no checkpoint, is metrics-2.jsonl now" in (
        capsys.readouterr().out
    )


def test_durations_for_people() -> None:
    assert [hours(s) for s in (5, 89, 90, 3599, 3600, 21960)] == [
        *("5 seconds", "89 seconds", "2 minutes", "60 minutes", "1.0 hours", "6.1 hours"),
    ]
