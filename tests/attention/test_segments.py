"""The plans that kernels get, as sets of (query, key) pairs, against the rule."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import bounds_from, random_bounds
from strategies import bounds

from gem_ds import layout
from gem_ds.attention import masks
from gem_ds.attention.backends import Dense, Varlen
from gem_ds.attention.cpu_tiles import SHORT, Pieces, cut, cut_rest
from gem_ds.attention.flex import BLOCK, Flex
from gem_ds.attention.segments import runs, segments, similar, spans

SUMMARY_ATTENTION = st.sampled_from(["isolated", "causal"])
LAYOUTS = st.one_of(bounds(), st.integers(0, 2**32).map(random_bounds))
WINDOWS = st.one_of(st.none(), st.integers(1, 50))


def ruled(bounds_D4, summary_attention, window, rest=False):
    """The pairs of the rule, as a (Q, T) table of counts."""
    table = masks.dense(bounds_D4, summary_attention, window).int().numpy()
    return table[layout.after_text(bounds_D4)] if rest else table


def counted(shape, queries, keys):
    table = np.zeros(shape, dtype=np.int64)
    np.add.at(table, (queries, keys), 1)
    return table


def varlen_pairs(plan: Varlen, shape):
    """What FlashAttention attends: causal at the bottom right of each segment, in its window."""
    gather = np.arange(shape[1]) if plan.gather_kv is None else plan.gather_kv.numpy()
    q0, k0 = plan.cu_seq_q.numpy(), plan.cu_seq_k.numpy()
    queries, keys = [], []
    for s in range(len(q0) - 1):
        n, m = q0[s + 1] - q0[s], k0[s + 1] - k0[s]
        assert 0 < n <= plan.max_q
        assert n <= m <= plan.max_k
        i, j = np.arange(n)[:, None] + (m - n), np.arange(m)[None, :]
        sees = (j <= i) & (True if plan.window is None else i - j < plan.window)
        i_seen, j_seen = sees.nonzero()
        queries.append(q0[s] + i_seen)
        keys.append(gather[k0[s] + j_seen])
    return counted(shape, np.concatenate(queries), np.concatenate(keys))


def sdpa_pairs(plan: Pieces, shape):
    queries, keys = [], []
    for batch in plan.batches:
        b, i, j = (~batch.hidden.numpy() & batch.queries.kept.numpy()[:, :, None]).nonzero()
        queries.append(batch.queries.tokens.numpy()[b, i])
        keys.append(batch.keys.tokens.numpy()[b, j])
    assert sum(plan.lengths) == shape[0]
    for run in filter(None, plan.units):
        i, j = np.arange(run.start, run.end)[:, None], np.arange(run.near, run.end)
        i, j = ((j <= i) if run.hidden is None else ~run.hidden.numpy()).nonzero()
        queries.append(run.start + i)
        keys.append(run.near + j)
    return counted(shape, np.concatenate(queries), np.concatenate(keys))


@settings(max_examples=150, deadline=None)
@given(LAYOUTS, SUMMARY_ATTENTION, WINDOWS, st.booleans())
def test_every_plan_attends_the_pairs_of_the_rule_once(bounds_D4, summary_attention, window, rest):
    assume(not rest or layout.is_gem(bounds_D4).any())
    about = bounds_D4, summary_attention, window
    expected = ruled(*about, rest)
    assert np.array_equal(varlen_pairs(Varlen.of(*about, rest), expected.shape), expected), "varlen"

    plan = (cut_rest if rest else cut)(*about)
    assert np.array_equal(sdpa_pairs(plan, expected.shape), expected), "sdpa"
    assert np.array_equal(Dense.of(*about, rest).mask_TT.int().numpy(), expected), "dense"

    near, own, far, far_end = (x[:, None] for x in spans(segments(*about, rest), window))
    j = np.arange(expected.shape[1])
    of_spans = ((j <= own) & (j >= near)).astype(int)
    of_spans += (j >= far) & (j < far_end)
    assert np.array_equal(of_spans, expected), "flex"


def test_gradients_are_wanted_once_of_each_key_after_a_text():
    row = bounds_from([(70, 2, 5), (9, 0, 0), (3, 2, 0), (200, 2, 90)])
    batches = cut_rest(row, "isolated", None).batches
    wanted = np.concatenate([b.keys.tokens.numpy()[b.keys.kept.numpy()] for b in batches])
    assert sorted(wanted) == np.flatnonzero(layout.after_text(row)).tolist()
    many = bounds_from([(1000, 2, 1000)] * 5)
    assert len(cut_rest(many, "isolated", None).batches) == 3, "of no more than so many scores"


def block_tables(flex: Flex):
    """(partial, full): (M, K) bool, as the block mask lists them."""
    tables = []
    for counts, columns in ((0, 1), (2, 3)):
        n, listed = flex.blocks[counts][0, 0].numpy(), flex.blocks[columns][0, 0].numpy()
        table = np.zeros(listed.shape, dtype=bool)
        for row in range(len(n)):
            table[row, listed[row, : n[row]]] = True
            assert sorted(listed[row]) == list(range(listed.shape[1]))
        tables.append(table)
    return tables


@settings(max_examples=60, deadline=None)
@given(
    bounds(max_documents=5, max_part=400),
    SUMMARY_ATTENTION,
    st.sampled_from([None, 7, 200]),
    st.booleans(),
)
def test_flex_visits_the_blocks_of_the_rule_and_no_others(
    bounds_D4, summary_attention, window, rest
):
    assume(not rest or layout.is_gem(bounds_D4).any())
    flex = Flex.of(bounds_D4, summary_attention, window, rest)
    expected = ruled(bounds_D4, summary_attention, window, rest)
    padded = len(flex.near), flex.n_keys
    for length, whole in zip(expected.shape, padded, strict=True):
        assert whole & (whole - 1) == 0
        assert length <= whole < 2 * max(length, BLOCK)
    allowed = np.zeros(padded, dtype=bool)
    allowed[: expected.shape[0], : expected.shape[1]] = expected
    padding = np.arange(len(expected), padded[0])
    allowed[padding, 0 if rest else padding] = True  # one key each
    m, n = (x // BLOCK for x in padded)
    blocks = allowed.reshape(m, BLOCK, n, BLOCK)
    partial, full = block_tables(flex)
    assert np.array_equal(partial | full, blocks.any(axis=(1, 3)))
    assert not (partial & full).any()
    assert blocks.all(axis=(1, 3))[full].all()
    mask = flex.mask.mask_mod(
        None, None, *torch.meshgrid(*map(torch.arange, expected.shape), indexing="ij")
    )
    assert np.array_equal(mask.numpy(), expected.astype(bool))


def test_a_long_document_has_full_blocks():
    """So that the kernel skips the mask there: all but those on the diagonal and at the start."""
    flex = Flex.of(bounds_from([(1000, 0, 0), (1000, 1, 47)]), "isolated", None)
    _, full = block_tables(flex)
    assert full[6, :6].all()
    assert not full[:, 8:][:8].any()


@pytest.mark.parametrize("k", [1, 4])
def test_varlen_copies_keys_only_where_a_summary_stands_in_two_segments(k):
    plain = bounds_from([(7, 0, 0), (3, 0, 0)])
    assert Varlen.of(plain, "isolated", None).gather_kv is None
    document = bounds_from([(7, k, 5)])
    causal = Varlen.of(document, "causal", None)
    assert causal.gather_kv.tolist() == [*range(7 + k), *range(7, 12 + k)]
    isolated = Varlen.of(document, "isolated", None)
    assert len(isolated.gather_kv) == (14 if k == 1 else 7 + k * 8 + k + 5)


def test_runs_and_batches_of_similar_lengths():
    assert runs(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    lengths = np.random.default_rng(0).lognormal(5, 1, 500).astype(np.int64) + 1
    batches = list(similar(lengths, 0.1))
    assert sorted(np.concatenate(batches)) == list(range(500))
    for batch in batches:
        padded = lengths[batch].max() * len(batch)
        assert padded - lengths[batch].sum() <= 0.1 * padded


def test_many_short_documents_are_few_batches_and_long_ones_run_without_a_copy():
    short = [(20 + i % 3, 1, 9) for i in range(300)]
    plan = cut(bounds_from([*short, (SHORT, 0, 0), (90, 1, 30)]), "isolated", None)
    assert len(plan.batches) < 6
    assert sum(batch.keys.tokens.numel() for batch in plan.batches) < 1.2 * 31 * 300
    at = sum(m + k + n for m, k, n in short)
    assert plan.lengths == [at, 64, 91, 30]
    assert plan.units == (
        None,
        (at, at, at + 64, None),
        (at + 64, at + 64, at + 155, None),
        (at + 154, at + 155, at + 185, None),
    )
