"""Averaging a trained model's weights back towards its base.

Tensors are averaged when they are looked up, and those of the base read from its safetensors files
then; neither model is ever whole in memory. Of the embeddings only the rows that the base has
trained are averaged: summary tokens and rows that fill up stay as trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.errors import InputError
from gem_ds.model import base_model
from gem_ds.model.lazy_tensors import Lazy, changed


@dataclass(frozen=True)
class Base:
    """Where the base's tensors are, by name, and how many leading rows of each it has trained."""

    files: Mapping[str, Path]
    rows: Mapping[str, int]  # of every parameter of the model


def open_base(base: str, config: Any, vocab: Vocabulary) -> Base:
    """The base of a trained model with this Transformers config and tokenizer.

    `base` is a hub name or folder. Raises `InputError` if its tokenizer is not the one that the
    model's was made from, or if it lacks a tensor of the model or has it in another shape.
    """
    own = tokenization.load(base)
    if not _same_tokens(own, vocab):
        raise InputError(f"{base} has another tokenizer than the model; name its base with --base")
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    embeddings = {
        id(parameter)
        for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())
        for parameter in layer.parameters()
    }
    new_tokens = set(tokenization.summary_ids(vocab)) - set(tokenization.summary_ids(own))
    files = base_model.tensor_files(base)
    if not files:
        raise InputError(
            f"{base} has no model.safetensors; load it with Transformers, write it with "
            "save_pretrained, and name that folder with --base"
        )
    rows = {}
    for name, parameter in lm.named_parameters():
        if name not in files:
            raise InputError(
                f"{base} has no tensor {name}; name this model's base with --base, in the form "
                "that save_pretrained writes"
            )
        with safe_open(files[name], "pt") as file:
            shape = tuple(file.get_slice(name).get_shape())
        trained = shape[0]
        good = shape == parameter.shape
        if id(parameter) in embeddings:
            trained = min(new_tokens, default=shape[0])
            good = trained <= shape[0] <= len(parameter) and shape[1:] == parameter.shape[1:]
        if not good:
            raise InputError(
                f"{base} is not this model's base: {name} is {shape} there and "
                f"{tuple(parameter.shape)} here; name its base with --base"
            )
        rows[name] = trained
    return Base(files, rows)


def merge(weights: Mapping[str, Tensor], base: Base, share: float) -> Lazy:
    """`weights`, each ``(1 - share)`` of itself plus `share` of the base's, in fp32.

    The interpolation of WiSE-FT (arXiv 2109.01903). `weights` are named as in the Transformers
    model and hold each of its parameters; buffers stay as they are.
    """

    def average(name: str, weight: Tensor) -> Tensor:
        n = base.rows[name]
        with safe_open(base.files[name], "pt") as file:
            part = file.get_slice(name)[:n]
        weight = weight.to(torch.float32, copy=True)
        weight[:n].mul_(1 - share).add_(part.float(), alpha=share)
        return weight

    return changed(weights, {name: partial(average, name) for name in base.rows})


def _same_tokens(base: Vocabulary, vocab: Vocabulary) -> bool:
    """Whether a tokenizer is the other, or the one that summary tokens were added to."""
    made_from = [tokenization.fingerprint(vocab, summary_tokens=s) for s in (True, False)]
    return tokenization.fingerprint(base) in made_from
