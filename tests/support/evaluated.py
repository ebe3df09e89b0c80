"""What tests of evaluation share: a folder with two exports, and how launch/run_eval.py is run."""

import sys
from pathlib import Path

from encode_evaluate_data import lm_task, local_tasks, tiny_export

from gem_ds.commands.eval import main


def place(folder: Path) -> Path:
    """exports/gem, the default recipe's: 8 summary tokens, an adapter; exports/full, one token and
    model-embed/; data/ with a task of each type of mteb; yaml/ with one of lm-eval."""
    tiny_export(folder / "exports" / "gem", k=8, adapter=True)
    tiny_export(folder / "exports" / "full", k=1)
    local_tasks(folder / "data")
    lm_task(folder / "yaml")
    return folder


def run_eval(*arguments: object) -> None:
    """Run it here, which saves the seconds that mteb and lm-eval take to import."""
    before = sys.argv
    sys.argv = ["run_eval.py", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before
