"""A short fuzzing: see benchmarks/fuzz_prepare.py, which is the long one."""

import pytest
from fuzz_prepare import fuzz

pytestmark = pytest.mark.slow


def test_odd_corpora_are_refused_in_a_sentence_or_sharded_truly() -> None:
    outcomes = fuzz(200, seed=1)
    assert outcomes.total() >= 200
    assert outcomes["finished"] > 50
