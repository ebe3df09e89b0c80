"""Attention backends for the GEM rule, and their registration with Transformers.

`attach` switches a Transformers model to the attention registered here; `make_plan` turns the
layout of one stream into what a backend needs, once per micro-batch, shared by all layers; the plan
travels as the keyword argument ``gem_plan`` of the model's forward. No model code is changed.

Backends: ``dense`` builds the (T, T) mask and is the reference. ``sdpa`` never does: it covers the
rule with causal squares. A plain document is one. A GEM document is two: ``prefix | summary``, and
``summary | suffix`` of which the summary's outputs are dropped, so that the suffix attends every
summary token. Squares of similar length run as one batch, padded at the end, where causality hides
the padding. Only isolated summaries with k > 1 need a mask, of k queries a document.

Shapes: T tokens in the stream, N heads, H head size, B squares of a batch, Q queries, K keys.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from gem_ds import masks
from gem_ds.errors import InputError
from gem_ds.layout import END, START, SUFFIX, SUMMARY, Bounds, Index, is_gem
from gem_ds.masks import SummaryAttention

Backend = Literal["auto", "dense", "sdpa"]
NAME = "gem"
# A batch of squares may hold this share of padding: more costs arithmetic, less costs kernel calls.
MAX_PADDING = 0.1


class Piece(NamedTuple):
    """A batch of equally shaped attention problems, as slices of the plan's gathered tokens."""

    shape_BQ: tuple[int, int]
    shape_BK: tuple[int, int]
    mask_B1QK: Tensor | None  # None: causal, Q = K


@dataclass(frozen=True)
class Plan:
    """One stream's attention work. `gather_q`, `gather_kv` pick tokens of the stream for the
    pieces, in order; `restore` (T,) picks each token's output from the pieces' flat outputs."""

    backend: Backend
    longest: int  # tokens in the longest document
    mask_TT: Tensor | None = None
    pieces: tuple[Piece, ...] = ()
    gather_q: Tensor | None = None
    gather_kv: Tensor | None = None
    restore: Tensor | None = None


def make_plan(
    bounds_D4: Bounds,
    device: torch.device | str = "cpu",
    backend: Backend = "auto",
    summary_attention: SummaryAttention = "isolated",
) -> Plan:
    """The plan of a stream whose documents tile it (`layout.check`)."""
    longest = int((bounds_D4[:, END] - bounds_D4[:, START]).max())
    if backend == "dense":
        mask_TT = masks.dense(bounds_D4, summary_attention).to(device)
        return Plan("dense", longest, mask_TT=mask_TT)
    if backend in ("auto", "sdpa"):
        return _sdpa_plan(bounds_D4, torch.device(device), summary_attention, longest)
    raise InputError(f"unknown attention backend {backend!r}; choose auto, dense or sdpa")


def attach(model: Any) -> None:
    """Make a Transformers model use this attention. Its forward then needs ``gem_plan``.

    Raises `InputError` for a model whose attention the interface does not reach, or that needs what
    the plan cannot give.
    """
    config = model.config.get_text_config()
    name = config.model_type
    if not getattr(model, "_supports_attention_backend", False):
        raise InputError(
            f"model family {name!r} does not use Transformers' attention interface, so the GEM "
            "mask cannot reach it; choose a family that does (Llama, Mistral, Qwen, Gemma, …)"
        )
    if getattr(config, "attention_dropout", 0.0):
        raise InputError(
            f"attention_dropout is {config.attention_dropout} in the {name} config; "
            "set it to 0, attention here has no dropout"
        )
    model.set_attn_implementation(NAME)


def gem_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, N, T, H)
    key: Tensor,  # (1, N_kv, T, H)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    gem_plan: Plan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function Transformers calls in every layer. Returns (1, T, N, H) and no weights."""
    model = type(module).__name__
    if gem_plan is None:
        raise ValueError("pass gem_plan=make_plan(layout) to the model's forward")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(f"attention takes one flat stream, got query {tuple(query.shape)}")
    if sliding_window and gem_plan.longest > sliding_window:
        raise InputError(
            f"{model} attends a window of {sliding_window} tokens and a document has "
            f"{gem_plan.longest}; shard with --row-length {sliding_window} or less"
        )
    if s_aux is not None:
        raise InputError(f"{model} uses attention sinks, which no backend computes")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if gem_plan.backend == "dense":
        return _dense(gem_plan, query, key, value, scale, softcap), None
    if softcap:
        raise InputError(f"{model} uses attention soft-capping; train it with --attention dense")
    return _sdpa(gem_plan, query, key, value, scale), None


