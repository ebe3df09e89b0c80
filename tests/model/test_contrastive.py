"""The contrastive loss against slow references in float64, one anchor at a time."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gem_ds.model.contrastive import ContrastiveOptions, aggregate, info_nce

PAPER = ContrastiveOptions()


def different(n, start=0):
    """Names of pairs that share nothing."""
    return torch.arange(start, start + 3 * n).view(n, 3)


def embeddings(n, width=8):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, width, generator=generator), torch.randn(n, width, generator=generator)


def log_scale(scale=20.0):
    return torch.tensor([math.log(scale)], requires_grad=True)


def reference(anchors, views, names, scale, both, size):
    """The mean over directions of the sum over anchors, by loops in float64."""
    a, v = (F.normalize(x[:, :size].double(), dim=-1) for x in (anchors, views))
    directions = [(a, v, [a])] if not both else [(a, v, [v, a]), (v, a, [a, v])]
    if not both:
        directions = [(a, v, [v])]
    sums = []
    for queries, keys, pools in directions:
        total = 0.0
        for i, query in enumerate(queries):
            own = math.exp(scale * float(query @ keys[i]))
            weight = own
            for pool in pools:
                for j, other in enumerate(pool):
                    record, *texts = names[j].tolist()
                    same = record == int(names[i, 0]) or {*texts} & {*names[i, 1:].tolist()}
                    weight += 0 if same else math.exp(scale * float(query @ other))
            total -= math.log(own / weight)
        sums.append(total)
    return sum(sums) / len(sums)


def of_one_rank(anchors, views, names, scale, options):
    return info_nce(anchors, views, names, [len(anchors)], scale, options)


def test_info_nce_is_the_papers_formula():
    a, v = embeddings(4)
    got = of_one_rank(a, v, different(4), log_scale(), PAPER)
    cosine = torch.stack([torch.stack([F.cosine_similarity(x, y, dim=0) for y in v]) for x in a])
    weight = (20 * cosine).exp()
    expected = -(weight.diagonal() / weight.sum(1)).log().sum()
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert got.positive_cosine.item() == pytest.approx(cosine.diagonal().sum().item(), rel=1e-5)
    others = (cosine.sum() - cosine.diagonal().sum()) / 3
    assert got.negative_cosine.item() == pytest.approx(others.item(), rel=1e-4)
    assert got.scale.item() == pytest.approx(20)


NAMES = {
    "different": different(6),
    "a record twice": torch.tensor(
        [[7, 10, 11], [7, 12, 13], [2, 14, 15], [3, 16, 17], [4, 18, 19], [5, 20, 21]]
    ),
    "an anchor twice": torch.tensor(
        [[0, 10, 11], [1, 10, 13], [2, 14, 15], [3, 16, 17], [4, 18, 19], [5, 10, 21]]
    ),
    "a view that is an anchor": torch.tensor(
        [[0, 10, 11], [1, 11, 13], [2, 14, 15], [3, 16, 14], [4, 18, 19], [5, 20, 21]]
    ),
    "all one record": torch.tensor([[9, 10 + i, 20 + i] for i in range(6)]),
}


@pytest.mark.parametrize("negatives", ["views", "all"])
@pytest.mark.parametrize("names", NAMES)
def test_what_is_the_same_is_no_negative(names, negatives):
    a, v = embeddings(6)
    options = replace(PAPER, negatives=negatives)
    scale = 3.0  # so that every negative weighs something
    got = of_one_rank(a, v, NAMES[names], log_scale(scale), options).loss
    expected = reference(a, v, NAMES[names], scale, negatives == "all", 8)
    assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if names == "all one record":
        assert got.item() == pytest.approx(0, abs=1e-6)
    elif names != "different":
        assert got.item() < of_one_rank(a, v, different(6), log_scale(scale), options).loss.item()


@pytest.mark.parametrize("negatives", ["views", "all"])
def test_matryoshka_trains_the_cut_embeddings_too(negatives):
    a, v = embeddings(5)
    options = replace(PAPER, negatives=negatives, dimensions=(2, 4))
    got = of_one_rank(a, v, different(5), log_scale(), options)
    both = negatives == "all"
    expected = sum(reference(a, v, different(5), 20, both, n) for n in (2, 4, 8)) / 3
    assert got.loss.item() == pytest.approx(expected, rel=1e-4)
    whole = of_one_rank(a, v, different(5), log_scale(), replace(options, dimensions=()))
    assert got.positive_cosine.item() == whole.positive_cosine.item()


def test_without_anchors_every_parameter_stays_in_the_graph():
    for negatives in ("views", "all"):
        hidden, scale = torch.randn(3, 8, requires_grad=True), log_scale()
        options = replace(PAPER, negatives=negatives, dimensions=(4,))
        loss = of_one_rank(hidden[:0], hidden[:0], different(0), scale, options).loss
        loss.backward()
        assert loss.item() == 0
        assert scale.grad.item() == 0
        assert torch.equal(hidden.grad, torch.zeros(3, 8))


@pytest.mark.parametrize(("start", "bound"), [(5.0, 50.0), (-1.0, 2.0)])
def test_the_temperature_is_clamped_and_can_come_back(start, bound):
    """Aligned pairs ask for a larger scale, crossed ones for a smaller: beyond a bound only the
    gradient that points back passes."""
    pairs = torch.eye(4)
    options = ContrastiveOptions(scales=(2.0, 50.0))
    grads = {}
    for name, views in {"larger": pairs, "smaller": pairs.roll(1, 0)}.items():
        scale = torch.tensor([start], requires_grad=True)
        result = of_one_rank(pairs, views, different(4), scale, options)
        assert result.scale.item() == pytest.approx(bound, rel=1e-5)
        result.loss.backward()
        grads[name] = scale.grad.item()
    inward, outward = ("smaller", "larger") if start > 0 else ("larger", "smaller")
    assert grads[inward] != 0
    assert grads[outward] == 0


def test_aggregations_of_the_summary_tokens():
    states = torch.arange(12.0).view(2, 3, 2)
    assert aggregate(states, "mean").tolist() == [[2, 3], [8, 9]]
    assert aggregate(states, "last").tolist() == [[4, 5], [10, 11]]
    assert aggregate(states, "concat").tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert aggregate(states.bfloat16(), "last").dtype == torch.float32
