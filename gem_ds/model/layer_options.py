"""How layers are computed: norms and MLPs in few kernels, and what is computed again.

Transformers computes what stands between a layer's matrix products in many small steps, each of
which reads and writes all activations. `compile_parts` has ``torch.compile`` make kernels of them;
`apply_liger` takes Liger's, which have the rotary positions too. What they compute is the same, up
to rounding. `Recompute` says what a layer keeps for its backward pass.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # defines its operator
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_layers import GradientCheckpointingLayer

from gem_ds.errors import InputError

# Not Liger's losses: what the targets of a stream are, `cross_entropy` knows.
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check(compile: bool, liger: bool, device: torch.device) -> None:
    """Raise `InputError` for what does not work here."""
    if compile:
        _check_compile(device)
    if liger:
        _check_liger(device)


def _check_compile(device: torch.device) -> None:
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler's, of any kind
        reason = str(error).strip().splitlines()[0]
        gpu = device.type == "cuda"
        needed = "the package triton" if gpu else "a C++ compiler, g++ or what CXX names,"
        raise InputError(
            f"--compile: torch.compile does not work here, which needs {needed} and Python's "
            f"headers ({reason}); install those, or leave --compile out"
        ) from error


def _check_liger(device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(
            f"--liger: its kernels run on a GPU, not on the {device.type}; leave it out"
        )
    for module, package in (("triton", "triton"), ("liger_kernel", "liger-kernel")):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"--liger needs {package}, which is not installed; pip install 'gem_ds[liger]', or "
                "leave --liger out"
            )


def compile_parts(lm: Any) -> list[nn.Module]:
    """Compile the norms and MLPs of a Transformers model's layers, which are given back.

    That happens at their first use; one graph serves all layers and streams of every length. Under
    ZeRO-3 each has to be fetched as a whole: a hook inside would break its graph. Layers as wholes
    cannot be compiled, for they recompute themselves inside of their forward; nor can attention be
    fetched as a whole, since DeepSpeed's hooks miss modules with keyword inputs alone.
    """
    layers = [m for m in lm.modules() if isinstance(m, GradientCheckpointingLayer)]
    parts = [part for layer in layers for part in _norms_and_mlp(layer)]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=True)
    return parts


def _norms_and_mlp(layer: nn.Module) -> Iterator[nn.Module]:
    for child in layer.children():
        # Attention may have norms of its own.
        parts = child.children() if hasattr(child, "is_causal") else [child]
        for part in parts:
            if not isinstance(part, nn.Linear) and next(part.parameters(), None) is not None:
                yield part


def apply_liger(lm: Any) -> None:
    """Give a Transformers model, without adapters yet, Liger's norms, rotary positions and MLPs.

    The rotary positions of all models of the family in this process become Liger's. Raises
    `InputError` for a family that Liger has nothing for.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if lm.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(
            f"--liger: it has no kernels for model family {lm.config.model_type!r}; leave it out, "
            "or give --compile instead"
        )
    apply_liger_kernel(lm, LIGER)


_ATEN = torch.ops.aten
# What costs most of a layer's time: linear layers and fused attention. Results are a few times as
# large as the layer's input. (Not batched products: attention that is made of those has scores.)
PRODUCTS = [
    *(_ATEN.mm.default, _ATEN.addmm.default),
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.higher_order.flex_attention,
]


@dataclass(frozen=True)
class Recompute:
    """Of every `every` layers the first keeps only its input, and computes itself again.

    With `keep_products` it keeps the results of matrix products and attention too. With `offload`
    what it keeps waits in the host's pinned memory.
    """

    every: int = 1
    keep_products: bool = False
    offload: bool = False

    def apply(self, lm: Any) -> None:
        """Make a Transformers language model's layers do so while it trains."""
        how: dict[str, Any] = {"use_reentrant": False}  # ZeRO-3 fetches again in the second pass
        if self.keep_products:
            how["context_fn"] = partial(create_selective_checkpoint_contexts, PRODUCTS)
        try:
            lm.activation_checkpointing_enable(how, every_n_layers=self.every, offload=self.offload)
        except ValueError as error:
            raise InputError(
                f"model family {lm.config.model_type!r} cannot recompute its layers; give "
                "--gradient-checkpointing false"
            ) from error
