"""Attention over one flat stream by the GEM rule on a CPU.

Batches and runs (`cpu_tiles`) go through PyTorch's flash kernel or, where that is faster, through
plain matrix products: in bf16 the kernel costs half as much again, or twice as much, up to some
hundred tokens. One autograd function does all of it, so that nothing is kept for the backward pass
but the inputs, the output and the flash kernel's normalisers.

Shapes: T tokens in the stream, N heads, G key-value heads, H head size, B documents of a batch of
at most L tokens, M problems, Q queries, K keys.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gem_ds.attention.backends import refuse, repeated
from gem_ds.attention.cpu_tiles import Batch, Pieces, Run, cut, cut_rest
from gem_ds.attention.segments import SummaryAttention
from gem_ds.layout import Bounds

PRODUCTS_UP_TO = 512  # keys, in bf16; beyond it the flash kernel is as fast, with less memory
_softmax_backward = torch.ops.aten._softmax_backward_data
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Sdpa(NamedTuple):
    """The work of one stream."""

    pieces: Pieces

    @classmethod
    def of(
        cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None, rest: bool = False
    ) -> "Sdpa":
        return cls((cut_rest if rest else cut)(bounds_D4, summary, window))

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
            q_b, k_b, v_b = _of_batch(vectors, batch, q.shape[1])
            weights = _weights(q_b, k_b, batch.hidden, scale)
            batch.queries.put(out, torch.bmm(weights.to(v.dtype), v_b))
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
        earlier: list[tuple[Any, ...]] = []  # run, gradients of keys and values of earlier runs
        split = (torch.split(x, plan.lengths, dim=2) for x in (q, grad, out))
        for run, q_r, grad_r, out_r in zip(plan.units, *split, strict=True):
            if run is None:  # overwritten by the batches
                found = q_r, q_r[:, :kv_heads], q_r[:, :kv_heads]
            else:
                inputs = q_r, *_keys(k, v, run, heads), grad_r
                if _by_products(q, run):
                    gradients = _products_backward(*inputs, out_r, run, scale)
                else:
                    lse, whole = next(remaining), (q, grad, out)
                    gradients = _flash_backward_run(*inputs, out_r, whole, lse, run, scale)
                dq, dk_r, dv_r, shared = gradients
                if shared:
                    earlier.append((run, *(_summed(x, kv_heads) for x in shared)))
                found = dq, _summed(dk_r, kv_heads), _summed(dv_r, kv_heads)
            for part, x in zip(parts, found, strict=True):
                part.append(x.transpose(1, 2))
        totals = []
        for part in parts:
            totals.append(torch.cat(part, dim=1).transpose(1, 2))
            part.clear()  # before the next is put together
        if plan.rest:  # keys of their own, most of them without a gradient
            totals[1:] = [x.new_zeros(x.transpose(1, 2).shape).transpose(1, 2) for x in (k, v)]
        _, dk, dv = totals
        for run, *of_run in earlier:
            for total, x in zip((dk, dv), of_run, strict=True):
                of_keys = total[:, :, run.near : run.start]
                of_keys.copy_(of_keys + x)
        vectors = [_vectors(x) for x in (q, k, v, grad)] if plan.batches else []
        for batch in plan.batches:
            q_b, k_b, v_b = _of_batch(vectors[:3], batch, heads)
            grad_b = batch.queries.gathered(vectors[3], heads)
            of_heads = grad_b.view(-1, heads, *grad_b.shape[1:])
            of_heads.masked_fill_(~batch.queries.kept[:, None, :, None], 0)
            weights = _weights(q_b, k_b, batch.hidden, scale)
            found = _chain(q_b, k_b, v_b, grad_b, weights, scale)
            places = batch.queries, batch.keys, batch.keys
            for total, x, of_batch in zip(totals, found, places, strict=True):
                of_batch.put(total, x)
        return *totals, None, None


def _keys(k: Tensor, v: Tensor, run: Run, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1, N, K, H) of a run."""
    groups = heads // k.shape[1]
    keys = (x.narrow(2, run.near, run.end - run.near) for x in (k, v))
    k_r, v_r = (repeated(x, groups, dim=1) for x in keys)
    return k_r, v_r


# Of a run's q (1, N, Q, H); of its own tokens' k and v, (1, N, Q, H) each; and of the keys and
# values before them, in fp32 at least, where there are any: they are summed with another run's and
# are to be rounded once.
Gradients = tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]


