"""Decoding from summary tokens alone is what the attention rule says of a suffix."""

import numpy as np
import pytest
import torch
from models import FAMILIES, WINDOW, tiny_model

from gem_ds.attention.registry import attach, make_plan
from gem_ds.errors import InputError
from gem_ds.inference.memories import compress, continue_greedily, stock_attention
from gem_ds.layout import positions

LENGTHS = (9, 3, 14)  # tokens before the summary: more and fewer than a window
N = WINDOW + 2  # tokens of suffix: the last are out of a window's reach of the summary


def made(k):
    """Texts with k summary tokens behind them."""
    rng = np.random.default_rng(k)
    return [rng.integers(64, size=n + k).astype(np.int32) for n in LENGTHS]


def whole(lm, document, k, suffix, summary_attention="isolated"):
    """(1 + S, V) logits from the last summary token on, of one stream under the rule itself."""
    ids = np.concatenate([document, suffix])
    m = len(document)
    bounds = np.array([[0, m - k, m, len(ids)]], dtype=np.int32)
    attach(lm)
    with torch.inference_mode():
        logits = lm(
            input_ids=torch.from_numpy(ids.astype(np.int64))[None],
            position_ids=torch.from_numpy(positions(bounds))[None],
            gem_plan=make_plan(bounds, "dense", summary_attention),
            use_cache=False,
        ).logits[0]
    return logits[m - 1 :]


def spread(lm):
    """Weights so large that attention is no average and a wrong position shows."""
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return lm


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_from_memory_equal_those_of_the_whole_stream(family, k):
    lm = spread(tiny_model(family))
    documents = made(k)
    suffix = np.random.default_rng(9).integers(64, size=(len(documents), N))
    kept = compress(lm, documents, k, batch_tokens=20)
    assert {tuple(x.shape[::2]) for x in (*kept.keys, *kept.values)} == {(len(documents), k)}
    with torch.inference_mode(), stock_attention(lm):
        found = lm(
            input_ids=torch.from_numpy(suffix),
            position_ids=kept.positions_D[:, None] + torch.arange(N),
            past_key_values=kept.cache(),
            use_cache=True,
        ).logits
    for d, document in enumerate(documents):
        expected = whole(lm, document, k, suffix[d].astype(np.int32))
        assert kept.next_tokens_D[d] == expected[0].argmax()
        assert torch.allclose(found[d], expected[1:], atol=1e-4)
        other = whole(lm, made(k + 1)[d][: len(document)], k, suffix[d].astype(np.int32))
        assert not torch.allclose(found[d][0], other[1], atol=1e-2), "the text matters"


@pytest.mark.parametrize("summary_attention", ["isolated", "causal"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text+window"])
def test_greedy_tokens_equal_those_of_whole_streams(family, summary_attention):
    lm = spread(tiny_model(family))
    documents = made(2)
    kept = compress(lm, documents, 2, summary_attention)
    written = continue_greedily(lm, kept, N)
    for d, document in enumerate(documents):
        suffix = np.array([], dtype=np.int32)
        for _ in range(N):
            logits = whole(lm, document, 2, suffix, summary_attention)
            suffix = np.append(suffix, np.int32(logits[-1].argmax()))
        assert written[d].tolist() == suffix.tolist()
    assert np.array_equal(continue_greedily(lm, kept, 2), written[:, :2]), "memories stay whole"


def test_a_family_that_shares_keys_between_layers_is_refused():
    lm = tiny_model(
        "gemma4_text",
        head_dim=8,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
    )
    with pytest.raises(InputError, match=r"'gemma4_text' keeps keys and values in 2 of its 4 lay"):
        compress(lm, made(1), 1)
