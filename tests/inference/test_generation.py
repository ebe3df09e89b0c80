"""Text comes in whole characters, stops where it is told to, and repeats with its seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exports import tiny
from transformers import DynamicCache

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.errors import InputError
from gem_ds.inference import generation
from gem_ds.inference.generation import Sampling


@pytest.fixture(scope="module")
def vocab(tokenizer_dir: Path) -> Vocabulary:
    return tokenization.load(tokenizer_dir)


def written(lm, sampling: Sampling, n: int = 30) -> list[int]:
    prompt = np.array([0, 5, 6], dtype=np.int32)
    return list(generation.tokens(lm, prompt, DynamicCache(), 0, n, sampling))


def test_drawing_repeats_with_its_seed_and_follows_the_distribution() -> None:
    lm = tiny("llama", 400)
    assert written(lm, Sampling(1.0, seed=3)) == written(lm, Sampling(1.0, seed=3))
    torch.manual_seed(0)
    first = written(lm, Sampling(1.0))
    torch.manual_seed(0)
    assert first != written(lm, Sampling(1.0)), "without a seed, whatever the global one"
    assert written(lm, Sampling(1.0, top_p=1e-6, seed=1)) == written(lm, Sampling())
    assert written(lm, Sampling(1e-4, seed=1)) == written(lm, Sampling())
    with torch.inference_mode():
        p = lm(torch.tensor([[0, 5, 6]])).logits[0, -1].softmax(-1)
    best = int(p.argmax())
    drawn = [written(lm, Sampling(1.0, seed=s), 1)[0] for s in range(300)]
    assert abs(drawn.count(best) / 300 - float(p[best])) < 0.1


def test_sampling_that_cannot_be_is_refused() -> None:
    for wrong in ({"temperature": float("nan")}, {"top_p": 1.5}):
        with pytest.raises(InputError, match="it must be"):
            Sampling(**wrong)
