"""A base of the fuzzing while it is written, and what of it may or must be refused."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bases_cases import ENCODERS, Case
from tiny_families import tiny_model
from torch import Tensor, nn


@dataclass
class Cause:
    """Why a base may be refused, or `must` be: a refusal has one of these words in it."""

    what: str
    words: list[str]
    must: bool = False


@dataclass
class Base:
    """A base: its tensors by name and its configuration as they are to be in its files."""

    folder: Path
    rng: random.Random = field(default_factory=random.Random)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)

    def blame(self, what: str, *words: str, must: bool = False) -> None:
        """Give a reason for a refusal, which names it or one of the words."""
        self.causes.append(Cause(what, [what, *words], must))


def judge_family(case: Case, lm: Any, base: Base) -> None:
    """What of a family may be refused though nothing is wrong in its files."""
    name = type(lm).__name__
    text = lm.config.get_text_config().model_type
    known = [case.family, text, name, name.split("For")[0].split("LM")[0]]
    if case.family in ENCODERS:
        words = ("encoder", "is_decoder", "direction", "does not generate")
        base.blame("encoder", *words, must=True)
    elif not case.exact:
        base.blame("family", *known)
    if not _head_is_linear(lm):
        base.blame("head", "logit", "head", *known)
    if not lm.supports_gradient_checkpointing:
        base.blame("recomputation", "--gradient-checkpointing")
    if len(lm.get_input_embeddings().weight) != lm.config.get_text_config().vocab_size:
        base.blame("vocabulary")
    if case.recipe == "lossless" and not _takes_adapters(lm):
        base.blame("adapter")
    if case.recipe == "lossless" and sum(isinstance(m, nn.Embedding) for m in lm.modules()) > 1:
        base.blame("tokens beside their embeddings")  # or of positions: those are no reason


@torch.no_grad()
def _takes_adapters(lm: Any) -> bool:
    """Whether all matrices of the layers are linear and see the stream of tokens as it is."""
    shapes = []
    for name, module in lm.base_model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.ndim > 1]
        if own and not isinstance(module, nn.Embedding):
            if not isinstance(module, nn.Linear) or "experts" in name:
                return False
            module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:-1]))
    ids = torch.arange(3, 30)[None]
    try:
        lm(input_ids=ids, use_cache=False)
    except Exception:  # a family that does not run alone; the case shows what becomes of it
        return False
    for module in lm.modules():
        module._forward_pre_hooks.clear()
    return all(shape == ids.shape for shape in shapes)


@torch.no_grad()
def _head_is_linear(lm: Any) -> bool:
    """Whether logits are the output embedding of the last hidden states, capped perhaps."""
    ids = torch.arange(3, 30)[None]
    try:
        hidden = lm.base_model(input_ids=ids, use_cache=False)[0]
        logits = lm(input_ids=ids, use_cache=False).logits
        plain = lm.get_output_embeddings()(hidden)
    except Exception:  # a family that does not run alone; the case shows what becomes of it
        return False
    cap = getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
    plain = torch.tanh(plain / cap) * cap if cap else plain
    return plain.shape == logits.shape and torch.allclose(plain, logits, atol=1e-4)


@torch.no_grad()
def drops(config: Any) -> bool:
    """Whether a model of this configuration computes by chance in training."""
    lm = tiny_model(config).train()
    ids = torch.arange(3, 40)[None]
    found = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        found.append(lm(input_ids=ids, use_cache=False).logits)
    return not all(torch.equal(found[0], other) for other in found[1:])
