"""Next-token loss in blocks of tokens against the plain one: values, gradients, memory."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gem_ds.attention.forward import Shaping
from gem_ds.model.cross_entropy import NextTokenLoss
from gem_ds.model.flops import FLOATS_AT_ONCE, LEAST, LOGITS_AT_ONCE

N, C, V = 150, 16, 331


@pytest.fixture
def small(monkeypatch):
    """Three blocks of tokens, and six pieces of the vocabulary."""
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", LEAST * V)
    monkeypatch.setitem(FLOATS_AT_ONCE, "cpu", LEAST * LEAST)


def plain(hidden, head, targets, softcap, scale=1):
    """The same from all logits at once."""
    logits = head(hidden) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def losses_and_gradients(compute, head, dtype, weight=0.3):
    torch.manual_seed(1)
    hidden = (2 * torch.randn(N, C)).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,))
    targets[:3] = torch.tensor([0, V - 1, 64])  # the corners of the vocabulary and of a piece
    head.zero_grad()
    loss = compute(hidden, targets)
    (loss * weight).backward()
    return loss.detach(), [hidden.grad, *(p.grad for p in head.parameters())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1, None), (1, 5.0), (0.125, None), (3, 5.0)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_it_is_the_plain_loss(request, bias, scale, softcap, blocks):
    if blocks > 1:
        request.getfixturevalue("small")
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V, bias=bias)
    fast = NextTokenLoss(head, Shaping(scale, softcap))
    assert not list(fast.parameters()), "the head is no part of it"
    expected, theirs = losses_and_gradients(
        lambda h, t: plain(h, head, t, softcap, scale), head, torch.float32
    )
    got, ours = losses_and_gradients(fast, head, torch.float32)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        assert other.abs().max() > 1e-2


def test_in_bf16_it_is_about_as_near_to_fp32_as_the_plain_loss(small):
    """Gradients of hidden states are rounded once, as plain ones are; those of weights are sums of
    blocks, rounded at each, which here are three."""
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V, bias=False).bfloat16()
    exact = torch.nn.Linear(C, V, bias=False)
    exact.load_state_dict({name: x.float() for name, x in head.state_dict().items()})

    def truth(hidden, targets):
        return plain(hidden.float(), exact, targets, None)

    _, (hidden, _) = losses_and_gradients(truth, exact, torch.bfloat16)
    true = hidden.float(), exact.weight.grad
    _, ours = losses_and_gradients(NextTokenLoss(head, Shaping()), head, torch.bfloat16)
    ours = [x.clone() for x in ours]
    _, theirs = losses_and_gradients(lambda h, t: plain(h, head, t, None), head, torch.bfloat16)
    for one, other, x, most in zip(ours, theirs, true, (1.02, 1.3), strict=True):
        mine, plainly = ((y.float() - x).norm() / x.norm() for y in (one, other))
        assert mine < most * plainly, (mine, plainly)
        assert plainly > 1e-4
        assert one.dtype == torch.bfloat16


def test_it_is_zero_with_gradients_without_targets():
    head = torch.nn.Linear(C, V, bias=False)
    hidden = torch.randn(0, C, requires_grad=True)
    loss = NextTokenLoss(head, Shaping())(hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(head.weight.grad, torch.zeros(V, C))
    assert hidden.grad.shape == (0, C)


def test_what_is_not_finite_stays_so():
    head = torch.nn.Linear(C, V, bias=False)
    hidden = torch.full((2, C), float("nan"), requires_grad=True)
    loss = NextTokenLoss(head, Shaping())(hidden, torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.isnan()
    assert head.weight.grad.isnan().any()


class Largest(TorchDispatchMode):
    """The largest tensor of a dtype, in elements, that is made within it, and by what how often."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype, self.n, self.made = dtype, 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made[func.__name__.partition(".")[0]] += 1
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.dtype == self.dtype:
                self.n = max(self.n, x.numel())
        return out


def test_logits_are_never_there_for_all_tokens(small):
    head = torch.nn.Linear(C, V, bias=False)
    with Largest() as ours:
        losses_and_gradients(NextTokenLoss(head, Shaping()), head, torch.float32)
    with Largest() as theirs:
        losses_and_gradients(lambda h, t: plain(h, head, t, None), head, torch.float32)
    assert theirs.n == N * V
    assert ours.n == LEAST * V, "a block"


def test_in_half_precision_no_block_stands_in_fp32(small):
    head = torch.nn.Linear(C, V, bias=False).bfloat16()
    with Largest(torch.float32) as wide, Largest(torch.bfloat16) as narrow:
        losses_and_gradients(NextTokenLoss(head, Shaping(softcap=5.0)), head, torch.bfloat16)
    assert narrow.n == LEAST * V
    assert wide.n == LEAST * LEAST


def test_without_gradients_none_are_made():
    head = torch.nn.Linear(C, V, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(N, C), torch.randint(V, (N,))
    with Largest() as largest:
        loss = NextTokenLoss(head, Shaping())(hidden, targets)
    assert torch.allclose(loss, plain(hidden, head, targets, None))
    assert largest.made["mm"] + largest.made["addmm"] == 1, "the logits alone"
    hidden.requires_grad_()
    with Largest() as largest:
        NextTokenLoss(head, Shaping())(hidden, targets).backward()
    assert largest.made["mm"] == 2, "the logits, and the hidden states' gradient"
    assert largest.made["addmm"] == 0, "a frozen head's gradient"
    assert hidden.grad.abs().max() > 0
