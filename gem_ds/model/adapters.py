"""LoRA adapters beside frozen base weights, on everywhere or at summary tokens alone.

An adapter at summary tokens is `peft`'s activated LoRA (arXiv 2504.12397) for streams of many
documents. `peft` itself switches it on from the invocation tokens to the end of each batch row;
here it is on at the stream's summary positions and nowhere else, so that every other token is
computed exactly as in the base. Creating, switching and loading adapters live here; the summary
tokens' rows are those of `language_model`, and writing files is in `adapter_files`.

Shapes: T tokens in the stream, G documents with k summary tokens each, N = G k of them, C in and D
out of a linear layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from transformers import set_seed
from transformers.modeling_layers import GradientCheckpointingLayer

from gem_ds.corpus.mixture import folded
from gem_ds.errors import InputError, reason
from gem_ds.model.adapter_files import CONFIG, NAME, WEIGHTS, lora_config

Mode = Literal["summary", "everywhere"]


class SummaryLora(LoraVariant):  # type: ignore[misc]
    """The LoRA of all layers of a model, added at the summary positions alone.

    A decoder layer's attention tells the positions: it gets the stream's plan, in the forward pass
    and again where the backward pass recomputes the layer. So a layer never sees the positions of
    another micro-batch, whatever ran in between.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.index: Tensor | None = None  # (N,)
        # (T, 0): a compiled layer takes a number for a constant of it, the size of a tensor not.
        self.stream: Tensor | None = None

    def follow(self, layer: nn.Module) -> None:
        """Take the positions from the plan that passes through a decoder layer."""
        for child in layer.children():
            child.register_forward_pre_hook(self._take_positions, with_kwargs=True)

    def _take_positions(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        plan = kwargs.get("gem_plan")
        if plan is not None:
            self.index = plan.summary_index.flatten()
            self.stream = torch.empty(plan.length, 0)

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """(1, T, D) the base layer's `result` plus the adapter's, both of the same `x` (1, T, C).

        Raises `InputError` where `x` is no stream, so that its positions cannot be told.
        """
        index, stream = self.index, self.stream
        if index is None or stream is None or x.ndim != 3 or x.shape[:2] != (1, len(stream)):
            raise InputError(
                f"model family {self.family!r} calls a linear layer on a tensor of shape "
                f"{tuple(x.shape)}, not on the stream of tokens, so adapters cannot be switched by "
                "position there; choose --adapter none or another base"
            )
        if not len(index) and not torch.is_grad_enabled():
            return result
        x_NC = x[0].index_select(0, index)
        delta_ND = module.lora_B[active_adapter](module.lora_A[active_adapter](x_NC))
        delta_ND = delta_ND * module.scaling[active_adapter]
        return result.index_add(1, index, delta_ND.to(result.dtype)[None])


def inject(
    lm: Any, mode: Mode, rank: int, alpha: float, summary_tokens: Sequence[int], seed: int
) -> None:
    """Freeze the language model and put LoRA on the linear layers of its decoder layers.

    The adapters have the base's dtype and are a function of `seed`, the same on all ranks and for a
    base that ZeRO-3 has partitioned; they change nothing before they are trained. Raises
    `InputError` for an architecture that they do not reach.
    """
    layers = _decoder_layers(lm)
    names = {
        name.rpartition(".")[2]
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    config = lora_config(names, rank, alpha, summary_tokens if mode == "summary" else None)
    set_seed(folded(seed, 32))
    try:
        inject_adapter_in_model(config, lm)
    except ValueError as error:
        family = lm.config.get_text_config().model_type
        raise InputError(
            f"adapters cannot be put on model family {family!r} ({reason(error)}); choose "
            "--adapter none or another base"
        ) from error
    if mode == "summary":
        switch(lm)


def switch(lm: Any) -> None:
    """Switch the adapters of a Transformers model on at summary positions alone.

    Its forward then needs ``gem_plan``, as the attention here does.
    """
    variant = SummaryLora(lm.config.get_text_config().model_type)
    for module in lm.modules():
        if isinstance(module, LoraLayer):
            module.lora_variant[NAME] = variant
    for layer in _decoder_layers(lm):
        variant.follow(layer)


def put_on(lm: Any, adapter: Path) -> None:
    """Put the adapter of an export on its model, on at summary positions.

    Raises `InputError` where the adapter's files are missing or damaged.
    """
    for name in (CONFIG, WEIGHTS):  # in place of the latter peft would read a pickled one
        if not (adapter / name).is_file():
            raise InputError(
                f"this model embeds with an adapter, but there is no {name} in {adapter}; "
                "put the folder adapter/ of the same export beside model/"
            )
    try:
        PeftModel.from_pretrained(lm, str(adapter), autocast_adapter_dtype=False)
    except Exception as error:  # of damaged files, of another model's: of any kind
        raise InputError(
            f"the adapter in {adapter} cannot be loaded ({reason(error)}); copy the export again"
        ) from error
    for name, parameter in lm.named_parameters():
        if ".lora_" in name and not parameter.isfinite().all():
            raise InputError(
                f"the adapter in {adapter} has values that are not finite (NaN or infinite), in "
                f"{name}; copy the export again"
            )
    switch(lm)


def _decoder_layers(lm: Any) -> list[nn.Module]:
    """The model's decoder layers, after a check that every matrix in them is a linear layer's."""
    family = lm.config.get_text_config().model_type
    layers = [m for m in lm.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        for name, module in layer.named_modules():
            own = dict(module.named_parameters(recurse=False))
            linear = isinstance(module, nn.Linear) and "experts" not in name
            matrices = [n for n, p in own.items() if len(getattr(p, "ds_shape", p.shape)) > 1]
            if matrices and not linear:
                raise InputError(
                    f"model family {family!r} has weights that are no linear layer over the stream "
                    f"of tokens ({name}.{matrices[0]}), so adapters cannot be switched by position "
                    "there; choose --adapter none or another base"
                )
    if not layers:
        raise InputError(
            f"model family {family!r} has no decoder layers that adapters could be put on; "
            "choose --adapter none or another base"
        )
    return layers