def _summed(x: Tensor, kv_heads: int) -> Tensor:
    """Gradients (1, N, K, H) of repeated heads as those of the heads, (1, G, K, H)."""
    if x.shape[1] == kv_heads:
        return x
    return x.reshape(1, kv_heads, -1, *x.shape[2:]).sum(2)


def _flash_run(
    q: Tensor, q_r: Tensor, k_r: Tensor, v_r: Tensor, run: Run, scale: float
) -> tuple[Tensor, Tensor]:
    """The run's output (1, N, Q, H), and the kernel's normalisers for the backward pass.

    A causal run is made a square by queries at its front, taken from the whole stream `q`, whose
    outputs are dropped. Half precision is computed in fp32: the kernel rounds more often than
    `dense` does, and is hardly faster.
    """
    extra = _extra(run)
    if extra:
        q_r = q.narrow(2, run.near, run.end - run.near)
    inputs = (_wide(x) for x in (q_r, k_r, v_r))
    bias = _bias(run, q.dtype)
    found, lse = _flash(*inputs, 0.0, bias is None, attn_mask=bias, scale=scale)
    return found[:, :, extra:].to(q.dtype), lse


def _flash_backward_run(
    q_r: Tensor,
    k_r: Tensor,
    v_r: Tensor,
    grad_r: Tensor,
    out_r: Tensor,
    whole: tuple[Tensor, Tensor, Tensor],
    lse: Tensor,
    run: Run,
    scale: float,
) -> Gradients:
    """`whole` is the stream's q, gradient and output."""
    extra, n = _extra(run), run.start - run.near
    if extra:
        q_r, grad_r, out_r = (x.narrow(2, run.near, run.end - run.near) for x in whole)
        grad_r = grad_r.clone()
        grad_r[:, :, :extra] = 0
    inputs, bias = (_wide(x) for x in (grad_r, q_r, k_r, v_r, out_r)), _bias(run, q_r.dtype)
    dq, dk, dv = _flash_backward(*inputs, lse, 0.0, bias is None, attn_mask=bias, scale=scale)
    shared = (dk[:, :, :n].clone(), dv[:, :, :n].clone()) if n else ()
    own = (x.to(q_r.dtype) for x in (dq[:, :, extra:], dk[:, :, n:], dv[:, :, n:]))
    return *own, shared


def _extra(run: Run) -> int:
    """Queries that make a run what the flash kernel takes: causal, the first on the first key."""
    return run.start - run.near if run.hidden is None else 0


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _products(q_r: Tensor, k_r: Tensor, v_r: Tensor, run: Run, scale: float) -> Tensor:
    """The run's output (1, N, Q, H) by matrix products."""
    weights = _weights(q_r[0], k_r[0], _hidden(run), scale)
    return torch.bmm(weights.to(v_r.dtype), v_r[0]).unsqueeze(0)


def _products_backward(
    q_r: Tensor,
    k_r: Tensor,
    v_r: Tensor,
    grad_r: Tensor,
    out_r: Tensor,
    run: Run,
    scale: float,
) -> Gradients:
    weights = _weights(q_r[0], k_r[0], _hidden(run), scale)
    found = _chain(q_r[0], k_r[0], v_r[0], grad_r[0], weights, scale)
    dq, dk, dv = (x.unsqueeze(0) for x in found)
    n = run.start - run.near
    if not n:
        return dq, dk, dv, ()
    q, v, grad, out = (_wide(x[0]) for x in (q_r, v_r, grad_r, out_r))
    of_keys = weights[:, :, :n].transpose(1, 2)
    dweights = torch.bmm(v[:, :n], grad.transpose(1, 2))
    dscores = of_keys * (dweights - (grad * out).sum(-1)[:, None])
    shared = scale * torch.bmm(dscores, q), torch.bmm(of_keys, grad)
    return dq, dk[:, :, n:], dv[:, :, n:], tuple(x.unsqueeze(0) for x in shared)


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
    zeros = torch.zeros(run.hidden.shape, dtype=torch.promote_types(dtype, torch.float32))
    return zeros.masked_fill_(run.hidden, float("-inf"))


def _vectors(x: Tensor) -> Tensor:
    """(T, N, H) in memory as it is said; a copy only where x (1, N, T, H) does not lie so."""
    return x[0].transpose(0, 1).contiguous()


def _of_batch(vectors: Sequence[Tensor], batch: Batch, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's queries, keys and values, from q, k and v as `_vectors` gives them."""
    places = batch.queries, batch.keys, batch.keys
    q_b, k_b, v_b = (p.gathered(x, heads) for x, p in zip(vectors, places, strict=True))
    return q_b, k_b, v_b
