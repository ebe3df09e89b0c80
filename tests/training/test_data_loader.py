"""Micro-batches: their rows, targets and views."""

import numpy as np
import pytest
import torch
from runs import random_shards

from gem_ds import layout
from gem_ds.attention.registry import gem_attention
from gem_ds.model.batch import BatchOptions, make_batch
from gem_ds.model.positives import PositiveOptions
from gem_ds.shards.dataset import Shards
from gem_ds.training.data_loader import Loader


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("data") / "shards"
    return Shards(random_shards(folder, tokenizer_dir, n_rows=23, k=2))


SUMMARY_TOKENS = (400, 401)
KINDS = ("dropout", "continuation", "crops")


def options(*kinds):
    tokens = {"summary_tokens": SUMMARY_TOKENS, "bos_token_id": 0, "eos_token_id": 1}
    lengths = {"crop_tokens": (2, 8), "crop_every": 16}
    return BatchOptions(PositiveOptions(kinds or ("dropout",), **tokens, **lengths))


def loader(shards, rows=8, micro=1, rank=0, world_size=1, seed=3):
    return Loader(shards, options(), rows, micro, rank, world_size, seed)


def test_a_micro_batch_holds_the_same_rows_on_one_rank_and_on_many(shards):
    for step in range(7):
        one = loader(shards, micro=4).row_ids(step)
        two = [loader(shards, micro=2, rank=r, world_size=2).row_ids(step) for r in range(2)]
        four = [loader(shards, micro=1, rank=r, world_size=4).row_ids(step) for r in range(4)]
        for m, rows in enumerate(one):
            assert sorted(rows) == sorted(two[0][m] + two[1][m])
            assert sorted(rows) == sorted(i for ids in four for i in ids[m])


def test_every_epoch_reads_every_row_once_in_a_new_order(shards):
    reader = loader(shards)
    epochs = [[reader.row_at(e * 23 + i) for i in range(23)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [loader(shards).row_at(i) for i in range(23)]
    assert epochs[0] != [loader(shards, seed=4).row_at(i) for i in range(23)]


def test_shards_of_several_epochs_are_read_epoch_by_epoch(tmp_path, tokenizer_dir):
    folder = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=10, k=1, epochs=3)
    reader = loader(Shards(folder))
    assert len(reader.shards) == 30
    orders = [[reader.row_at(e * 10 + i) for i in range(10)] for e in range(7)]
    for epoch, order in enumerate(orders):
        first = epoch % 3 * 10
        assert sorted(order) == list(range(first, first + 10))
    relative = [tuple(i % 10 for i in order) for order in orders]
    assert len(set(relative)) == 7
    reader.close()


def test_a_step_is_a_function_of_its_number(shards):
    straight, jumping = loader(shards, rows=4), loader(shards, rows=4)
    expected = [straight.step(s, True, True) for s in range(8)]
    for s in (5, 6, 2, 7):
        for a, b in zip(expected[s], jumping.step(s, True, True), strict=True):
            assert a.row_ids == b.row_ids
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.views, b.views)
    straight.close()
    jumping.close()


def test_the_stream_is_rows_then_views_then_padding(shards):
    rows = [shards.read(i) for i in (3, 4)]
    batch = make_batch(rows, (3, 4), options(), with_targets=True, with_views=True)
    ids = batch.input_ids[0].numpy()
    n = sum(len(row.input_ids) for row in rows)
    assert np.array_equal(ids[:n], np.concatenate([row.input_ids for row in rows]))
    bounds = np.concatenate([rows[0].bounds, layout.shift(rows[1].bounds, len(rows[0].input_ids))])
    expected = layout.targets(ids[:n], bounds)
    assert batch.target_index.tolist() == np.flatnonzero(expected >= 0).tolist()
    assert batch.targets.tolist() == expected[expected >= 0].tolist()
    assert len(batch.targets) == layout.n_targets(bounds)
    assert batch.anchors.tolist() == layout.summary_index(bounds).tolist()
    assert batch.views.shape == batch.anchors.shape
    assert (batch.views >= n).all()
    k_ids = set(shards.manifest.summary_tokens)
    assert set(ids[batch.views.flatten()]) == set(ids[batch.anchors.flatten()]) == k_ids
    assert len(ids) % 64 == 0
    assert 0 <= batch.n_padding < 64
    with_views_only = make_batch(rows, (3, 4), options(), with_targets=False, with_views=True)
    assert len(with_views_only.targets) == len(with_views_only.target_index) == 0
    plain_only = make_batch(rows, (3, 4), options(), with_targets=True, with_views=False)
    assert len(plain_only.anchors) == len(plain_only.views) == 0
    assert plain_only.input_ids.shape[1] < batch.input_ids.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_views_do_not_depend_on_the_rank_that_makes_them(shards, kind):
    both = make_batch([shards.read(9), shards.read(5)], (9, 5), options(kind), True, True)
    alone = make_batch([shards.read(9)], (9,), options(kind), True, True)
    n = int(alone.views[-1, -1]) + 1 - 64
    assert n > 10
    assert torch.equal(both.input_ids[0, 128 : 128 + n], alone.input_ids[0, 64 : 64 + n])
    assert torch.equal(both.position_ids[0, 128 : 128 + n], alone.position_ids[0, 64 : 64 + n])
    again = make_batch([shards.read(9)], (9,), options(kind), True, True, view_seeds=(1,))
    assert torch.equal(alone.input_ids, again.input_ids) == (kind == "continuation")


@pytest.mark.parametrize("kind", KINDS)
def test_no_view_sees_its_document_and_no_document_its_view(shards, kind):
    """Through attention itself: the output at one never moves with a value of the other."""
    rows = [shards.read(i) for i in (3, 4)]
    batch = make_batch(rows, (3, 4), options(kind), True, True)
    T = batch.input_ids.shape[1]
    n = sum(len(row.input_ids) for row in rows)
    q, k = torch.randn(1, 1, T, 4), torch.randn(1, 1, T, 4)
    v = torch.randn(1, 1, T, 4)
    moved_rows, moved_views = v.clone(), v.clone()
    moved_rows[:, :, :n] += 1
    moved_views[:, :, n:] += 1

    def out(values):
        return gem_attention(torch.nn.Module(), q, k, values, None, gem_plan=batch.plan)[0]

    assert torch.equal(out(v)[:, n:], out(moved_rows)[:, n:])
    assert torch.equal(out(v)[:, :n], out(moved_views)[:, :n])
    assert not torch.equal(out(v)[:, n:], out(moved_views)[:, n:])


@pytest.mark.parametrize("kind", KINDS)
def test_no_anchor_sees_its_view_and_no_view_its_anchor(shards, kind):
    batch = make_batch([shards.read(3)], (3,), options(kind), True, True)
    T = batch.input_ids.shape[1]
    q, k, v = torch.randn(3, 1, 1, T, 4)
    document_T = torch.from_numpy(layout.document_of(batch.plan.bounds_D4))

    def out(values):
        return gem_attention(torch.nn.Module(), q, k, values, None, gem_plan=batch.plan)[0]

    before = out(v)
    assert len(batch.anchors)
    for anchor, view in zip(batch.anchors[:, 0], batch.views[:, 0], strict=True):
        for one, other in ((anchor, view), (view, anchor)):
            moved = v.clone()
            moved[:, :, document_T == document_T[one]] += 1
            assert torch.equal(out(moved)[:, other], before[:, other])
            assert not torch.equal(out(moved)[:, one], before[:, one])
