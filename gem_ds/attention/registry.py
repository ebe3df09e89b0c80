"""The GEM attention as Transformers models meet it: registration, choice of backend, and plans.

`attach` switches a model to the attention registered here; `choose` picks the backend for a model
and device; `make_plan` turns the layout of one stream into what that backend needs, once per
micro-batch, shared by all layers. The plan travels as the keyword argument ``gem_plan`` of the
model's forward. No model code is changed. The backends are in `backends`, `cpu` and `flex`.
"""

from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from gem_ds import layout
from gem_ds.attention import compatibility
from gem_ds.attention.backends import Dense, Kernel, Varlen
from gem_ds.attention.cpu import Sdpa
from gem_ds.attention.flex import LEAST, Flex
from gem_ds.attention.hf_config import longest_document
from gem_ds.attention.segments import SummaryAttention
from gem_ds.errors import InputError
from gem_ds.layout import END, START, Bounds

Backend = Literal["dense", "sdpa", "varlen", "flex"]
Choice = Literal["auto", "dense", "sdpa", "varlen", "flex"]
NAME = "gem"
_KERNELS: dict[Backend, type[Kernel]] = {
    "dense": Dense,
    "sdpa": Sdpa,
    "varlen": Varlen,
    "flex": Flex,
}
_PREFERRED: dict[str, tuple[Backend, ...]] = {
    "cuda": ("varlen", "flex", "dense"),
    "cpu": ("sdpa", "dense"),
}


