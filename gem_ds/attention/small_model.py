"""A part of a model that shows all of it: its first layers, in fp32, with a slice of its words.

Trying a model costs little then. What is tried is in `compatibility`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

VOCABULARY = 512  # rows of the embedding and the head


@contextmanager
def shallow(lm: Any) -> Iterator[None]:
    """Within it, a model has its first layers up to the last that is of a new kind."""
    stacks = [
        module
        for module in lm.modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    removed = []
    for layers in stacks:
        kinds = [_kind(layer) for layer in layers]
        n = 1 + max(kinds.index(kind) for kind in kinds)
        removed.append((layers, list(layers[n:])))
        del layers[n:]
    try:
        yield
    finally:
        for layers, rest in removed:
            layers.extend(rest)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What tells layers apart, other than weights and their place."""
    return tuple(
        (
            name,
            type(module),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, bool | int | str | None) and "idx" not in key
            ),
            tuple(tuple(getattr(p, "ds_shape", p.shape)) for p in module.parameters(recurse=False)),
        )
        for name, module in layer.named_modules()
    )


@contextmanager
def small_copy(lm: Any) -> Iterator[None]:
    """Within it, a model has copies of its weights in fp32, and a slice of its vocabulary.

    Half precision would hide small leaks, and send a token to other experts than before.
    """
    head = lm.get_output_embeddings()
    copies: dict[int, nn.Parameter] = {}
    with ExitStack() as stack, _whole(lm.parameters()):
        for module in lm.modules():
            cut = VOCABULARY if isinstance(module, nn.Embedding) or module is head else None
            if isinstance(module, nn.Embedding) and (module.padding_idx or 0) >= VOCABULARY:
                stack.callback(setattr, module, "padding_idx", module.padding_idx)
                module.padding_idx = None
            for name, parameter in module.named_parameters(recurse=False):
                copied = nn.Parameter(_fp32(parameter.data[:cut]), requires_grad=False)
                setattr(module, name, copies.setdefault(id(parameter), copied))
                stack.callback(setattr, module, name, parameter)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, _fp32(buffer).clone())
                stack.callback(setattr, module, name, buffer)
        restored = stack.pop_all()
    with restored:
        yield


def _fp32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within it parameters that ZeRO-3 has partitioned are whole on every rank."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed  # takes seconds; a model in use needs none

    return deepspeed.zero.GatheredParameters(partitioned)  # type: ignore[no-any-return]