def _dense(plan: Plan, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None) -> Tensor:
    """Attention with an explicit mask, softmax in fp32: slow and obviously right."""
    scores_1NTT = (q @ k.transpose(2, 3)).float() * scale
    if cap:
        scores_1NTT = torch.tanh(scores_1NTT / cap) * cap
    assert plan.mask_TT is not None
    scores_1NTT = scores_1NTT.masked_fill(~plan.mask_TT, float("-inf"))
    return (scores_1NTT.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def _sdpa(plan: Plan, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention piece by piece. Gathers are `index_select` and `split`, whose backward passes add
    into and concatenate one tensor; slices would each allocate a whole stream of zeros."""
    assert plan.gather_q is not None
    assert plan.gather_kv is not None
    assert plan.restore is not None
    q_TNH, k_TNH, v_TNH = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, N, H)
    n_queries = [b * n for b, n in (piece.shape_BQ for piece in plan.pieces)]
    n_keys = [b * n for b, n in (piece.shape_BK for piece in plan.pieces)]
    queries = torch.split(q_TNH.index_select(0, plan.gather_q), n_queries)
    keys = torch.split(k_TNH.index_select(0, plan.gather_kv), n_keys)
    values = torch.split(v_TNH.index_select(0, plan.gather_kv), n_keys)
    outputs = []
    for piece, q_p, k_p, v_p in zip(plan.pieces, queries, keys, values, strict=True):
        out_BNQH = F.scaled_dot_product_attention(
            q_p.view(*piece.shape_BQ, *q_p.shape[1:]).transpose(1, 2),
            k_p.view(*piece.shape_BK, *k_p.shape[1:]).transpose(1, 2),
            v_p.view(*piece.shape_BK, *v_p.shape[1:]).transpose(1, 2),
            attn_mask=piece.mask_B1QK,
            is_causal=piece.mask_B1QK is None,
            scale=scale,
        )
        outputs.append(out_BNQH.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.restore)[None]


def _sdpa_plan(
    bounds_D4: Bounds, device: torch.device, summary_attention: SummaryAttention, longest: int
) -> Plan:
    bounds = bounds_D4.astype(np.int64)
    gem_G4 = bounds[is_gem(bounds_D4)]
    k = int(gem_G4[0, SUFFIX] - gem_G4[0, SUMMARY]) if len(gem_G4) else 0
    isolated = k > 1 and summary_attention == "isolated"
    # Causal squares as (first token, tokens, outputs dropped at the front).
    with_suffix = gem_G4[gem_G4[:, END] > gem_G4[:, SUFFIX]]
    first_ends = bounds[:, SUMMARY] if isolated else bounds[:, SUFFIX]
    squares = np.concatenate(
        [
            np.stack([bounds[:, START], first_ends - bounds[:, START], 0 * first_ends], 1),
            np.stack(
                [
                    with_suffix[:, SUMMARY],
                    with_suffix[:, END] - with_suffix[:, SUMMARY],
                    np.full(len(with_suffix), k),
                ],
                1,
            ),
        ]
    )
    pieces: list[Piece] = []
    gather_q: list[Index] = []
    gather_kv: list[Index] = []
    restore = np.full(int(bounds[-1, END]), -1, dtype=np.int64)
    done = 0  # outputs of the pieces so far
    for batch in _similar(squares[:, 1]):
        first_B1, n_B1, dropped_B1 = (squares[batch, i, None] for i in range(3))
        place_Q = np.arange(n_B1.max())
        index_BQ = first_B1 + np.minimum(place_Q, n_B1 - 1)
        kept_BQ = (place_Q < n_B1) & (place_Q >= dropped_B1)
        restore[index_BQ[kept_BQ]] = done + np.flatnonzero(kept_BQ)
        gather_q.append(index_BQ.ravel())
        gather_kv.append(index_BQ.ravel())
        pieces.append(Piece(index_BQ.shape, index_BQ.shape, None))
        done += index_BQ.size
    for batch in _similar(gem_G4[:, SUMMARY] - gem_G4[:, START]) if isolated else ():
        gem_B4 = gem_G4[batch]
        n_B1 = (gem_B4[:, SUMMARY] - gem_B4[:, START])[:, None]
        place = np.arange(n_B1.max())
        summary_Bk = gem_B4[:, SUMMARY, None] + np.arange(k)
        prefix_BK = gem_B4[:, START, None] + np.minimum(place, n_B1 - 1)
        sees_prefix = np.broadcast_to((place < n_B1)[:, None, :], (len(batch), k, len(place)))
        sees_itself = np.broadcast_to(np.eye(k, dtype=bool), (len(batch), k, k))
        mask_BQK = np.concatenate([sees_prefix, sees_itself], 2)
        restore[summary_Bk.ravel()] = done + np.arange(summary_Bk.size)
        gather_q.append(summary_Bk.ravel())
        gather_kv.append(np.concatenate([prefix_BK, summary_Bk], 1).ravel())
        mask = torch.from_numpy(mask_BQK)[:, None].to(device)
        pieces.append(Piece(summary_Bk.shape, (len(batch), len(place) + k), mask))
        done += summary_Bk.size
    assert (restore >= 0).all()
    tensors = (torch.from_numpy(x) for x in (np.concatenate(gather_q), np.concatenate(gather_kv)))
    on_device_q, on_device_kv = (x.to(device) for x in tensors)
    return Plan(
        "sdpa",
        longest,
        pieces=tuple(pieces),
        gather_q=on_device_q,
        gather_kv=on_device_kv,
        restore=torch.from_numpy(restore).to(device),
    )


def _similar(lengths: Index) -> list[Index]:
    """Indices of `lengths` in batches whose padding stays within `MAX_PADDING`."""
    order = np.argsort(-lengths, kind="stable")
    batches: list[Index] = []
    at = 0
    while at < len(order):
        longest = lengths[order[at]]
        used = np.cumsum(lengths[order[at:]])
        padded = longest * np.arange(1, len(used) + 1)
        fits = padded - used <= MAX_PADDING * padded
        n = len(fits) if fits.all() else int(fits.argmin())
        batches.append(order[at : at + n])
        at += n
    return batches


AttentionInterface.register(NAME, gem_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
