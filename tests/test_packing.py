import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_ds import layout, packing
from gem_ds.documents import Document


def best_fit_decreasing(lengths: list[int], row_length: int) -> list[list[int]]:
    """The same, slowly: scan all rows for the fullest that takes the document."""
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [row_length - sum(lengths[i] for i in row) for row in rows]
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[document]]
        if fitting:
            rows[min(fitting, key=lambda r: room[r])].append(document)
        else:
            rows.append([document])
    return rows


@given(st.lists(st.integers(1, 20), max_size=40))
def test_every_document_once_and_no_row_too_long(lengths: list[int]) -> None:
    rows = packing.pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Rows of equal room are interchangeable, so the number of rows and their fills must agree.
    slow = best_fit_decreasing(lengths, 20)
    fills = [sorted(sum(lengths[i] for i in row) for row in each) for each in (rows, slow)]
    assert fills[0] == fills[1]


def test_documents_of_equal_length_keep_their_order() -> None:
    lengths = np.random.default_rng(0).integers(6, 11, 10_000).tolist()  # no two share a row
    rows = packing.pack(lengths, 10)
    assert [i for (i,) in rows] == sorted(range(10_000), key=lambda i: (-lengths[i], i))


@pytest.mark.parametrize(("median", "row_length"), [(300, 2048), (700, 8192)])
def test_web_like_lengths_fill_their_rows(median: int, row_length: int) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), 1.0, packing.WINDOW)
    lengths = np.clip(lengths, 2, row_length).astype(int).tolist()
    rows = packing.pack(lengths, row_length)
    # The last, partly filled rows of a window are the price of a window; the rest is full.
    assert sum(lengths) / (len(rows) * row_length) > (0.998 if median == 700 else 0.9995)


def test_a_document_longer_than_a_row_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="has 6 tokens"):
        packing.pack([6], 5)


def document(n: int, record: int) -> Document:
    return Document(np.full(n, record, dtype=np.int32), layout.plain(0, n), "plain", record)


def test_rows_hold_each_document_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW", 10)
    documents = [document(1 + i % 7, i) for i in range(25)]
    windows = list(packing.windows(documents))
    assert [len(window) for window in windows] == [10, 10, 5]
    rows = [row for w in windows for row in packing.rows(w, 8, random.Random(0))]
    seen = []
    for row in rows:
        layout.check(row.bounds, len(row.input_ids), k=1)
        assert len(row.input_ids) <= 8
        for (start, *_, end), record in zip(row.bounds, row.records, strict=True):
            assert row.input_ids[start:end].tolist() == documents[record].input_ids.tolist()
            seen.append(int(record))
    assert sorted(seen) == list(range(25))


def test_a_window_is_bounded_in_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 10)
    windows = packing.windows(document(4, i) for i in range(7))
    assert [len(window) for window in windows] == [3, 3, 1]


def test_rows_are_shuffled_by_the_seed() -> None:
    documents = [document(n, n) for n in range(1, 100)]
    first, again, other = (
        [row.records.tolist() for row in packing.rows(documents, 100, random.Random(seed))]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
