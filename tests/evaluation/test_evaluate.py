"""Measures agree with the slow and obvious way of taking them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import TEXTS, tiny
from sklearn.metrics import ndcg_score
from transformers import AutoTokenizer

from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.evaluation import evaluate
from gem_ds.inference.memories import compress, continue_greedily


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same model twice: for the code under test, and with Transformers' own attention."""
    return tiny(request.param, 400), tiny(request.param, 400)


def test_perplexity_equals_a_loop_over_transformers(models: Any, tokenizer_dir: Path) -> None:
    lm, stock = models
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"][:20]])
        if ids.shape[1] > 1:
            with torch.inference_mode():
                total += stock(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    vocab = tokenization.load(tokenizer_dir)
    for batch_tokens in (30, 2048):
        found = evaluate.perplexity(lm, vocab, TEXTS, max_tokens=20, batch_tokens=batch_tokens)
        assert found == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found != pytest.approx(evaluate.perplexity(lm, vocab, TEXTS), rel=1e-3)


def test_perplexity_of_nothing_is_refused(models: Any, tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match="no text has two tokens"):
        evaluate.perplexity(models[0], tokenization.load(tokenizer_dir), [""])


@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
def test_baselines_equal_plain_transformers(models: Any, tokenizer_dir: Path, pooling: Any) -> None:
    lm, stock = models
    vocab = tokenization.load(tokenizer_dir)
    vectors = evaluate.baseline_embeddings(lm, vocab, TEXTS, batch_tokens=40)[pooling]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            states = stock.base_model(ids).last_hidden_state[0].numpy()
        weights = {
            "mean": np.ones(len(states)),
            "weighted": np.arange(1, len(states) + 1),
            "last": np.eye(len(states))[-1],
        }[pooling]
        expected = weights @ states
        assert vector @ (expected / np.linalg.norm(expected)) > 0.99999


def test_echo_is_the_mean_over_the_second_of_two(models: Any, tokenizer_dir: Path) -> None:
    lm, stock = models
    vocab = tokenization.load(tokenizer_dir)
    texts = [TEXTS[0], TEXTS[2] * 9, TEXTS[3]]
    found = evaluate.baseline_embeddings(lm, vocab, texts, batch_tokens=40)["echo"]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    for text, vector in zip(texts, found, strict=True):
        bos, *ids = tokenizer(text)["input_ids"]
        n = min(len(ids), (lm.config.max_position_embeddings - 1) // 2)  # the long one is cut
        with torch.inference_mode():
            twice = torch.tensor([[bos, *ids[:n], *ids[:n]]])
            states = stock.base_model(twice).last_hidden_state[0].numpy()
        expected = states[-max(n, 1) :].mean(0)
        assert vector @ (expected / np.linalg.norm(expected)) > 0.99999


def test_reconstruction_is_the_share_of_places_that_agree(tokenizer_dir: Path) -> None:
    lm = tiny("llama", 401)
    vocab, summary = tokenization.add_summary_tokens(tokenization.load(tokenizer_dir), 1)
    texts = ["XQXXQXQ and more", "QQXQXXXQ"]
    ids = [x[:7] for x in tokenization.encode(vocab, texts)]
    q, x = sorted(set(np.concatenate(ids).tolist()))
    with torch.no_grad():  # it writes X where it does not write Q
        lm.lm_head.weight[:] = 0
        lm.lm_head.weight[x] = -torch.ones(32)
        lm.lm_head.weight[q] = torch.ones(32)
    documents = [np.concatenate([[vocab.bos_token_id], i, summary]) for i in ids]
    written = continue_greedily(lm, compress(lm, documents, 1), 7)
    agree = [(w == i).mean() for w, i in zip(written, ids, strict=True)]
    assert 0 < np.mean(agree) < 1
    found = evaluate.reconstruction(lm, vocab, summary, texts, 7)
    assert found == pytest.approx(np.mean(agree))
    with pytest.raises(InputError, match="text 2 has 1 tokens instead of 7"):
        evaluate.reconstruction(lm, vocab, summary, [TEXTS[2], "x"], 7)


def test_sts_ranks_cosines_as_people_do() -> None:
    angles = np.array([0.3, 2.0, 1.0, 1.5])
    first = np.repeat([[2.0, 0.0]], 4, 0).astype(np.float32)
    second = 3 * np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert evaluate.sts(first, second, [5, 0, 4, 1]) == pytest.approx(100)
    assert evaluate.sts(first, second, [0, 5, 1, 4]) == pytest.approx(-100)
    # Ranks 4, 1, 3, 2 and, of equals, 3.5, 1, 3.5, 2: the correlation of those.
    tied = np.corrcoef([4, 1, 3, 2], [3.5, 1, 3.5, 2])[0, 1]
    assert evaluate.sts(first, second, [5, 0, 5, 1]) == pytest.approx(100 * tied)
    with pytest.raises(InputError, match="all the same"):
        evaluate.sts(first, second, [3, 3, 3, 3])


def test_an_untrained_summary_token_is_the_mean_of_the_rows(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    lm = tiny("llama", 400)
    mean = lm.get_input_embeddings().weight[: vocab.size].mean(0).detach()
    encoder = evaluate.untrained(lm, vocab, k=2)
    rows = lm.get_input_embeddings().weight[encoder.summary_tokens].detach()
    assert len(rows) == 2
    assert (rows - mean).abs().max() < 0.05
    assert encoder.encode(TEXTS[:2]).shape == (2, 32)


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_ndcg_equals_scikit_learns(n: int, ties: bool) -> None:
    rng = np.random.default_rng(n)
    queries = rng.standard_normal((n, 8)).astype(np.float32)
    documents = queries + 2 * rng.standard_normal((n, 8)).astype(np.float32)
    if ties:  # few directions, along the axes: equal cosines are exactly equal
        queries, documents = (np.eye(8, dtype=np.float32)[rng.integers(0, 4, n)] for _ in "qd")
    found = evaluate.ndcg_at_10(queries, documents)
    if n > 1:  # scikit-learn refuses a single document
        cosine = documents / np.linalg.norm(documents, axis=1, keepdims=True)
        scores = queries @ cosine.T
        assert found == pytest.approx(ndcg_score(np.eye(n), scores, k=10), abs=1e-6)
        assert 0 < found < 1
    else:
        assert found == 1


def test_ndcg_of_equal_vectors_is_chance() -> None:
    same = np.ones((500, 4), dtype=np.float32)
    chance = sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 500
    assert evaluate.ndcg_at_10(same, same) == pytest.approx(chance)


def test_nearest_is_by_cosine_best_first() -> None:
    documents = np.array([[0, 9], [1, 0], [1, 1], [-1, 0]], dtype=np.float32)
    queries = np.array([[5, 1], [0, 0.1]], dtype=np.float32)
    assert evaluate.nearest(queries, documents, 3).tolist() == [[1, 2, 0], [0, 2, 1]]


def test_table_is_aligned_markdown() -> None:
    text = evaluate.table(["what", "before", "after"], [["nDCG@10", "1.5", "20.25"]])
    assert text.splitlines() == [
        "| what    | before | after |",
        "| ------- | -----: | ----: |",
        "| nDCG@10 |    1.5 | 20.25 |",
    ]
