"""Next-token loss of hidden states, without ever having the logits of all tokens.

The vocabulary goes by in chunks, twice: the forward pass sums up each token's softmax, the backward
pass computes a chunk's logits again and turns them into gradients at once. So the largest tensor is
N x a chunk instead of N x V, the gradient of the weight is one product a chunk (no sum that is
rounded again and again), and what it costs is one product of the head more.

Shapes: N targets, C hidden size, V vocabulary, v of a chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gem_ds.activations import columns


class NextTokenLoss(nn.Module):
    """Sum of the cross entropy of targets in fp32, from the hidden states that predict them.

    A module, so that ZeRO-3 can gather the head's weight once before it and once before its
    backward pass (`model` tells it so).
    """

    def __init__(self, head: nn.Linear, softcap: float | None) -> None:
        """`head` stays its own model's; with `softcap` logits are ``softcap tanh(x / softcap)``."""
        super().__init__()
        self._head = [head]  # in a list: no part of this module
        self.softcap = softcap

    def forward(self, hidden_NC: Tensor, targets_N: Tensor) -> Tensor:
        """0, with gradients that are 0, where there are no targets."""
        head = self._head[0]
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NC, head.weight, head.bias, targets_N, self.softcap
        )
        return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        softcap: float | None,
    ) -> Tensor:
        most_N = hidden_NC.new_full((len(hidden_NC),), -math.inf, dtype=torch.float32)
        sum_N, own_N = torch.zeros_like(most_N), torch.zeros_like(most_N)
        for first, last in _chunks(hidden_NC, weight_VC):
            logits_Nv = _logits(hidden_NC, weight_VC, bias_V, first, last, softcap)
            inside_N, place_N = _places(targets_N, first, last)
            own_N += inside_N * logits_Nv.gather(1, place_N[:, None]).squeeze(1)
            before_N, most_N = most_N, torch.maximum(most_N, logits_Nv.amax(1))
            sum_N *= (before_N - most_N).exp()
            sum_N += logits_Nv.sub_(most_N[:, None]).exp_().sum(1)
        total_N = most_N + sum_N.log()
        ctx.save_for_backward(hidden_NC, weight_VC, bias_V, targets_N, total_N)
        ctx.softcap = softcap
        return (total_N - own_N).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NC, weight_VC, bias_V, targets_N, total_N = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_hidden = torch.zeros_like(hidden_NC, dtype=torch.float32) if wanted[0] else None
        to_weight = torch.empty_like(weight_VC) if wanted[1] else None
        to_bias = torch.empty_like(bias_V) if wanted[2] else None
        for first, last in _chunks(hidden_NC, weight_VC):
            logits_Nv = _logits(hidden_NC, weight_VC, bias_V, first, last, ctx.softcap)
            slope_Nv = 1 - (logits_Nv / ctx.softcap) ** 2 if ctx.softcap else None
            inside_N, place_N = _places(targets_N, first, last)
            grad_Nv = logits_Nv.sub_(total_N[:, None]).exp_()
            grad_Nv.scatter_add_(1, place_N[:, None], -inside_N[:, None].to(grad_Nv.dtype))
            if slope_Nv is not None:
                grad_Nv *= slope_Nv
            grad_Nv *= grads[0]
            if to_bias is not None:
                to_bias[first:last] = grad_Nv.sum(0)
            rounded_Nv = grad_Nv.to(hidden_NC.dtype)
            if to_hidden is not None:
                to_hidden += rounded_Nv @ weight_VC[first:last]
            if to_weight is not None:
                torch.mm(rounded_Nv.T, hidden_NC, out=to_weight[first:last])
            del logits_Nv, grad_Nv, rounded_Nv, slope_Nv  # before those of the next chunk come
        if to_hidden is not None:
            to_hidden = to_hidden.to(hidden_NC.dtype)
        return to_hidden, to_weight, to_bias, None, None


def _chunks(hidden_NC: Tensor, weight_VC: Tensor) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the vocabulary's entries that go together."""
    size = columns(len(hidden_NC), hidden_NC.device.type)
    for first in range(0, len(weight_VC), size):
        yield first, min(first + size, len(weight_VC))


def _logits(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    bias_V: Tensor | None,
    first: int,
    last: int,
    softcap: float | None,
) -> Tensor:
    """(N, v) logits of a chunk: computed in the model's dtype as its head does, then fp32."""
    bias_v = None if bias_V is None else bias_V[first:last]
    logits_Nv = F.linear(hidden_NC, weight_VC[first:last], bias_v)
    if softcap:
        logits_Nv = torch.tanh(logits_Nv / softcap) * softcap
    return logits_Nv.float()


def _places(targets_N: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Whether each target is of a chunk, and its place in it; 0 where it is not."""
    inside_N = (targets_N >= first) & (targets_N < last)
    return inside_N, (targets_N - first).where(inside_N, 0)
