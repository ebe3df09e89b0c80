"""gem_ds.planning.expected_batch: the micro-batch of a plan, against those of the trainer on shards
like it."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import write_file
from layouts import bounds_from
from runs import random_shards

from gem_ds import layout
from gem_ds.errors import InputError
from gem_ds.model import flops
from gem_ds.model.batch import BatchOptions, make_batch
from gem_ds.model.positives import PositiveOptions
from gem_ds.planning import expected_batch
from gem_ds.planning.expected_batch import Data, Views
from gem_ds.shards.dataset import Row, Shards
from gem_ds.shards.documents import CONTINUATION, KINDS, PLAIN
from gem_ds.shards.manifest import Manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer_dir):
    """Documents of 64 tokens, a half of them with two summary tokens in the middle."""
    folder = tmp_path_factory.mktemp("expected") / "shards"
    random_shards(folder, tokenizer_dir, n_rows=1, row_length=256, k=2)
    manifest = Manifest.load(folder)
    (file,) = folder.glob("*.parquet")
    bounds = bounds_from([(64, 0, 0), (31, 2, 31)] * 2)
    ids = np.tile(np.arange(2, 66, dtype=np.int32), 4)
    ids[bounds[:, layout.START]] = 0
    for row in layout.summary_index(bounds):
        ids[row] = manifest.summary_tokens
    kinds = np.array([KINDS.index(PLAIN), KINDS.index(CONTINUATION)] * 2, dtype=np.int8)
    rows = [Row(ids, bounds, np.arange(4, dtype=np.int64), kinds)] * 64
    entry = write_file(file, rows, 256)
    documents = {PLAIN: 128, CONTINUATION: 128}
    replace(
        manifest,
        n_rows=64,
        n_documents=256,
        n_tokens=64 * 256,
        n_targets=entry["n_targets"],
        counts={"documents": documents},
        files=[entry],
    ).save(folder)
    return Shards(folder)


def test_data_of_shards(shards):
    data = Data.of(shards.manifest)
    assert (data.row_length, data.summary_tokens) == (256, 2)
    assert (data.document_length, data.gem_share) == (64, 0.5)
    assert data == Data.of(Manifest.load(shards.folder))


@pytest.mark.parametrize("positives", ["crops", "dropout", "continuation"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("targets", "views"), [(True, True), (False, True), (True, False)])
def test_it_is_as_large_as_real_ones(shards, positives, frozen, targets, views):
    """The mean over all rows, of documents as long as expected."""
    manifest = shards.manifest
    options = BatchOptions(
        PositiveOptions(
            (positives,), summary_tokens=tuple(manifest.summary_tokens), bos_token_id=0
        ),
        frozen_text=frozen,
    )
    real = [
        make_batch([shards.read(i) for i in ids], ids, options, targets, views)
        for ids in np.arange(64).reshape(8, 8).tolist()
    ]
    found = expected_batch.stream(
        Data.of(manifest), Views((positives,)), 8, targets, views, frozen_text=frozen
    )
    means = {
        "tokens": np.mean([b.input_ids.numel() for b in real]),
        "targets": np.mean([len(b.targets) for b in real]),
        "anchors": np.mean([len(b.anchors) for b in real]),
    }
    assert found.n_anchors == means["anchors"]
    assert found.n_targets == means["targets"]
    assert int(found.bounds[-1, layout.END]) == pytest.approx(means["tokens"], rel=0.05)
    counts = [flops.count(b.plan.bounds_D4, len(b.targets), frozen_text=frozen).pairs for b in real]
    assert flops.count(found.bounds, 0, frozen_text=frozen).pairs == pytest.approx(
        np.mean(counts),
        rel=0.15,  # views of equal lengths have fewer
    )
    layout.check(found.bounds, int(found.bounds[-1, layout.END]), 2)
    assert found.bounds[-1, layout.END] % layout.PAD_MULTIPLE == 0


def test_targets_are_those_of_the_layout():
    found = expected_batch.stream(Data(256, 40, 0.5, 3), Views(), 2, True, False)
    n = layout.n_targets(found.rows)
    assert found.n_targets == n
    assert len(found.rows) == round(2 * 256 / 40)
    frozen = expected_batch.stream(Data(256, 40, 0.5, 3), Views(), 2, True, False, frozen_text=True)
    ids = np.zeros(int(frozen.rows[-1, layout.END]), dtype=np.int32)
    after = layout.after_text(frozen.rows)
    assert frozen.n_targets == (layout.targets(ids, frozen.rows)[after] >= 0).sum()


def test_a_base_keeps_the_rows_where_there_are_no_targets():
    data = Data(256, 64, 0.2, 2)
    without = expected_batch.stream(data, Views(), 1, False, True)
    held = expected_batch.stream(data, Views(), 1, False, True, with_reference=True)
    assert len(without.rows) == 0
    assert held.rows[-1, layout.END] == 256
    assert flops.count(held.bounds, 0, reference_D4=held.rows).reference > 200


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"document_length": 5}, "does not lie between 10"),
        ({"document_length": 4096}, "--row-length 2048"),
        ({"gem_share": 1.5}, "is no share"),
    ],
)
def test_impossible_data_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        Data(**changed).check()
