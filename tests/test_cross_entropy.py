"""Next-token loss in chunks of the vocabulary against the plain one: values, gradients, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gem_ds.activations import LOGITS_AT_ONCE
from gem_ds.cross_entropy import NextTokenLoss

N, C, V = 37, 16, 331


def plain(hidden, head, targets, softcap):
    """The same from all logits at once."""
    logits = head(hidden)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def losses_and_gradients(compute, head, dtype, weight=0.3):
    torch.manual_seed(1)
    hidden = (2 * torch.randn(N, C)).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,))
    targets[:3] = torch.tensor([0, V - 1, 64])  # the corners of the vocabulary and of a chunk
    head.zero_grad()
    loss = compute(hidden, targets)
    (loss * weight).backward()
    return loss.detach(), [hidden.grad, *(p.grad for p in head.parameters())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [64 * N, V * N])
def test_it_is_the_plain_loss(monkeypatch, bias, softcap, chunk):
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", chunk)
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V, bias=bias)
    fast = NextTokenLoss(head, softcap)
    assert not list(fast.parameters()), "the head is no part of it"
    expected, theirs = losses_and_gradients(
        lambda h, t: plain(h, head, t, softcap), head, torch.float32
    )
    got, ours = losses_and_gradients(fast, head, torch.float32)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        assert other.abs().max() > 1e-2


def test_in_bf16_it_is_about_as_near_to_fp32_as_the_plain_loss(monkeypatch):
    """Gradients of weights are one product a chunk, as plain ones are; those of hidden states are
    sums of chunks, each rounded once, which here are six."""
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 64 * N)
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V, bias=False).bfloat16()
    exact = torch.nn.Linear(C, V, bias=False)
    exact.load_state_dict({name: x.float() for name, x in head.state_dict().items()})

    def truth(hidden, targets):
        return plain(hidden.float(), exact, targets, None)

    _, (hidden, _) = losses_and_gradients(truth, exact, torch.bfloat16)
    true = hidden.float(), exact.weight.grad
    _, ours = losses_and_gradients(NextTokenLoss(head, None), head, torch.bfloat16)
    ours = [x.clone() for x in ours]
    _, theirs = losses_and_gradients(lambda h, t: plain(h, head, t, None), head, torch.bfloat16)
    for one, other, x, most in zip(ours, theirs, true, (1.5, 1.02), strict=True):
        mine, plainly = ((y.float() - x).norm() / x.norm() for y in (one, other))
        assert mine < most * plainly, (mine, plainly)
        assert plainly > 1e-4
        assert one.dtype == torch.bfloat16


def test_it_is_zero_with_gradients_without_targets():
    head = torch.nn.Linear(C, V, bias=False)
    hidden = torch.randn(0, C, requires_grad=True)
    loss = NextTokenLoss(head, None)(hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(head.weight.grad, torch.zeros(V, C))
    assert hidden.grad.shape == (0, C)


def test_what_is_not_finite_stays_so():
    head = torch.nn.Linear(C, V, bias=False)
    hidden = torch.full((2, C), float("nan"), requires_grad=True)
    loss = NextTokenLoss(head, None)(hidden, torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.isnan()
    assert head.weight.grad.isnan().any()


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that is made within it."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.n = max(self.n, x.numel())
        return out


def test_logits_are_never_there_for_the_whole_vocabulary(monkeypatch):
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 64 * N)
    head = torch.nn.Linear(C, V, bias=False)
    with Largest() as ours:
        losses_and_gradients(NextTokenLoss(head, None), head, torch.float32)
    with Largest() as theirs:
        losses_and_gradients(lambda h, t: plain(h, head, t, None), head, torch.float32)
    assert theirs.n == N * V
    assert ours.n == max(V * C, 64 * N), "the weight's gradient, or a chunk"
