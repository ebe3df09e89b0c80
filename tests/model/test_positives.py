"""Positives: which documents have them, and what their two texts are."""

from dataclasses import replace

import numpy as np
import pytest

from gem_ds import layout
from gem_ds.model.positives import (
    PositiveOptions,
    crops,
    dropout_view,
    fingerprint,
    positives,
    sides,
)
from gem_ds.shards.dataset import Row
from gem_ds.shards.documents import CONTINUATION, KINDS, PAIR, PLAIN, RECONSTRUCTION

BOS, EOS, K = 0, 1, (300, 301)
OPTIONS = PositiveOptions(summary_tokens=K, bos_token_id=BOS, eos_token_id=EOS)


def row(*documents):
    """A row of (kind, prefix, suffix); each begins with bos and ends with eos."""
    ids, bounds, kinds = [], [], []
    for kind, prefix, suffix in documents:
        at = len(ids)
        ids += [BOS, *prefix]
        if kind == PLAIN:
            ids.append(EOS)
            bounds.append(layout.plain(at, len(ids)))
        else:
            summary = len(ids)
            ids += [*K, *suffix, EOS]
            bounds.append((at, summary, summary + len(K), len(ids)))
        kinds.append(KINDS.index(kind))
    n = len(documents)
    return Row(
        np.array(ids, dtype=np.int32),
        np.array(bounds, dtype=np.int32),
        np.arange(100, 100 + n, dtype=np.int64),
        np.array(kinds, dtype=np.int8),
    )


ROW = row(
    (PLAIN, range(10, 30), ()),
    (CONTINUATION, range(30, 42), range(42, 50)),
    (RECONSTRUCTION, range(50, 58), range(50, 58)),
    (PAIR, range(60, 70), range(70, 75)),
    (CONTINUATION, range(80, 90), ()),
)


def of(kind, seed=0, **options):
    found = replace(OPTIONS, kinds=(kind,), **options)
    return list(positives(ROW, found, np.random.default_rng(seed)))


def text(view):
    """The text of a view, after a check that it is one: bos, text, summary."""
    ids = view.input_ids.tolist()
    assert ids[0] == BOS
    assert ids[view.summary :] == list(K)
    assert len(view.positions) == len(ids)
    return ids[1 : view.summary]


def test_dropout_is_of_all_documents_with_summary_tokens():
    found = of("dropout", prefix_dropout=0.4)
    assert [each.document for each in found] == [1, 2, 3, 4]
    prefixes = (range(30, 42), range(50, 58), range(60, 70), range(80, 90))
    for each, prefix in zip(found, prefixes, strict=True):
        assert each.anchor is None
        kept = text(each.view)
        assert set(kept) < set(prefix)
        assert (each.view.positions[1:-2] - 1 + prefix.start).tolist() == kept
        assert each.view.positions[-2:].tolist() == [len(prefix) + 1, len(prefix) + 2]
        name = fingerprint(np.array(prefix, dtype=np.int32))
        assert each.names == (100 + each.document, name, name)


def test_a_dropout_view_keeps_the_first_token_the_summary_and_position_ids():
    ids = np.arange(102, 114, dtype=np.int32)  # ten of a prefix, two summary tokens
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(300):
        view = dropout_view(ids, 2, replace(OPTIONS, prefix_dropout=0.3), rng)
        assert view.input_ids[0] == 102
        assert view.input_ids[view.summary :].tolist() == [112, 113]
        assert (view.input_ids - 102).tolist() == view.positions.tolist()
        assert (np.diff(view.positions) > 0).all()
        sizes.append(view.summary)
    assert np.mean(sizes) == pytest.approx(1 + 9 * 0.7, abs=0.3)
    whole = dropout_view(ids, 2, replace(OPTIONS, prefix_dropout=0.0), rng)
    assert whole.input_ids.tolist() == list(range(102, 114))


@pytest.mark.parametrize(
    ("kind", "document", "prefix", "suffix"),
    [("continuation", 1, range(30, 42), range(42, 50)), ("pair", 3, range(60, 70), range(70, 75))],
)
def test_a_suffix_is_a_text_of_its_own(kind, document, prefix, suffix):
    """Without eos; of documents of that kind alone; none where there is no suffix."""
    (found,) = of(kind)
    assert (found.document, found.anchor) == (document, None)
    assert text(found.view) == list(suffix)
    assert found.view.positions.tolist() == list(range(len(suffix) + 3))
    names = (fingerprint(np.array(part, dtype=np.int32)) for part in (prefix, suffix))
    assert found.names == (100 + document, *names)


