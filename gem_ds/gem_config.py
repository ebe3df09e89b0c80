"""What ``gem_config.json`` in a model folder says, beside the Transformers config."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gem_ds.contrastive import Aggregation
from gem_ds.errors import InputError
from gem_ds.segments import SummaryAttention

GEM_CONFIG = "gem_config.json"


@dataclass(frozen=True)
class GemConfig:
    """What a reader must know beside the Transformers config to embed with the model.

    `step` and `manifest` (a digest of the shards) tell where the weights are from, `base_share` how
    much of the base was averaged in; `dimensions` are what embeddings can be cut to. With `adapter`
    the adapter in the folder beside the model is on at summary tokens. `fingerprint` is a digest of
    all that decides what the model computes: weights, adapter, tokenizer and the settings here.
    """

    summary_tokens: tuple[int, ...]
    summary_attention: SummaryAttention
    base: str
    step: int
    manifest: str
    aggregation: Aggregation = "mean"
    dimensions: tuple[int, ...] = ()
    base_share: float = 0.0
    adapter: bool = False
    fingerprint: str = ""


def read_gem_config(folder: Path) -> GemConfig:
    """The `GemConfig` in a model folder. Raises `InputError` if there is none or it is damaged."""
    path = folder / GEM_CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} has no {GEM_CONFIG}, so it was not written by launch/export.py; "
            "give an export folder or the model/ in it"
        )
    try:
        raw = json.loads(path.read_text())
        lists: Any = {n: tuple(x) if isinstance(x, list) else x for n, x in raw.items()}
        gem = GemConfig(**lists)
        if gem.summary_attention not in get_args(SummaryAttention):
            raise ValueError(f"summary_attention {gem.summary_attention!r} is unknown")
        if gem.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation {gem.aggregation!r} is unknown")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); export the model again") from error
    return gem
