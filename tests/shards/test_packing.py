import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_ds import layout
from gem_ds.shards import packing
from gem_ds.shards.dataset import Row
from gem_ds.shards.documents import Document


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
    lengths = np.random.default_rng(0).lognormal(np.log(median), 1.0, 8192)
    lengths = np.clip(lengths, 2, row_length).astype(int).tolist()
    rows = packing.pack(lengths, row_length)
    # The last, partly filled rows of a window are the price of a window; the rest is full.
    assert sum(lengths) / (len(rows) * row_length) > (0.998 if median == 700 else 0.9995)


def test_a_document_longer_than_a_row_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="has 6 tokens"):
        packing.pack([6], 5)


def document(n: int, record: int) -> Document:
    return Document(np.full(n, record, dtype=np.int32), layout.plain(0, n), "plain", record)


def rows_of(windows: list[list[Document]], row_length: int, seed: str = "0") -> list[Row]:
    packer = packing.Packer(row_length, seed)
    return [
        row
        for i, window in enumerate(windows)
        for row in packer.rows(window, last=i == len(windows) - 1)
    ]


def test_rows_hold_each_document_with_its_record() -> None:
    documents = [document(1 + i % 7, i) for i in range(100)]
    rows = rows_of([documents[:40], documents[40:80], documents[80:], []], 8)
    seen = []
    for row in rows:
        layout.check(row.bounds, len(row.input_ids), k=1)
        assert len(row.input_ids) <= 8
        for (start, *_, end), record in zip(row.bounds, row.records, strict=True):
            assert row.input_ids[start:end].tolist() == documents[record].input_ids.tolist()
            seen.append(int(record))
    assert sorted(seen) == list(range(100))


def test_what_a_window_cannot_fill_waits_for_the_next() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(700), 1.0, 16_000)
    lengths = np.clip(lengths, 2, 8192).astype(int)
    documents = [document(int(n), i) for i, n in enumerate(lengths)]
    windows = [documents[i : i + 2000] for i in range(0, 16_000, 2000)]
    waiting = sum(len(row.input_ids) for row in rows_of(windows, 8192)) / 8192
    assert waiting / len(rows_of(windows, 8192)) > 0.999
    alone = [row for window in windows for row in rows_of([window], 8192)]
    assert waiting / len(alone) < 0.998


def test_rows_that_nothing_can_fill_do_not_wait_for_ever() -> None:
    packer = packing.Packer(10, "0")
    written = []
    for i in range(50):
        window = [document(6, i * 100 + n) for n in range(100)]  # no two share a row
        n_rows = len(list(packer.rows(window, last=False)))
        written.append(n_rows)
    assert written[-1] == 100
    assert len(list(packer.rows([], last=True))) == 50 * 100 - sum(written)


def test_rows_are_shuffled_by_the_seed() -> None:
    documents = [document(n, n) for n in range(1, 100)]
    first, again, other = (
        [row.records.tolist() for row in rows_of([documents], 100, seed)] for seed in "001"
    )
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
