"""Tiny random models of every causal language model family of the installed Transformers."""

import json
from typing import Any

import torch
from tiny_sizes import OWN, SHAPES
from transformers import AutoConfig, AutoModelForCausalLM

_VOCABULARY = ("vocab_size", "vocab_size_per_layer_input")
PARAMETERS = 30e6  # more is not tiny


def tiny_config(family: str, vocab_size: int = 64, pad: int = 0) -> Any:
    """A configuration of a family with tiny sizes."""
    about = {**dict.fromkeys(_VOCABULARY, vocab_size), "pad_token_id": pad}
    if family in OWN:
        own = OWN[family]
        if "text_config" in own:
            return AutoConfig.for_model(family, text_config={**own["text_config"], **about})
        empty = AutoConfig.for_model(family)
        known = {name: value for name, value in about.items() if hasattr(empty, name)}
        return AutoConfig.for_model(family, **own, **known)
    text = AutoConfig.for_model(family).get_text_config()
    known = {name: x for name, x in {**SHAPES, **about}.items() if hasattr(text, name)}
    try:
        return type(text)(**known)
    except Exception:  # a family that makes its own head size
        return type(text)(**{name: x for name, x in known.items() if name != "head_dim"})


def tiny_model(config: Any) -> Any:
    """A random model of a configuration, in fp32. Raises `ValueError` where it is not tiny."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in model.parameters()) > PARAMETERS:
            raise ValueError("not tiny")
    return AutoModelForCausalLM.from_config(config).eval().float()


@torch.no_grad()
def randomize(lm: Any, seed: int = 7) -> None:
    """Add noise to all weights: what begins as zeros or ones would hide that it is not used."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in lm.state_dict().items():
        if tensor.is_floating_point() and name not in lm.all_tied_weights_keys:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise, alpha=0.15 if tensor.ndim > 1 else 0.1)


def entries(config: Any) -> dict[str, Any]:
    """A configuration as its file has it, with defaults."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def silence(config: Any) -> None:
    """No dropout, whatever the family has by default."""
    for name in dropouts(config):
        setattr(config, name, 0.0)


def dropouts(config: Any) -> list[str]:
    """The names of a configuration's dropouts."""
    return [
        name
        for name, value in entries(config).items()
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool)
    ]
