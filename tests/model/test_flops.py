"""gem_ds.model.flops: pairs against the mask, operations against PyTorch's own counter."""

import numpy as np
import pytest
import torch
from layouts import bounds_from
from models import MIXED, tiny_model
from runs import random_row
from torch.utils.flop_counter import FlopCounterMode

from gem_ds import layout
from gem_ds.attention import masks
from gem_ds.attention.forward import Shaping
from gem_ds.attention.registry import attach, make_plan
from gem_ds.model import architecture, flops
from gem_ds.model.cross_entropy import NextTokenLoss


def layouts(k):
    rng = np.random.default_rng(k)
    return [random_row(rng, 64, k, range(k), gem_share=0.7).bounds for _ in range(5)]


@pytest.mark.parametrize("window", [None, 1, 5, 30])
@pytest.mark.parametrize("summary", ["isolated", "causal"])
@pytest.mark.parametrize("k", [1, 3])
def test_pairs_are_the_ones_of_the_mask(k, summary, window):
    for bounds in layouts(k):
        mask = masks.dense(bounds, summary, window)
        assert flops.pairs(bounds, summary, window) == mask.sum()
        after = torch.from_numpy(layout.after_text(bounds))
        assert flops.pairs(bounds, summary, window, rest=True) == mask[after].sum()


def test_no_documents_have_no_pairs():
    assert flops.pairs(MIXED[:0]) == 0


def test_counts_of_a_stream():
    bounds = bounds_from([(7, 2, 6), (9, 0, 0)])
    counts = flops.count(bounds, 5)
    assert (counts.tokens, counts.targets, counts.first_tokens) == (24, 5, 0)
    frozen = flops.count(bounds, 5, frozen_text=True)
    assert (frozen.tokens, frozen.first_tokens, frozen.summary) == (8, 16, 2)
    assert frozen.first_pairs + frozen.pairs == counts.pairs
    compared = flops.count(bounds, 5, reference_D4=bounds)
    assert compared.reference == 16
    assert compared.reference_pairs == 7 * 8 // 2 + 9 * 10 // 2


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def lm():
    lm = tiny_model()
    attach(lm)
    return lm.train()


def test_operations_are_those_that_pytorch_counts(lm):
    """With dense attention, which computes all pairs of the stream: so all pairs are given here."""
    bounds = bounds_from([(7, 1, 8), (9, 0, 0)])
    n = int(bounds[-1, layout.END])
    shape = architecture.of_config(lm.config.to_dict(), "tiny")
    ids = torch.randint(64, (1, n))

    def hidden():
        places = torch.from_numpy(layout.positions(bounds))[None]
        plan = make_plan(bounds, "dense")
        return lm.base_model(ids, position_ids=places, gem_plan=plan, use_cache=False)[0]

    def step():
        NextTokenLoss(lm.lm_head, Shaping())(hidden()[0, :5], ids[0, :5]).backward()

    counts = flops.StreamCounts(tokens=n, pairs=n * n, targets=5)
    kept = flops.of_stream(shape, counts)
    assert counted(step) == kept.hardware
    assert kept.recomputed == 0
    forward = flops.of_stream(shape, flops.StreamCounts(0, 0, 0, first_tokens=n, first_pairs=n * n))
    with torch.no_grad():
        assert counted(hidden) == forward.model
    lm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    found = flops.of_stream(shape, counts, recomputed_layers=1.0)
    assert counted(step) == found.hardware
    assert found.model == kept.model


def test_operations_of_a_frozen_base_with_adapters(lm):
    shape = architecture.of_config(lm.config.to_dict(), "tiny")
    counts = flops.StreamCounts(tokens=10, pairs=50, targets=0, summary=4, first_tokens=20)
    summary = flops.of_stream(shape, counts, "summary", 8).model
    everywhere = flops.of_stream(shape, counts, "everywhere", 8).model
    one = 2 * shape.layer_matrices
    attention = 3 * 4 * shape.heads * shape.head_dim * shape.layers * 50
    lora = 3 * 2 * shape.lora(8)
    assert summary == one * (20 + 2 * 10) + attention + lora * 4
    assert everywhere == summary + lora * 6


def test_a_base_costs_its_forward_pass_and_both_heads():
    shape = architecture.BUILT_IN["llama3.2-1b"]
    alone = flops.StreamCounts(100, 5000, 10)
    held = flops.StreamCounts(100, 5000, 10, reference=80, reference_pairs=3000)
    one, both = (flops.of_stream(shape, counts) for counts in (alone, held))
    head = 2 * shape.hidden * shape.vocab * 80
    forward = 2 * shape.layer_matrices * 80 + 4 * shape.heads * shape.head_dim * 16 * 3000
    assert both.model - one.model == forward + head * (3 + 1)
    assert both.recomputed - one.recomputed == 2 * head
    assert both.hardware == both.model + both.recomputed


def test_six_operations_a_parameter_and_token_without_attention():
    shape = architecture.BUILT_IN["llama3.1-8b"]
    found = flops.of_stream(shape, flops.StreamCounts(1000, 0, 1000)).model
    matrices = shape.layer_matrices + shape.embedding.numel
    assert found == 6 * matrices * 1000