class Plan:
    """One stream's attention work, for one backend and device.

    A model may have layers of several sliding windows; what a window needs is made when the first
    layer asks for it. Windows that no document exceeds are no windows. With `rest` the queries are
    those at summary tokens and in suffixes alone.
    """

    def __init__(
        self,
        bounds_D4: Bounds,
        backend: Backend,
        summary_attention: SummaryAttention = "isolated",
        device: torch.device | str = "cpu",
        rest: bool = False,
    ) -> None:
        self.bounds_D4 = bounds_D4
        self.rest = rest
        self.backend = backend
        self.summary_attention = summary_attention
        self.device = torch.device(device)
        self.length = int(bounds_D4[-1, END])
        self.longest = int((bounds_D4[:, END] - bounds_D4[:, START]).max())
        self._kernels: dict[int | None, Kernel] = {}

    @cached_property
    def summary_index(self) -> Tensor:
        """(G, k) where in the stream the summary tokens of each document that has any stand."""
        return torch.from_numpy(layout.summary_index(self.bounds_D4)).to(self.device)

    def within(self, window: int | None) -> Kernel:
        """The attention of layers with this sliding window, in tokens; None for full attention."""
        window = window if window and window < self.longest else None
        if window not in self._kernels:
            about = self.bounds_D4, self.summary_attention, window, self.rest
            self._kernels[window] = _KERNELS[self.backend].of(*about).to(self.device)
        return self._kernels[window]

    def attend(
        self,
        layer: torch.nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        scale: float,
        cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """(T, N, H), what a layer's attention gives; see `backends.Kernel`."""
        return self.within(window).attend(q, k, v, scale, cap, sinks)

    def to(self, device: torch.device) -> "Plan":
        """The same plan on another device, copied without waiting."""
        plan = Plan(self.bounds_D4, self.backend, self.summary_attention, device, self.rest)
        plan._kernels = {window: kernel.to(device) for window, kernel in self._kernels.items()}
        return plan


def make_plan(
    bounds_D4: Bounds,
    backend: Backend,
    summary_attention: SummaryAttention = "isolated",
    device: torch.device | str = "cpu",
    n_summary: int | None = None,
    rest: bool = False,
) -> Plan:
    """The plan of a stream (`Plan`), with what layers of full attention need made already.

    `n_summary` is the tokenizer's number of summary tokens; by default that of the first document
    that has any. Raises `InputError` for a layout that is not well formed (`layout.check`) or too
    long.
    """
    if n_summary is None:
        counts = np.diff(bounds_D4[:, layout.SUMMARY : END]).ravel()
        n_summary = int(counts[counts != 0][0]) if counts.any() else 0
    layout.check(bounds_D4, int(bounds_D4[-1, END]), n_summary, "attention")
    plan = Plan(bounds_D4, backend, summary_attention, device, rest)
    plan.within(None)
    return plan


def choose(choice: Choice, model: Any, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for a Transformers model that computes in `dtype` on `device`.

    ``auto`` takes the fastest that computes what the model needs. Raises `InputError` for another
    choice that does not, with the reason.
    """
    if choice == "auto":
        preferred = _PREFERRED.get(device.type, ("dense",))
        return next(b for b in preferred if _obstacle(b, model, device, dtype) is None)
    if choice not in get_args(Backend):
        raise InputError(
            f"unknown attention backend {choice!r}; choose {', '.join(get_args(Choice))}"
        )
    reason = _obstacle(choice, model, device, dtype)
    if reason is not None:
        raise InputError(f"--attention {choice} cannot be: {reason}; choose auto")
    return choice


def _obstacle(backend: Backend, model: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot serve a model, or None."""
    config = model.config.get_text_config()
    family = config.model_type
    if backend == "dense":
        return None
    if backend in ("varlen", "flex") and device.type != "cuda":
        return f"it needs a CUDA GPU and the model is on the {device.type}"
    if backend == "flex":
        size = _head_size(config)
        few = f"its kernel takes heads of at least {LEAST}, and {family} has heads of {size}"
        return few if size < LEAST else None
    if backend == "sdpa" and device.type != "cpu":
        return f"it computes on a CPU and the model is on the {device.type}"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{family} soft-caps its attention scores"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{family} has attention sinks"
    if backend == "varlen":
        size = _head_size(config)
        if dtype not in (torch.bfloat16, torch.float16):
            return f"its kernel computes in bf16 and fp16, and the model in {dtype}"
        if size > 256 or size % 8:
            return f"its kernel takes heads of 8, 16 … 256, and {family} has heads of {size}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"its kernel needs an Ampere GPU or newer, not {torch.cuda.get_device_name()}"
    return None


def _head_size(config: Any) -> int:
    if hasattr(config, "qk_nope_head_dim"):  # DeepSeek's
        return int(config.qk_nope_head_dim + config.qk_rope_head_dim)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def attach(model: Any) -> None:
    """Make a Transformers model use this attention. Its forward then needs ``gem_plan``.

    What has it already stays as it is; another model is tried on a few tokens first
    (`compatibility`). Raises `InputError` for one that would be computed wrongly, with the reason.
    Attach before adapters are put on.
    """
    if model.config._attn_implementation == NAME:
        return
    # Elsewhere than on a CPU the fast backends want to be compiled, or half precision.
    on_cpu = model.device.type == "cpu"
    backend = choose("auto", model, model.device, torch.float32) if on_cpu else "dense"
    plan = make_plan(compatibility.BOUNDS, backend, device=model.device)
    compatibility.check(model, longest_document(model.config), NAME, plan)
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
    if gem_plan is None:
        raise ValueError("pass gem_plan=make_plan(layout) to the model's forward")
    length = gem_plan.length
    if query.shape[0] != 1 or query.shape[2] != length or key.shape[2] != length:
        raise ValueError(
            f"{type(module).__name__}: the plan is for one flat stream of {length} tokens, got "
            f"query {tuple(query.shape)} and key {tuple(key.shape)}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Views whose backward passes are views too; that of [0] fills a stream with zeros.
    q, k, v = (x.squeeze(0) for x in (query, key, value))
    size = v.shape[-1]
    if size != q.shape[-1]:  # DeepSeek's: zeros fill up what is smaller
        largest = max(size, q.shape[-1])
        q, k, v = (F.pad(x, (0, largest - x.shape[-1])) for x in (q, k, v))
    out_TNH = gem_plan.attend(module, q, k, v, sliding_window, scale, softcap, s_aux)
    return out_TNH[..., :size].unsqueeze(0).contiguous(), None  # some families take views of it


AttentionInterface.register(NAME, gem_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