def test_of_long_sides_of_a_pair_spans_are_compared():
    options = replace(OPTIONS, pair_tokens=(8, 64), crop_every=50)
    context, answer = np.arange(400, dtype=np.int32), np.arange(500, 512, dtype=np.int32)
    rng = np.random.default_rng(0)
    found = [pair for _ in range(300) for pair in sides(context, answer, options, rng)]
    assert len(found) == 300 * 8, "one in 50 tokens of the longer side"
    spans = [one for one, _ in found]
    assert all((np.diff(span) == 1).all() for span in spans)
    lengths = np.array([len(span) for span in spans])
    assert (lengths.min(), lengths.max()) == (8, 64)
    assert np.median(lengths) == pytest.approx(8 * 8**0.5, rel=0.1)
    assert np.mean([span[0] == 0 for span in spans]) == pytest.approx(0.5, abs=0.05)
    assert max(span[-1] for span in spans) == 399
    # The short side is whole unless fewer tokens than it has are drawn.
    whole = [len(other) == 12 for _, other in found]
    assert np.mean(whole) == pytest.approx(1 - np.log(12 / 8) / np.log(8), abs=0.05)
    (pair,) = sides(answer, answer, replace(options, pair_tokens=(12, 64)), rng)
    assert [side.tolist() for side in pair] == [answer.tolist()] * 2


def test_a_cut_pair_is_two_views_and_a_whole_one_its_document():
    cut = of("pair", pair_tokens=(4, 4), crop_every=5)
    assert len(cut) == 2
    for each in cut:
        assert set(text(each.anchor)) < set(range(60, 70))
        assert set(text(each.view)) < set(range(70, 75))
        sides_of = (np.array(text(x), dtype=np.int32) for x in (each.anchor, each.view))
        assert each.names == (103, *map(fingerprint, sides_of))


def test_crops_are_spans_of_one_text_without_controls():
    texts = {
        0: [range(10, 30)],
        1: [range(30, 50)],  # prefix and suffix are one text
        2: [range(50, 58)],
        3: [range(60, 70), range(70, 75)],  # a pair's are two
        4: [range(80, 90)],
    }
    lengths, different = [], 0
    for seed in range(100):
        found = of("crops", seed, crop_tokens=(2, 12), crop_every=10)
        n = {d: [each.document for each in found].count(d) for d in range(5)}
        assert n == {0: 2, 1: 2, 2: 1, 3: 2, 4: 1}
        for each in found:
            one, other = text(each.anchor), text(each.view)
            for span in (one, other):
                assert span == list(range(span[0], span[-1] + 1))
            assert any({*one, *other} <= set(whole) for whole in texts[each.document])
            names = (fingerprint(np.array(span, dtype=np.int32)) for span in (one, other))
            assert each.names == (100 + each.document, *names)
            different += one != other
            lengths += [len(one), len(other)]
    assert min(lengths) == 2
    assert max(lengths) <= 8  # three quarters of a stretch of ten
    assert different > 0.7 * len(lengths) / 2


def test_lengths_of_crops_are_log_uniform_and_their_places_cover_the_text():
    rng = np.random.default_rng(0)
    whole = np.arange(1000, dtype=np.int32)
    options = replace(OPTIONS, crop_tokens=(8, 128), crop_every=1000)
    spans = [span for _ in range(2000) for pair in crops(whole, options, rng) for span in pair]
    lengths = np.array([len(span) for span in spans])
    assert (lengths.min(), lengths.max()) == (8, 128)
    assert np.median(lengths) == pytest.approx(32, rel=0.1)  # the geometric mean of the ends
    seen = np.bincount(np.concatenate(spans), minlength=1000)
    assert seen.min() > 0
    assert seen[100:900].max() < 2 * seen[100:900].min()


def test_texts_too_short_have_no_crops():
    for n in range(4):
        assert not list(crops(np.arange(n, dtype=np.int32), OPTIONS, np.random.default_rng(0)))
    assert len(list(crops(np.arange(4, dtype=np.int32), OPTIONS, np.random.default_rng(0)))) == 1


def test_without_bos_and_eos_texts_are_whole():
    bare = Row(ROW.input_ids[:22] + 5, ROW.bounds[:1], ROW.records[:1], ROW.kinds[:1])
    options = replace(OPTIONS, kinds=("crops",), bos_token_id=None, eos_token_id=None)
    (found,) = positives(bare, options, np.random.default_rng(0))
    assert found.anchor.summary == len(found.anchor.input_ids) - 2


def test_several_kinds_come_document_by_document():
    options = replace(OPTIONS, kinds=("pair", "crops"))
    found = list(positives(ROW, options, np.random.default_rng(0)))
    assert [each.document for each in found] == [0, 1, 2, 3, 3, 3, 4]
    assert [each.anchor is None for each in found] == [False, False, False, True, *[False] * 3]
