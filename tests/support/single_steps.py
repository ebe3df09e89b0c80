"""One step of several settings, and whether two of them came to the same."""

import pytest
import torch
from several_runs import several_runs


def one_step(made, ranks, settings):
    """Metrics and gradients of one step for each setting."""
    common = {
        "shards": made / "shards",
        "deepspeed": made / "fp32-zero3.json",
        "rows_per_step": 8,
        "steps": 50,
        "max_grad_norm": 1e9,
        "alpha_start": 3,
        "gradients": 3,
    }
    out = made / f"gradients-{ranks}"
    several_runs(out, ranks, {name: {**common, **flags} for name, flags in settings.items()})
    return {name: torch.load(out / f"{name}.pt") for name in settings}


def assert_same(a, b):
    for key in ("loss/ntp", "loss/contrastive", "loss/total", "train/grad_norm"):
        assert a["values"][key] == pytest.approx(b["values"][key], rel=1e-5), key
    for name, grad in a["grads"].items():
        error = (grad - b["grads"][name]).abs().max() / grad.abs().max().clamp_min(1e-20)
        assert error < 1e-5, (name, float(error))
