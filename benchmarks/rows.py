"""Benchmarks of several rows: those asked for are measured, printed and kept one by one."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def measure(rows: Mapping[str, Callable[[], Result]], path: Path | None, about: Result) -> None:
    """Measure rows in turn; each goes into the JSON file as soon as it is there, with `about`.

    What the file has of other rows stays. Ends the process with status 1 and their names where rows
    are not ``good``.
    """
    result = json.loads(path.read_text()) if path and path.exists() else {}
    for name, row in rows.items():
        began = time.monotonic()
        figures = row()
        took = {"took_seconds": time.monotonic() - began, "date": time.strftime("%Y-%m-%d")}
        result[name] = figures | took | {"cores": os.cpu_count()} | about
        shown = {key: x for key, x in figures.items() if not isinstance(x, dict | list)}
        print(f"{name}: {json.dumps(shown | took)}", flush=True)
        if path:
            path.write_text(json.dumps(result, indent=1) + "\n")
    bad = [name for name in rows if not result[name]["good"]]
    if bad:
        sys.exit(f"error: not as it should be: {', '.join(bad)}")
