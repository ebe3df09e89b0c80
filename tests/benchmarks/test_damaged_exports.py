"""benchmarks/damaged_exports.py: some of its damages are refused; one that is not is noticed."""

import subprocess
import sys

import pytest
from damaged_exports import BEFORE, by_others, gem, outcome, stock
from runs import ROOT

pytestmark = pytest.mark.slow

EXPECTED = [[1.0, 0.0]]


def test_some_damages_are_refused() -> None:
    line = [sys.executable, str(ROOT / "benchmarks/damaged_exports.py"), "--every", "40"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused by name" in done.stdout
    assert "WRONG" not in done.stdout


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ([[1.0, 0.0]], "harmless"),
        ([[0.9, 0.1]], "WRONG VECTORS"),
        (ValueError("x/config.json is not as it was sealed"), "UNNAMED"),
        (KeyError("config.json"), "UNNAMED"),
    ],
)
def test_what_is_not_refused_by_name_is_told(tmp_path, result, found: str) -> None:
    def load(_):
        if isinstance(result, Exception):
            raise result
        return result

    assert outcome(load, tmp_path, "model/config.json", EXPECTED).startswith(found)


def test_only_what_is_read_before_the_module_is_left_to_others() -> None:
    for name in BEFORE:
        assert not by_others(stock, f"model-embed/{name}", KeyError("x")).isupper()
        assert by_others(gem, f"model-embed/{name}", KeyError("x")).startswith("UNNAMED")
    assert by_others(stock, "model-embed/model/config.json", KeyError("x")).startswith("UNNAMED")
