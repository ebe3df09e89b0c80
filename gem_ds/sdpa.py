"""Attention over one flat stream by the GEM rule on a CPU.

Batches and runs (`pieces`) go through PyTorch's flash kernel or, where that is faster, through
plain matrix products: in bf16 the kernel costs twice to four times as much up to some hundred
tokens. One autograd function does all of it, so that nothing is kept for the backward pass but the
inputs, the output and the flash kernel's normalisers.

Shapes: T tokens in the stream, N heads, G key-value heads, H head size, B documents of a batch of
at most L tokens, M problems, Q queries, K keys.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gem_ds.kernels import refuse
from gem_ds.layout import Bounds
from gem_ds.pieces import Batch, Pieces, Run, cut
from gem_ds.segments import SummaryAttention

PRODUCTS_UP_TO = 512  # keys, in bf16; beyond it the flash kernel is as fast and needs less memory
_softmax_backward = torch.ops.aten._softmax_backward_data
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Sdpa(NamedTuple):
    """The work of one stream."""

    pieces: Pieces

    @classmethod
    def of(cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None) -> "Sdpa":
        return cls(cut(bounds_D4, summary, window))

    def to(self, device: torch.device) -> "Sdpa":
        assert device.type == "cpu", "attention.choose offers this backend on a CPU only"
        return self

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        refuse("sdpa", cap, sinks)
        inputs = (x.unsqueeze(0) for x in (q, k, v))
        out: Tensor = _Attend.apply(*inputs, self.pieces, scale)  # type: ignore[no-untyped-call]
        return out.squeeze(0).transpose(0, 1)


@functools.cache
def _after() -> Tensor:
    """Hidden keys of a causal square; of a run with fewer queries, its last rows."""
    return torch.ones(PRODUCTS_UP_TO, PRODUCTS_UP_TO, dtype=torch.bool).triu(1)


def _hidden(run: Run) -> Tensor:
    n = run.end - run.near
    return _after()[run.start - run.near : n, :n] if run.hidden is None else run.hidden


class _Attend(torch.autograd.Function):
    """q (1, N, T, H), k and v (1, G, T, H) to the output (1, N, T, H).

    What is returned lies in memory as (1, T, N, H), as a model's projections do. Runs come in the
    stream's order and every token attends itself, so of a run's keys those before its first query
    have a gradient from an earlier run, to which this one's is added.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Pieces, scale: float) -> Tensor:
        parts = []
        normalisers = []
        for run, q_r in zip(plan.units, torch.split(q, plan.lengths, dim=2), strict=True):
            if run is None:
                parts.append(q_r.transpose(1, 2))  # overwritten by the batches
                continue
            k_r, v_r = _keys(k, v, run, q.shape[1])
            if _by_products(q, run):
                found = _products(q_r, k_r, v_r, run, scale)
            else:
                found, lse = _flash_run(q, q_r, k_r, v_r, run, scale)
                normalisers.append(lse)
            parts.append(found.transpose(1, 2))
        out = torch.cat(parts, dim=1).transpose(1, 2)
        vectors = [_vectors(x) for x in (q, k, v)] if plan.batches else []
        for batch in plan.batches:
            q_b, k_b, v_b = (_gathered(x, batch, q.shape[1]) for x in vectors)
            weights = _weights(q_b, k_b, batch.hidden, scale)
            _put(out, batch, torch.bmm(weights.to(v.dtype), v_b))
        ctx.save_for_backward(q, k, v, out, *normalisers)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *normalisers = ctx.saved_tensors
        plan, scale, grad = ctx.plan, ctx.scale, grads[0]
        heads, kv_heads = q.shape[1], k.shape[1]
        remaining = iter(normalisers)
        parts: tuple[list[Tensor], ...] = ([], [], [])
        earlier: list[tuple[Run, Tensor, Tensor]] = []  # gradients of keys of earlier runs
        split = (torch.split(x, plan.lengths, dim=2) for x in (q, grad, out))
        for run, q_r, grad_r, out_r in zip(plan.units, *split, strict=True):
            if run is None:  # overwritten by the batches
                found = q_r, q_r[:, :kv_heads], q_r[:, :kv_heads]
            else:
                k_r, v_r = _keys(k, v, run, heads)
                if _by_products(q, run):
                    found = _products_backward(q_r, k_r, v_r, grad_r, run, scale)
                else:
                    wide, lse = _Wide(q, grad, out), next(remaining)
                    found = _flash_run_backward(wide, q_r, k_r, v_r, grad_r, out_r, lse, run, scale)
                dq, dk, dv = found[0], *(_summed(x, kv_heads) for x in found[1:])
                n = run.start - run.near
                if n:
                    before = dk[:, :, :n].clone(), dv[:, :, :n].clone()
                    if _by_products(q, run):
                        exact = _of_earlier_keys(q_r, k_r, v_r, grad_r, out_r, run, scale)
                        before = _summed(exact[0], kv_heads), _summed(exact[1], kv_heads)
                    earlier.append((run, *before))
                    dk, dv = dk[:, :, n:], dv[:, :, n:]
                found = dq, dk, dv
            for part, x in zip(parts, found, strict=True):
                part.append(x.transpose(1, 2))
        totals = []
        for part in parts:
            totals.append(torch.cat(part, dim=1).transpose(1, 2))
            part.clear()  # before the next is put together
        _, dk, dv = totals
        for run, dk_r, dv_r in earlier:
            for total, x in ((dk, dk_r), (dv, dv_r)):
                of_keys = total[:, :, run.near : run.start]
                of_keys.copy_(of_keys + x)
        vectors = [_vectors(x) for x in (q, k, v, grad)] if plan.batches else []
        for batch in plan.batches:
            q_b, k_b, v_b, grad_b = (_gathered(x, batch, heads) for x in vectors)
            of_heads = grad_b.view(-1, heads, *grad_b.shape[1:])
            of_heads.masked_fill_(~batch.kept[:, None, :, None], 0)
            weights = _weights(q_b, k_b, batch.hidden, scale)
            found = _chain(q_b, k_b, v_b, grad_b, weights, scale)
            for total, x in zip(totals, found, strict=True):
                _put(total, batch, x)
        return *totals, None, None


