"""Tensors that are computed when they are looked up."""

import torch

from gem_ds.model.lazy_tensors import Lazy, changed, renamed


def counted() -> tuple[Lazy, list[str]]:
    """Two tensors, and the names of those that were computed."""
    asked: list[str] = []

    def compute(name: str, value: float) -> torch.Tensor:
        asked.append(name)
        return torch.full((2,), value)

    return Lazy({"a": lambda: compute("a", 1), "b": lambda: compute("b", 2)}), asked


def test_only_what_is_looked_up_is_computed_each_time_anew() -> None:
    weights, asked = counted()
    assert ("a" in weights, "c" in weights, len(weights), list(weights)) == (
        True,
        False,
        2,
        ["a", "b"],
    )
    assert asked == []
    weights["a"].fill_(9)
    assert weights["a"].tolist() == [1, 1]
    assert asked == ["a", "a"]


def test_other_names_and_changes_are_computed_then_too() -> None:
    weights, asked = counted()
    made = changed(renamed(weights, {"x": "a", "y": "b"}), {"y": lambda t: 10 * t})
    assert list(made) == ["x", "y"]
    assert asked == []
    assert made["y"].tolist() == [20, 20]
    assert asked == ["b"]
    assert {n: t.tolist() for n, t in made.items()} == {"x": [1, 1], "y": [20, 20]}
