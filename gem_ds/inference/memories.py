"""Texts as the keys and values of their summary tokens, and what a model writes from those alone.

`compress` runs documents ``bos text | summary`` as one flat stream and keeps, of each layer, the
keys and values at the summary tokens; `continue_greedily` decodes with a cache that holds nothing
else, by Transformers' own attention (paper, Appendix B). The summary's keys carry their positions,
and the text goes on behind them: the i-th token stands at the length of prefix and summary plus i,
as a suffix does in training. A sliding window reaches as far back in either.

Shapes: D documents, N heads of keys, k summary tokens, H head size, T tokens in the stream.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gem_ds import layout
from gem_ds.attention import registry
from gem_ds.attention.segments import SummaryAttention
from gem_ds.corpus.tokenization import Ids
from gem_ds.errors import InputError
from gem_ds.inference.encoder import batches, stream


class Memories(NamedTuple):
    """What is left of D documents."""

    keys: list[Tensor]  # of each layer (D, N, k, H), turned to their positions
    values: list[Tensor]  # of each layer (D, N, k, H)
    positions_D: Tensor  # where the token behind the summary stands
    next_tokens_D: Tensor  # what the last summary token predicts

    def cache(self) -> DynamicCache:
        """A Transformers cache that holds the summary tokens, without windows: all stay."""
        return DynamicCache(zip(self.keys, self.values, strict=True))


@torch.inference_mode()
def compress(
    lm: Any,
    documents: Sequence[Ids],
    n_summary: int,
    summary_attention: SummaryAttention = "isolated",
    batch_tokens: int = 2048,
) -> Memories:
    """The memories of documents, the last `n_summary` tokens of each being its summary tokens.

    `lm` is a Transformers causal language model; it is switched to this project's attention and to
    evaluation. Raises `InputError` for a family whose layers do not all keep keys and values.
    """
    registry.attach(lm)
    lm.eval()
    backend = registry.choose("auto", lm, lm.device, lm.dtype)
    order: list[int] = []
    parts: list[list[Tensor]] = []  # of each stream: keys and values of all layers, next tokens
    for batch in batches([len(document) for document in documents], batch_tokens):
        arguments, bounds_D4 = stream(
            [documents[i] for i in batch], n_summary, lm.device, backend, summary_attention
        )
        cache = DynamicCache()  # without the config, so that no window drops a summary token
        index_Dk = torch.from_numpy(layout.summary_index(bounds_D4)).to(lm.device)
        recording = {"use_cache": True, "past_key_values": cache}
        output = lm(**{**arguments, **recording}, logits_to_keep=index_Dk[:, -1])
        kept = [x[0][:, index_Dk].transpose(0, 1) for x in _recorded(lm, cache)]
        parts.append([*kept, likeliest(lm, output.logits[0])])
        order += batch
    back = torch.from_numpy(np.argsort(order)).to(lm.device)
    *kept, next_tokens_D = (torch.cat(x)[back] for x in zip(*parts, strict=True))
    positions_D = torch.tensor([len(document) for document in documents], device=lm.device)
    return Memories(kept[::2], kept[1::2], positions_D, next_tokens_D)


def _recorded(lm: Any, cache: DynamicCache) -> list[Tensor]:
    """Keys, values, keys, values … of the layers, (1, N, T, H) each."""
    config = lm.config.get_text_config()
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if len(layers) != config.num_hidden_layers:
        raise InputError(
            f"model family {config.model_type!r} keeps keys and values in {len(layers)} of its "
            f"{config.num_hidden_layers} layers, so its summary tokens cannot stand for a text; "
            "choose a family where every layer has its own"
        )
    return [x for layer in layers for x in (layer.keys, layer.values)]


@torch.inference_mode()
def continue_greedily(lm: Any, memories: Memories, n: int) -> Ids:
    """(D, n) the tokens that are likeliest one by one, from memories alone.

    The first is what the last summary token predicted when it was computed. No token ends it.
    """
    cache = memories.cache()
    tokens_D = memories.next_tokens_D
    written = [tokens_D]
    with stock_attention(lm):
        for i in range(n - 1):
            logits_DV = lm(
                input_ids=tokens_D[:, None],
                position_ids=(memories.positions_D + i)[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            tokens_D = likeliest(lm, logits_DV)
            written.append(tokens_D)
    ids: Ids = torch.stack(written, 1).cpu().numpy().astype(np.int32)
    return ids


def likeliest(lm: Any, logits_DV: Tensor) -> Tensor:
    """(D,) the likeliest tokens of those that the model may write (``suppress_tokens``)."""
    suppressed = lm.generation_config.suppress_tokens or []
    return logits_DV.index_fill(
        -1, torch.tensor(suppressed).long().to(lm.device), -math.inf
    ).argmax(-1)


@contextmanager
def stock_attention(lm: Any) -> Iterator[None]:
    """Within it the model attends as Transformers writes it down, soft caps and sinks included."""
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(before)