def _keys(k: Tensor, v: Tensor, run: Run, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1, N, K, H) of a run."""
    k_r, v_r = (x.narrow(2, run.near, run.end - run.near) for x in (k, v))
    if k.shape[1] == heads:
        return k_r, v_r
    groups = heads // k.shape[1]
    return k_r.repeat_interleave(groups, dim=1), v_r.repeat_interleave(groups, dim=1)


def _summed(x: Tensor, kv_heads: int) -> Tensor:
    """Gradients (1, N, K, H) of repeated heads as those of the heads, (1, G, K, H)."""
    if x.shape[1] == kv_heads:
        return x
    return x.reshape(1, kv_heads, -1, *x.shape[2:]).sum(2)


class _Wide(NamedTuple):
    """The whole stream, for runs that the flash kernel takes as causal squares: with queries at the
    front whose outputs are dropped."""

    q: Tensor
    grad: Tensor
    out: Tensor


def _flash_run(
    q: Tensor, q_r: Tensor, k_r: Tensor, v_r: Tensor, run: Run, scale: float
) -> tuple[Tensor, Tensor]:
    """The run's output (1, N, Q, H), and the kernel's normalisers for the backward pass."""
    extra = 0 if run.hidden is not None else run.start - run.near
    if extra:
        q_r = q.narrow(2, run.near, run.end - run.near)
    bias = _bias(run, q.dtype)
    found, lse = _flash(q_r, k_r, v_r, 0.0, bias is None, attn_mask=bias, scale=scale)
    return found[:, :, extra:] if extra else found, lse


def _flash_run_backward(
    wide: _Wide,
    q_r: Tensor,
    k_r: Tensor,
    v_r: Tensor,
    grad_r: Tensor,
    out_r: Tensor,
    lse: Tensor,
    run: Run,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    extra = 0 if run.hidden is not None else run.start - run.near
    if extra:
        q_r, grad_r, out_r = (x.narrow(2, run.near, run.end - run.near) for x in wide)
        grad_r = grad_r.clone()
        grad_r[:, :, :extra] = 0
    bias = _bias(run, q_r.dtype)
    dq, dk, dv = _flash_backward(
        *(grad_r, q_r, k_r, v_r, out_r, lse, 0.0, bias is None), attn_mask=bias, scale=scale
    )
    return dq[:, :, extra:] if extra else dq, dk, dv


def _products(q_r: Tensor, k_r: Tensor, v_r: Tensor, run: Run, scale: float) -> Tensor:
    """The run's output (1, N, Q, H) by matrix products."""
    weights = _weights(q_r[0], k_r[0], _hidden(run), scale)
    return torch.bmm(weights.to(v_r.dtype), v_r[0]).unsqueeze(0)


