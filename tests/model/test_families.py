"""Real families, as tiny random models, with every backend a CPU has."""

import pytest
import torch
from models import FAMILIES, MIXED, WINDOW, hidden_states, tiny_model

from gem_ds.attention.registry import attach, choose
from gem_ds.layout import END, START

ON_DENSE = [name for name in FAMILIES if name.startswith(("gemma2", "gpt_oss"))]


def backends(family, model):
    """`dense`, and the fast one where there is one on a CPU."""
    fast = choose("auto", model, torch.device("cpu"), torch.float32)
    assert fast == ("dense" if family in ON_DENSE else "sdpa")
    return {"dense", fast}


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_documents_are_computed_as_transformers_does(family):
    model = tiny_model(family)
    ids = torch.randint(64, (int(MIXED[-1, END]),), generator=torch.Generator().manual_seed(1))
    a, b = MIXED[1, START], MIXED[1, END]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.base_model(ids[None, a:b]).last_hidden_state[0]
        attach(model)
        got = {name: hidden_states(model, ids, MIXED, name) for name in backends(family, model)}
    for hidden in got.values():
        assert torch.allclose(hidden[a:b], expected, atol=2e-6)
        assert torch.allclose(hidden, got["dense"], atol=2e-6)
    # A document that attends across its summary is computed differently: the mask is at work.
    c, d = MIXED[0, START], MIXED[0, END]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        causal = model.base_model(ids[None, c:d]).last_hidden_state[0]
    assert not torch.allclose(got["dense"][d - 1], causal[-1], atol=1e-3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.endswith("+window")])
def test_a_window_shorter_than_a_document_is_at_work(family):
    assert MIXED[1, END] - MIXED[1, START] > WINDOW
    ids = torch.randint(64, (int(MIXED[-1, END]),), generator=torch.Generator().manual_seed(1))
    hidden = []
    for extra in ({}, {"sliding_window": 64}):
        model = tiny_model(family, **extra)
        attach(model)
        with torch.no_grad():
            hidden.append(hidden_states(model, ids, MIXED, "dense"))
    assert torch.allclose(*(h[14 : 14 + WINDOW] for h in hidden), atol=2e-6)
    assert not torch.allclose(*(h[22] for h in hidden), atol=1e-3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ON_DENSE])
def test_gradients_equal_those_of_dense(family):
    """In fp64: the layers of some families multiply rounding by more than is asked for here."""
    model = tiny_model(family).double()
    attach(model)
    ids = torch.randint(64, (int(MIXED[-1, END]),), generator=torch.Generator().manual_seed(4))
    gradients = {}
    for name in backends(family, model):
        model.zero_grad()
        hidden_states(model, ids, MIXED, name).square().sum().backward()
        gradients[name] = {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }
    expected = gradients.pop("dense")
    for found in gradients.values():
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
