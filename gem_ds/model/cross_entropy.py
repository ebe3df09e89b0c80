"""Next-token loss of hidden states, without ever having the logits of all tokens.

Tokens go by in blocks. A block's logits become its losses and, in the same memory and at once, the
gradients of those, so the forward pass leaves gradients of the hidden states and of the head's
weight, and the backward pass only scales them: as many products of the head as the plain loss has.
What must be in fp32 is so in pieces of the vocabulary. Losses are exact in fp32; in bf16 a block's
gradients are rounded once, as plain ones are, and added to those of the other blocks in bf16.

Shapes: N targets, C hidden size, V vocabulary; n targets of a block, v entries of a piece.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gem_ds.attention.forward import Shaping
from gem_ds.model.flops import columns, tokens_at_once


class NextTokenLoss(nn.Module):
    """Sum of the cross entropy of targets in fp32, from the hidden states that predict them.

    A module, so that ZeRO-3 can gather the head's weight once before it (`language_model` tells it
    so).
    """

    def __init__(self, head: nn.Linear, shaping: Shaping) -> None:
        """`head` stays its own model's; `shaping` is what becomes of its output."""
        super().__init__()
        self._head = [head]  # in a list: no part of this module
        self.shaping = shaping

    def forward(self, hidden_NC: Tensor, targets_N: Tensor) -> Tensor:
        """0, with gradients that are 0, where there are no targets."""
        head = self._head[0]
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NC, head.weight, head.bias, targets_N, self.shaping
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
        shaping: Shaping,
    ) -> Tensor:
        scale, softcap = shaping
        wanted = ctx.needs_input_grad[:3]
        inputs = (hidden_NC, weight_VC, bias_V)
        to_hidden, to_weight, to_bias = (
            torch.zeros_like(x) if x is not None and want else None
            for x, want in zip(inputs, wanted, strict=True)
        )
        loss = hidden_NC.new_zeros((), dtype=torch.float32)
        size = tokens_at_once(len(weight_VC), hidden_NC.device.type)
        for first in range(0, len(targets_N), size):
            block = slice(first, first + size)
            hidden_nC, targets_n = hidden_NC[block], targets_N[block, None]
            logits_nV = F.linear(hidden_nC, weight_VC, bias_V)
            if scale != 1:
                logits_nV.mul_(scale)
            if softcap:
                logits_nV.div_(softcap).tanh_().mul_(softcap)
            total_n = _log_sum_exp(logits_nV)
            own_n = logits_nV.gather(1, targets_n).squeeze(1) - total_n
            loss -= own_n.sum()
            if any(wanted):
                _to_gradients(logits_nV, total_n, own_n, targets_n, softcap)
                if scale != 1:
                    logits_nV.mul_(scale)
            if to_hidden is not None:
                torch.mm(logits_nV, weight_VC, out=to_hidden[block])
            if to_weight is not None:
                torch.addmm(to_weight, logits_nV.T, hidden_nC, out=to_weight)
            if to_bias is not None:
                to_bias += logits_nV.sum(0)
            del logits_nV  # before those of the next block come
        ctx.found = [to_hidden, to_weight, to_bias]  # nobody else's: no inputs or outputs
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Handed on and let go, so that autograd need not copy them.
        found, ctx.found = ctx.found, None
        return *(x if x is None else x.mul_(grads[0]) for x in found), None, None


def _log_sum_exp(logits_nV: Tensor) -> Tensor:
    """(n,) logarithm of the softmax's denominator, in fp32."""
    most_n = logits_nV.amax(1).float()
    sum_n = torch.zeros_like(most_n)
    for piece_nv in _pieces(logits_nV):
        sum_n += (piece_nv - most_n[:, None]).exp_().sum(1)
    return most_n + sum_n.log()


def _to_gradients(
    logits_nV: Tensor, total_n: Tensor, own_n: Tensor, targets_n: Tensor, softcap: float | None
) -> None:
    """Overwrite logits by the gradients of their losses; `own_n` are the targets' logarithms of
    probability, and `targets_n` is (n, 1)."""
    to_own_n = own_n.expm1()
    if softcap:
        to_own_n *= 1 - ((own_n + total_n) / softcap) ** 2
    for piece_nv in _pieces(logits_nV):
        grad_nv = (piece_nv - total_n[:, None]).exp_()
        if softcap:
            grad_nv *= 1 - (piece_nv.float() / softcap) ** 2
        piece_nv.copy_(grad_nv)
    logits_nV.scatter_(1, targets_n, to_own_n[:, None].to(logits_nV.dtype))


def _pieces(logits_nV: Tensor) -> Iterator[Tensor]:
    """(n, v) slices of the vocabulary that may stand in fp32 at once."""
    return iter(torch.split(logits_nV, columns(len(logits_nV), logits_nV.device.type), dim=1))
