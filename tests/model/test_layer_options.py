"""Compiled norms and MLPs compute what plain ones do, also under ZeRO-3."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from layouts import bounds_from
from models import tiny_model
from runs import random_base, small_llama
from single_steps import assert_same, one_step
from torch._dynamo.utils import counters

from gem_ds import layout
from gem_ds.attention import forward, registry
from gem_ds.errors import InputError
from gem_ds.model import layer_options
from gem_ds.model.layer_options import Recompute
from gem_ds.training.config import TrainConfig

# Of one process in which one run comes after the other: a norm and an MLP that are trained, of a
# frozen base, with adapters and without gradients; sizes of 0 and 1 apart.
GRAPHS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    folder = small_llama(tmp_path_factory.mktemp("fusing"), tokenizer_dir)
    random_base(folder / "base", folder / "untied", tokenizer_dir)
    return folder


def test_compiled_parts_give_the_same_losses_and_gradients(made):
    """On two ranks, recomputed or kept, held to a frozen base, and with adapters."""
    full = {"alpha": 0.5, "config": made / "untied", "positives": "crops", "crop_tokens": "2-8"}
    kept = {**full, "gradient_checkpointing": False}
    held = {**full, "config": None, "model": made / "base", "kl_to_base": 1.0}
    adapted = {**held, "kl_to_base": 0.0, "adapter": "summary", "positives": "dropout"}
    adapted["temperature"] = 2.0  # at 20 they are told apart, and its gradient is all rounding
    ways = {"full": full, "kept": kept, "held": held, "adapted": adapted}
    settings = {name: {**flags, "rows_per_micro_batch": 2} for name, flags in ways.items()}
    plain = one_step(made, 2, settings)
    settings = {name: {**flags, "compile": True} for name, flags in settings.items()}
    compiled = one_step(made, 2, settings)
    for name, result in compiled.items():
        assert_same(plain[name], result)
        assert plain[name]["graphs"] == 0
    full, kept, held, adapted = (compiled[name]["graphs"] for name in ways)
    assert 0 < full == kept < held < adapted <= GRAPHS


@pytest.mark.parametrize("family", ["qwen3", "phi3"])  # norms in attention; gate and up in one
def test_one_graph_serves_all_layers_and_lengths(family):
    plain, compiled = tiny_model(family).train(), tiny_model(family).train()
    for lm in (plain, compiled):
        registry.attach(lm)
        Recompute().apply(lm)
    assert len(layer_options.compile_parts(compiled)) == {"qwen3": 10, "phi3": 6}[family]
    before = counters["stats"]["unique_graphs"]
    for documents in ([(7, 1, 6), (9, 0, 0)], [(17, 1, 6), (4, 1, 10)], [(70, 1, 6)]):
        bounds = bounds_from(documents)
        for name, x in of_a_step(plain, bounds).items():
            y = of_a_step(compiled, bounds)[name]
            assert (x - y).abs().max() < 1e-5 * x.abs().max(), name
    assert 2 <= counters["stats"]["unique_graphs"] - before <= 4


def test_a_compiler_that_is_missing_is_named(tmp_path):
    code = (
        "import torch; from gem_ds import errors; from gem_ds.model import layer_options; "
        "errors.run(lambda: layer_options.check(True, False, torch.device('cpu')))"
    )
    without = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **without}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "--compile: torch.compile does not work here, which needs a C++" in done.stderr
    assert "no-such-compiler" in done.stderr


def test_what_liger_needs_is_named():
    with pytest.raises(InputError, match="run on a GPU, not on the cpu; leave it out"):
        layer_options.check(False, True, torch.device("cpu"))
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(InputError, match=r"not installed; pip install 'gem_ds\[liger\]'"):
            layer_options.check(False, True, torch.device("cuda"))


def of_a_step(lm, bounds, backend="sdpa"):
    """(T, C) last hidden states and the embedding's gradient, for random tokens."""
    n = int(bounds[-1, -1])
    ids = torch.randint(64, (1, n), generator=torch.Generator().manual_seed(n)).to(lm.device)
    places = torch.from_numpy(layout.positions(bounds))[None].to(lm.device)
    plan = registry.make_plan(bounds, backend, device=lm.device)
    states = forward.hidden_states(lm, places, plan, input_ids=ids).float()
    lm.zero_grad()
    (states * torch.linspace(-1, 1, states.shape[-1], device=lm.device)).pow(2).sum().backward()
    return {"states": states.detach(), "grad": lm.get_input_embeddings().weight.grad.float()}


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("way", ["compile", "liger"])
def test_a_gpus_kernels_are_as_near_to_fp32_as_plain_ones(family, way):
    device = torch.device("cuda")
    if way == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed")
    layer_options.check(way == "compile", way == "liger", device)
    of = {}
    for name, dtype in {
        "exact": torch.float32,
        "plain": torch.bfloat16,
        way: torch.bfloat16,
    }.items():
        lm = tiny_model(family, hidden_size=64, head_dim=16).train().to(device, dtype)
        registry.attach(lm)
        if name == "compile":
            layer_options.compile_parts(lm)
        if name == "liger":
            layer_options.apply_liger(lm)
        bounds = bounds_from([(70, 2, 60), (30, 0, 0), (5, 2, 9)])
        of[name] = of_a_step(lm, bounds, "dense")
    for x in ("states", "grad"):
        error = {name: float((of[name][x] - of["exact"][x]).norm()) for name in ("plain", way)}
        assert error[way] <= 1.5 * error["plain"], x


def test_compiling_goes_with_neither_of_two_flags():
    common = {"shards": "a", "output": "b", "deepspeed": "c", "config": "d", "compile": True}
    for other in ("liger", "keep_products"):
        with pytest.raises(InputError, match="--compile goes neither with --liger"):
            TrainConfig(**common, **{other: True}).check(1)
