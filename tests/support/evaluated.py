"""What tests of evaluation share: a folder with two exports, and how launch/run_eval.py is run."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from encode_evaluate_data import lm_task, local_tasks, tiny_export
from runs import ROOT


def place(folder: Path) -> Path:
    """exports/gem, the default recipe's: 8 summary tokens, an adapter; exports/full, one token and
    model-embed/; data/ with a task of each type of mteb; yaml/ with one of lm-eval."""
    tiny_export(folder / "exports" / "gem", k=8, adapter=True)
    tiny_export(folder / "exports" / "full", k=1)
    local_tasks(folder / "data")
    lm_task(folder / "yaml")
    return folder


def script() -> Any:
    """launch/run_eval.py as a module."""
    spec = importlib.util.spec_from_file_location("run_eval", ROOT / "launch" / "run_eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_eval(*arguments: object) -> None:
    """Run it here, which saves the seconds that mteb and lm-eval take to import."""
    before = sys.argv
    sys.argv = ["run_eval.py", *map(str, arguments)]
    try:
        script().main()
    finally:
        sys.argv = before