def _products_backward(
    q_r: Tensor, k_r: Tensor, v_r: Tensor, grad_r: Tensor, run: Run, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the run's q (1, N, Q, H), and of its k and v (1, N, K, H)."""
    weights = _weights(q_r[0], k_r[0], _hidden(run), scale)
    found = _chain(q_r[0], k_r[0], v_r[0], grad_r[0], weights, scale)
    dq, dk, dv = (x.unsqueeze(0) for x in found)
    return dq, dk, dv


def _of_earlier_keys(
    q_r: Tensor, k_r: Tensor, v_r: Tensor, grad_r: Tensor, out_r: Tensor, run: Run, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values before the run's queries, in fp32: summary tokens, whose
    gradient is a sum with another run's and is to be rounded once."""
    n = run.start - run.near
    q, v, grad, out = (x[0].float() for x in (q_r, v_r, grad_r, out_r))
    weights = _weights(q_r[0], k_r[0], _hidden(run), scale)[:, :, :n].transpose(1, 2)
    dweights = torch.bmm(v[:, :n], grad.transpose(1, 2))
    dscores = weights * (dweights - (grad * out).sum(-1)[:, None])
    dk, dv = scale * torch.bmm(dscores, q), torch.bmm(weights, grad)
    return dk.unsqueeze(0), dv.unsqueeze(0)


def _weights(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """(M, Q, K) attention weights of M problems, in fp32 at least; `hidden` is (Q, K), or (B, L, L)
    with M = B N."""
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    if hidden.ndim == 3:
        hidden = hidden[:, None]
    scores.view(*hidden.shape[:-3], -1, *hidden.shape[-2:]).masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _chain(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, by the chain rule through the softmax in fp32 at least."""
    dv = torch.bmm(weights.to(q.dtype).transpose(1, 2), grad)
    dweights = torch.bmm(grad, v.transpose(1, 2)).to(weights.dtype)
    dscores = _softmax_backward(dweights, weights, -1, weights.dtype).to(q.dtype)
    empty = q.new_empty(())
    dq = torch.baddbmm(empty, dscores, k, beta=0, alpha=scale)
    dk = torch.baddbmm(empty, dscores.transpose(1, 2), q, beta=0, alpha=scale)
    return dq, dk, dv


def _by_products(q: Tensor, run: Run) -> bool:
    return q.dtype == torch.bfloat16 and run.end - run.near <= PRODUCTS_UP_TO


def _bias(run: Run, dtype: torch.dtype) -> Tensor | None:
    """(Q, K) added to the scores of the flash kernel, which knows causality itself."""
    if run.hidden is None:
        return None
    return torch.zeros(run.hidden.shape, dtype=dtype).masked_fill_(run.hidden, float("-inf"))


def _vectors(x: Tensor) -> Tensor:
    """(T, N, H) in memory as it is said; a copy only where x (1, N, T, H) does not lie so."""
    return x[0].transpose(0, 1).contiguous()


def _gathered(vectors_TNH: Tensor, batch: Batch, heads: int) -> Tensor:
    """(B N, L, H) the documents of a batch, head by head, repeated up to `heads`."""
    _, n, size = vectors_TNH.shape
    rows = batch.rows(n, heads // n).gather
    return vectors_TNH.view(-1, size).index_select(0, rows).view(-1, batch.tokens.shape[1], size)


def _put(total: Tensor, batch: Batch, part: Tensor) -> None:
    """Write (B N, L, H) to the batch's tokens of a stream; no other piece writes there."""
    heads, size = total.shape[1], total.shape[3]
    n_documents, length = batch.tokens.shape
    if len(part) > n_documents * heads:  # heads that were repeated
        part = part.view(n_documents, heads, -1, length, size).sum(2)
    rows = batch.rows(heads, 1)
    found = part.view(-1, size).index_select(0, rows.kept)
    total[0].transpose(0, 1).view(-1, size).index_copy_(0, rows.scatter, found)
