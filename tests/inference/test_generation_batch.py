"""Texts that come and go in a batch have the logits that the stock model gives each alone."""

import copy

import numpy as np
import pytest
import torch
from models import FAMILIES, tiny_model

from gem_ds.inference.generation_batch import PLACES, DecodingBatch, places

LENGTHS = (3, 17, 70, 1)  # the third makes the cache longer


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, n).astype(np.int32) for n in LENGTHS]


def alone(stock, document, n):
    """(n, V) logits of greedy decoding, everything computed anew for each token."""
    ids, found = torch.from_numpy(document).long()[None], []
    for _ in range(n):
        with torch.inference_mode():
            found.append(stock(ids, use_cache=False).logits[0, -1])
        ids = torch.cat([ids, found[-1].argmax()[None, None]], 1)
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_whoever_comes_and_goes_the_logits_are_the_stock_models(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():  # sinks and biases too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("eager")
    texts, n = documents(), 10
    batch = DecodingBatch(model)
    found: list[list[torch.Tensor]] = [[], [], [], []]
    there: list[int] = []

    def join(*new: int) -> None:
        there.extend(new)
        chosen = [texts[i] for i in new]
        for i, row in zip(new, batch.join(chosen, [len(x) + n for x in chosen]), strict=True):
            found[i].append(row)

    def step() -> None:
        for i, row in zip(
            there, batch.step([int(found[i][-1].argmax()) for i in there]), strict=True
        ):
            found[i].append(row)

    join(0, 1)
    step()
    join(2, 3)
    step()
    step()
    batch.leave([0])  # the others move up
    there.remove(0)
    step()
    batch.leave([1, 2])
    there[:] = [1]
    step()
    join(0)  # a place that was used before
    step()
    assert len(batch) == 2
    for i, rows in enumerate(found[1:], start=1):
        assert (torch.stack(rows) - alone(stock, texts[i], len(rows))).abs().max() < 1e-5
    again = torch.stack(found[0][-2:])
    assert (again - alone(stock, texts[0], 2)).abs().max() < 1e-5


def test_room_is_for_final_lengths_and_given_back() -> None:
    batch = DecodingBatch(tiny_model())
    assert places([10, 70]) == 2 * 2 * PLACES
    batch.join(documents()[:2], [20, 30])
    assert {x.shape[:3] for kept in batch.kept.values() for x in kept} == {(2, 4, PLACES)} or {
        x.shape[:3] for kept in batch.kept.values() for x in kept
    } == {(2, 2, PLACES)}
    assert places([20, 30, 70]) == 3 * 2 * PLACES
    batch.leave([0, 1])
    assert len(batch) == 0
    assert not batch.kept
