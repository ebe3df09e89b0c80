"""The tests of attention on a GPU, the same as on a CPU, for the backends that run there.

They need torch, transformers, NumPy and pytest alone; layouts are random by a seed.
"""

import pytest
import torch
from attending import equals_dense, is_no_farther_than_dense
from layouts import bounds_from, random_bounds
from models import FAMILIES, MIXED, hidden_states, tiny_model

from gem_ds.attention.registry import attach, choose, make_plan
from gem_ds.layout import is_gem
from gem_ds.model.layer_options import Recompute

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
SUMMARY_ATTENTION = ("isolated", "causal")
WINDOWS = (None, 1, 20, 700)


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    """Matrix products of fp32 in fp32, not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("summary_attention", SUMMARY_ATTENTION)
def test_flex_equals_dense_in_fp32(window, summary_attention):
    for seed in range(8):
        row = random_bounds(seed)
        for rest in [False] + [True] * bool(is_gem(row).any()):
            case = {"size": 32, "device": "cuda", "rest": rest}
            equals_dense(row, "flex", summary_attention, window, **case)


@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
def test_flex_equals_dense_for_all_heads(size, heads):
    row = bounds_from([(70, 2, 60), (30, 0, 0), (1, 2, 0), (5, 2, 9)])
    equals_dense(row, "flex", heads=heads, size=size, device="cuda")


@pytest.mark.parametrize("backend", ["varlen", "flex"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("summary_attention", SUMMARY_ATTENTION)
@pytest.mark.parametrize("window", [None, 25])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rest", [False, True])
def test_half_precision_is_no_farther_from_fp32_than_dense(
    backend, dtype, summary_attention, window, k, rest
):
    case = {"size": 32, "device": "cuda", "rest": rest, "n_rows": 8 if rest else 1}
    is_no_farther_than_dense(backend, dtype, summary_attention, window, k, **case)


@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
def test_varlen_takes_all_head_sizes(size):
    is_no_farther_than_dense("varlen", torch.bfloat16, "isolated", None, 2, size, "cuda")


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_flex_soft_caps_and_sinks_as_dense_does(name):
    value = 2.0 if name == "softcap" else torch.linspace(-2, 2, 4)
    row = bounds_from([(70, 1, 60), (30, 0, 0), (200, 1, 9)])
    equals_dense(row, "flex", size=32, device="cuda", **{name: value})


@pytest.mark.parametrize("backend", ["dense", "varlen", "flex"])
def test_plans_move_to_the_gpu_whole(backend):
    row = bounds_from([(70, 2, 60), (30, 0, 0)])
    kernel = make_plan(row, backend).to(CUDA).within(None)
    fields = vars(kernel).values() if backend == "flex" else kernel
    tensors = [x for x in fields if isinstance(x, torch.Tensor)]
    assert tensors
    assert all(x.is_cuda for x in tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_compute_with_the_chosen_backend_what_dense_does(family):
    model = tiny_model(family, hidden_size=64, head_dim=16).to(CUDA)
    attach(model)
    ids = torch.randint(64, (int(MIXED[-1, -1]),), generator=torch.Generator().manual_seed(1))
    chosen = choose("auto", model, CUDA, torch.float32)
    assert chosen == "flex"
    with torch.no_grad():
        dense, fast = (hidden_states(model, ids.to(CUDA), MIXED, b) for b in ("dense", chosen))
    assert torch.allclose(fast, dense, atol=5e-6)
    assert choose("auto", model, CUDA, torch.bfloat16) == (
        "flex" if family.startswith(("gemma2", "gpt_oss")) else "varlen"
    )


def test_offloaded_activations_give_the_same_gradients():
    made = []
    for offload in (False, True):
        lm = tiny_model(hidden_size=64, head_dim=16).to(CUDA).train()
        Recompute(offload=offload).apply(lm)
        ids = torch.arange(int(MIXED[-1, -1]), device=CUDA) % 64
        hidden_states(lm, ids, MIXED, "dense").pow(2).sum().backward()
        made.append([p.grad for p in lm.parameters() if p.grad is not None])
    assert made[0]
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_flex_compiles_once_for_streams_of_one_padded_length():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed in range(4):
        row = bounds_from([(100 + seed, 1, 60), (50, 0, 0)])
        equals_dense(row, "flex", size=32, device="cuda")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
