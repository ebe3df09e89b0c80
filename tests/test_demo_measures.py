"""The demo's report shows its figures, and says so where the model wrote nothing."""

import sys
from typing import Any

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import demo_measures


@pytest.mark.parametrize(
    ("written", "last"),
    [(" and so on.\nThe end.\n", "    and so on.\n    The end."), (" \n", "    (an empty answer)")],
)
def test_a_report_ends_with_what_the_model_wrote(written: str, last: str) -> None:
    results: dict[str, Any] = {
        "before": {"mean": 2.0, "last": 1.0, "weighted": 2.0, "summary": 1.0, "perplexity": 10.0},
        "after": {"summary": 5.0, "perplexity": 10.1},
        "held_out": 500,
        "neighbours": [{"title": "a", "nearest": ["b  <- its own"]}],
        "continuation": {"prompt": "Once upon", "continuation": written},
    }
    text = demo_measures.report(results)
    assert text.endswith(f"  Once upon ...\n{last}")
    assert "reached  retrieval at least 2 x the best of mean and last: 2.50 x" in text
