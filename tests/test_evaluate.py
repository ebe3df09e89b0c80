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

from gem_ds import evaluate, tokenization
from gem_ds.errors import InputError


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
