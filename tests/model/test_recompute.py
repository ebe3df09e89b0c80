"""What is kept and what is computed again: the same gradients, other products and other memory."""

import collections

import pytest
import torch
from models import MIXED, hidden_states, tiny_model
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from gem_ds.model.layer_options import PRODUCTS, Recompute

LAYERS = 4
HOW = {
    "nothing": None,
    "all": Recompute(),
    "every second": Recompute(every=2),
    "all but products": Recompute(keep_products=True),
}


class Products(TorchDispatchMode):
    """How often each operator was called within it."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def one_step(how):
    """Gradients; how many products and other operators ran; bytes kept outside of checkpoints."""
    lm = tiny_model(num_hidden_layers=LAYERS).train()
    if how:
        how.apply(lm)
    ids = torch.arange(int(MIXED[-1, -1])) % 64
    kept = {}

    def pack(x):
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    # The outer mode counts what really runs: results that were kept do not reach it again.
    with Products() as ran, saved_tensors_hooks(pack, lambda x: x):
        hidden_states(lm, ids, MIXED).pow(2).sum().backward()
    products = sum(n for op, n in ran.calls.items() if op in PRODUCTS)
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    return gradients, products, sum(ran.calls.values()) - products, sum(kept.values())


@pytest.fixture(scope="module")
def made():
    return {name: one_step(how) for name, how in HOW.items()}


@pytest.mark.parametrize("name", list(HOW))
def test_gradients_are_the_same_bit_for_bit(made, name):
    expected, got = made["nothing"][0], made[name][0]
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert max(g.abs().max() for g in expected.values()) > 0


def test_how_often_matrices_are_multiplied(made):
    products = {name: made[name][1] for name in HOW}
    others = {name: made[name][2] for name in HOW}
    assert products["nothing"] == products["all but products"] < products["every second"]
    assert products["every second"] < products["all"]
    assert others["nothing"] < others["all but products"]
    # Half of the layers are computed again.
    again = products["all"] - products["nothing"]
    assert products["every second"] - products["nothing"] == again / 2


def test_what_is_recomputed_is_not_kept(made):
    kept = {name: made[name][3] for name in HOW}
    assert kept["all"] < kept["every second"] < kept["nothing"]
