import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_ds import layout
from gem_ds.errors import InputError


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Boundaries of one to six documents, and k."""
    k = draw(st.integers(1, 3))
    bounds, start = [], 0
    for _ in range(draw(st.integers(1, 6))):
        prefix, suffix, gem = draw(st.tuples(st.integers(1, 5), st.integers(0, 5), st.booleans()))
        summary = start + prefix
        end = summary + k + suffix if gem else summary
        bounds.append((start, summary, summary + k, end) if gem else layout.plain(start, end))
        start = end
    return np.array(bounds, dtype=np.int32), k


@given(layouts())
def test_targets_against_the_rule_read_aloud(case: tuple[np.ndarray, int]) -> None:
    bounds, k = case
    ids = np.arange(100, 100 + bounds[-1, 3], dtype=np.int32)
    layout.check(bounds, len(ids), k)
    expected, positions, documents, summaries = [], [], [], []
    for d, (start, summary, suffix, end) in enumerate(bounds.tolist()):
        for t in range(start, end):
            following = t + 1
            predicts = following < end and not summary <= following < suffix
            expected.append(ids[following] if predicts else layout.NO_TARGET)
            positions.append(t - start)
            documents.append(d)
            summaries.append(summary <= t < suffix)
    assert layout.targets(ids, bounds).tolist() == expected
    assert layout.positions(bounds).tolist() == positions
    assert layout.document_of(bounds).tolist() == documents
    assert layout.is_summary(bounds).tolist() == summaries
    assert layout.n_targets(bounds) == sum(t != layout.NO_TARGET for t in expected)
    assert layout.summary_index(bounds).reshape(-1).tolist() == np.flatnonzero(summaries).tolist()


def test_last_summary_token_predicts_the_suffix_and_none_is_predicted() -> None:
    bounds = np.array([[0, 3, 5, 7]], dtype=np.int32)
    targets = layout.targets(np.arange(7, dtype=np.int32), bounds)
    none = layout.NO_TARGET
    assert targets.tolist() == [1, 2, none, none, 5, 6, none]


def test_shift_moves_all_boundaries() -> None:
    bounds = np.array([[0, 3, 5, 7]], dtype=np.int32)
    shifted = layout.shift(bounds, 10)
    assert shifted.tolist() == [[10, 13, 15, 17]]
    assert shifted.dtype == np.int32


@pytest.mark.parametrize(
    ("bounds", "length", "what"),
    [
        ([[0, 2, 3, 5], [6, 7, 7, 7]], 7, "does not start where"),
        ([[1, 2, 3, 5]], 5, "does not start where"),
        ([[0, 3, 2, 5]], 5, "out of order"),
        ([[0, 0, 0, 0]], 0, "has no tokens"),
        ([[0, 2, 4, 5]], 5, "does not have 1 summary tokens"),
        ([[0, 0, 1, 5]], 5, "no prefix"),
        ([[0, 2, 2, 5]], 5, "suffix but no summary"),
        ([[0, 2, 3, 5]], 6, "there are 6 tokens"),
        (np.zeros((0, 4)), 0, "needs four boundaries"),
        (np.zeros((2, 3)), 0, "needs four boundaries"),
    ],
)
def test_check_says_what_is_wrong_and_where(bounds: list, length: int, what: str) -> None:
    with pytest.raises(InputError, match=f"^row 7.*{what}"):
        layout.check(np.array(bounds, dtype=np.int32), length, 1, name="row 7")
