"""Two passes give what one gives: embeddings, losses and every gradient, without the text's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from frozen_text import adapted, batch_of, random_rows
from models import DENSE, FAMILIES
from torch.autograd.graph import saved_tensors_hooks

from gem_ds import layout
from gem_ds.attention.registry import choose, make_plan
from gem_ds.layout import SUMMARY


@pytest.fixture
def rows():
    return random_rows()


def losses_and_gradients(gem, batch):
    gem.zero_grad()
    out = gem(batch)
    (out.ntp + out.contrastive).backward()
    gradients = {name: p.grad.clone() for name, p in gem.named_parameters() if p.requires_grad}
    return torch.stack([x.detach().double().reshape(()) for x in out]), gradients


def in_one_pass(batch):
    about = batch.plan
    plan = make_plan(about.bounds_D4, about.backend, about.summary_attention)
    return replace(batch, split=None, plan=plan)


def assert_same(gem, batch):
    found, gradients = losses_and_gradients(gem, batch)
    expected, whole = losses_and_gradients(gem, in_one_pass(batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == whole.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(scale))


@pytest.mark.parametrize("family", DENSE)
def test_two_passes_are_one(rows, family):
    gem = adapted(family)
    backend = choose("auto", gem.lm, torch.device("cpu"), torch.float32)
    batch = batch_of(rows, backend)
    assert len(batch.targets) > 20
    assert len(batch.anchors) > 10
    assert_same(gem, batch)


@pytest.mark.parametrize("backend", ["dense", "sdpa"])
@pytest.mark.parametrize("summary_attention", ["isolated", "causal"])
def test_in_every_backend_and_mask(rows, backend, summary_attention):
    assert_same(adapted(), batch_of(rows, backend, summary_attention))


def test_without_targets_there_are_views_alone(rows):
    batch = batch_of(rows, with_targets=False)
    whole = batch_of(rows)
    assert batch.input_ids.numel() < whole.input_ids.numel()
    assert len(batch.targets) == 0
    assert torch.equal(batch.names, whole.names)
    gem = adapted()
    (alone, gradients), (found, _) = (losses_and_gradients(gem, b) for b in (batch, whole))
    torch.testing.assert_close(alone[2:], found[2:], rtol=1e-5, atol=1e-5)
    assert float(alone[0]) == 0
    assert gradients["summary_rows.weight"].abs().max() > 0


def test_only_what_can_be_trained_is_in_the_stream(rows):
    batch = batch_of(rows, kinds=("dropout",))
    bounds = batch.plan.bounds_D4
    assert layout.is_gem(bounds).all()
    assert len(bounds) < sum(len(row.bounds) for row in rows) + len(batch.anchors) + 1
    suffixes = [row.bounds[layout.is_gem(row.bounds)] for row in rows]
    n = sum(int((b[:, layout.END] - b[:, layout.SUFFIX]).sum()) for b in suffixes)
    assert len(batch.targets) == n, "the last summary token and all of the suffix but its end"
    known = layout.targets(batch.input_ids[0].numpy().astype(np.int32), bounds)
    assert batch.targets.tolist() == known[batch.target_index.numpy()].tolist()


def test_a_stream_without_documents_has_gradients_all_the_same(rows):
    plain = [
        row._replace(
            bounds=np.array([layout.plain(0, len(row.input_ids))], dtype=np.int32),
            records=row.records[:1],
            kinds=np.zeros(1, dtype=np.int8),
        )
        for row in rows
    ]
    batch = batch_of(plain, kinds=("dropout",))
    assert len(batch.anchors) == len(batch.targets) == 0
    assert batch.plan.bounds_D4[0, SUMMARY] > 0
    _, gradients = losses_and_gradients(adapted(), batch)
    assert gradients
    assert not any(gradient.any() for gradient in gradients.values())


def test_nothing_of_the_text_is_kept_for_the_backward_pass_but_attention(rows):
    """What is kept of a long prefix: keys and values."""
    gem = adapted()
    row = rows[0]._replace(
        input_ids=np.append(np.arange(4096) % 60, [62, 63, 5]).astype(np.int32),
        bounds=np.array([[0, 4096, 4098, 4099]], dtype=np.int32),
        records=np.zeros(1, dtype=np.int64),
        kinds=np.ones(1, dtype=np.int8),
    )
    batch = batch_of([row], kinds=())

    def kept_by(stream):
        kept = {}

        def keep(x):
            kept[x.data_ptr()] = x.numel()
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            gem(stream)
        return sum(kept.values()) / 4096 / 2  # a token and layer

    width, n_kv = 32, 2 * 8
    assert kept_by(batch) < 1.2 * 2 * n_kv  # the padding's and the summary's are beside
    assert kept_by(in_one_pass(batch)) > 8 * width


def test_families_are_those_with_linear_layers_alone():
    assert set(FAMILIES) - set(DENSE) == {"gpt_oss"}
