"""The survey of all families, on a few: see benchmarks/families.py."""

import families
import pytest
import torch
from families import verdict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "deepseek_v2", "mixtral"])
def test_an_exact_family_is_found_to_be(family) -> None:
    assert verdict(family).startswith("ok: ")


def test_others_are_told_apart(monkeypatch) -> None:
    assert verdict("mamba").startswith("refused: ")
    assert verdict("musicgen").startswith("not tried: ")
    logits = families.own_logits
    monkeypatch.setattr(families, "own_logits", lambda lm, ids: logits(lm, ids) + ids[0])
    assert verdict("qwen3").startswith("WRONG: ")
    monkeypatch.setattr(families, "own_logits", lambda lm, ids: torch.cat([ids]).view(3, 4, -1))
    assert verdict("qwen3").startswith("CRASH: ")
