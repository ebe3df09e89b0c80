"""Attention of random tensors, and what a backend must hold to; for CPU and GPU tests alike."""

import numpy as np
import torch
from layouts import bounds_from

from gem_ds.attention.registry import gem_attention, make_plan
from gem_ds.layout import END, after_text


def attend(
    bounds_D4,
    backend,
    summary_attention="isolated",
    window=None,
    dtype=torch.float32,
    heads=(4, 2),
    size=8,
    device="cpu",
    grad=True,
    rest=False,
    **extra,
):
    """Output and gradients of q, k, v for seeded random inputs, in fp64 for comparison.

    With `rest` of the queries at summary tokens and in suffixes alone, and of k and v there.
    """
    generator = torch.Generator().manual_seed(int(bounds_D4.sum()))
    T, (n_heads, n_kv) = int(bounds_D4[-1, END]), heads
    tensors = [torch.randn(1, n, T, size, generator=generator) for n in (n_heads, n_kv, n_kv)]
    weight = torch.randn(1, T, n_heads, size, generator=generator)
    extra = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in extra.items()}
    asking = torch.from_numpy(after_text(bounds_D4)) if rest else slice(None)
    tensors[0], weight = tensors[0][:, :, asking], weight[:, asking]
    q, k, v = (x.to(device, dtype).requires_grad_(grad) for x in tensors)
    plan = make_plan(bounds_D4, backend, summary_attention, device, rest=rest)
    if rest:
        how = window, size**-0.5, extra.get("softcap"), extra.get("s_aux")
        out = plan.attend(torch.nn.Module(), q[0], k[0], v[0], *how)[None]
    else:
        out, _ = gem_attention(
            torch.nn.Module(), q, k, v, None, gem_plan=plan, sliding_window=window, **extra
        )
    if not grad:
        return [out.double().cpu()]
    (out * weight.to(out)).sum().backward()
    gradients = q.grad, k.grad[:, :, asking], v.grad[:, :, asking]
    return [x.double().cpu() for x in (out.detach(), *gradients)]


def max_relative_error(got, expected):
    """Relative to the largest value; to 1 where all expected values are zero, as the gradients of q
    and k are where every token attends one key only."""
    errors = []
    for g, e in zip(got, expected, strict=True):
        largest = float(e.abs().max())
        errors.append(float((g - e).abs().max()) / (largest if largest > 0 else 1.0))
    return max(errors)


def equals_dense(bounds_D4, backend, summary_attention="isolated", window=None, **options):
    """Assert that a backend's outputs and gradients in fp32 are those of `dense`."""
    got = attend(bounds_D4, backend, summary_attention, window, **options)
    expected = attend(bounds_D4, "dense", summary_attention, window, **options)
    assert max_relative_error(got, expected) < 1e-5


def is_no_farther_than_dense(
    backend,
    dtype,
    summary_attention,
    window,
    k,
    size=8,
    device="cpu",
    longest=60,
    rest=False,
    n_rows=1,
):
    """Assert that a backend in half precision is as near to fp32 as `dense` in half precision.

    Over rows of many documents: on one tiny document rounding decides either way.
    """
    case = {"summary_attention": summary_attention, "window": window}
    case |= {"size": size, "device": device, "rest": rest}
    squares = np.zeros((2, 4))
    for seed in range(k, k + n_rows):
        lengths = np.random.default_rng(seed).integers(longest // 60, longest, (2400 // longest, 2))
        row = bounds_from([(m, k, n) if i % 3 else (m, 0, 0) for i, (m, n) in enumerate(lengths)])
        reference = attend(row, "dense", **case)
        for which, name in enumerate((backend, "dense")):
            got = attend(row, name, dtype=dtype, **case)
            squares[which] += [
                float((g - r).square().sum()) for g, r in zip(got, reference, strict=True)
            ]
    fast, dense = np.sqrt(squares)
    assert (fast <= dense * 1.02).all()  # two roundings of one size differ by this much
