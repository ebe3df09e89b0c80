"""Texts from their summary tokens alone: equal to the slow way, for both kinds of export."""

import json

import numpy as np
import pytest
import torch
from encode_evaluate_data import tiny_export
from transformers import AutoModelForCausalLM, DynamicCache

from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.evaluation import reconstruction, result_files
from gem_ds.export.gem_config import read_gem_config
from gem_ds.inference.encoder import Encoder

TEXTS = ["the rain of snow by the wind", "salt near the oven and a knife was cold", "a map"]


@pytest.fixture(scope="module", params=["full", "adapted"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    adapted = request.param == "adapted"
    return result_files.candidate(tiny_export(folder / "m", k=3 if adapted else 1, adapter=adapted))


def slowly(model, text, n):
    """One text by itself: the summary's keys and values recorded layer by layer, then decoding
    with the stock model, one token at a time."""
    folder = model.folder / "model"
    gem, vocab = read_gem_config(folder), tokenization.load(folder)
    ids = tokenization.encode(vocab, [text])[0][:n]
    m, k = 1 + len(ids), len(gem.summary_tokens)
    encoder = Encoder.from_pretrained(model.folder)
    from gem_ds.inference.encoder import stream

    document = np.array([vocab.bos_token_id, *ids, *gem.summary_tokens], dtype=np.int32)
    cache = DynamicCache()
    arguments, _ = stream([document], k)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stock.set_attn_implementation("eager")
    written = []
    with torch.inference_mode():
        hidden = encoder.backbone(
            **{**arguments, "use_cache": True, "past_key_values": cache}
        ).last_hidden_state
        kept = DynamicCache([(x.keys[:, :, m:], x.values[:, :, m:]) for x in cache.layers])
        token = stock.lm_head(hidden[:, -1]).argmax(-1)
        for i in range(n):
            written.append(int(token))
            logits = stock(
                input_ids=token[None],
                position_ids=torch.tensor([[m + k + i]]),
                past_key_values=kept,
                use_cache=True,
            ).logits
            token = logits[:, -1].argmax(-1)
    return ids.tolist(), written


def test_shares_are_those_of_the_slow_way(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    found = reconstruction.run(model, path, tmp_path / "out", [3, 5], "body")
    for n in (3, 5):
        vocab = tokenization.load(model.folder / "model")
        texts = [t for t in TEXTS if len(tokenization.encode(vocab, [t])[0]) >= n]
        assert found[str(n)]["texts"] == len(texts) > 1
        pairs = [slowly(model, text, n) for text in texts]
        items = found[str(n)]["items"]
        assert items["exact"] == [float(own == back) for own, back in pairs]
        in_place = [np.mean(np.array(own) == np.array(back)) for own, back in pairs]
        assert items["in_place"] == pytest.approx(in_place)
        overlap = [
            sum(min(own.count(t), back.count(t)) for t in set(own)) / n for own, back in pairs
        ]
        assert items["overlap"] == pytest.approx(overlap)
        for name in ("exact", "in_place", "overlap"):
            assert found[str(n)][name] == pytest.approx(np.mean(items[name]))


def test_what_is_written_is_what_the_slow_way_writes(model):
    """The shares of a random model are nearly all 0, so the tokens themselves are compared."""
    from gem_ds.evaluation import evaluate

    (reader, writer), vocab, gem = reconstruction._load(model, 5)
    for text in TEXTS[:2]:
        own, written = evaluate.written_back(
            reader, writer, vocab, gem.summary_tokens, [text], 5, gem.summary_attention
        )
        assert (own[0].tolist(), written[0].tolist()) == slowly(model, text, 5)


def test_lengths_that_are_there_are_read_and_others_added(model, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS))
    reconstruction.run(model, path, tmp_path / "out", [3])
    (kept,) = (tmp_path / "out").rglob("*.json")
    kept.write_text(kept.read_text().replace('"texts": ', '"texts": 100', 1))
    found = reconstruction.run(model, path, tmp_path / "out", [3, 4])
    assert found["3"]["texts"] > 1000 > found["4"]["texts"]
    assert [*(tmp_path / "out").rglob("*.json")] == [kept]


def test_lengths_that_nothing_has_are_refused(model, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text(TEXTS[0])
    with pytest.raises(InputError, match="no text has 90 tokens"):
        reconstruction.run(model, path, tmp_path / "out", [90])
    with pytest.raises(InputError, match="has 256 positions; give shorter --lengths"):
        reconstruction.run(model, path, tmp_path / "out", [128])


def test_overlap_counts_a_token_as_often_as_it_is_there():
    own, written = np.array([1, 1, 2, 3]), np.array([1, 2, 2, 9])
    assert reconstruction._overlap(own, written) == 0.5
