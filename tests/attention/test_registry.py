"""Every backend equals `dense` in values and gradients; no document sees another.

What needs a GPU is in test_gpu.py.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attending import attend, equals_dense, is_no_farther_than_dense
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import bounds_from, random_bounds
from models import MIXED, hidden_states, tiny_model
from strategies import bounds

from gem_ds.attention import backends, masks
from gem_ds.attention.registry import attach, choose, gem_attention, make_plan
from gem_ds.errors import InputError
from gem_ds.layout import END, START, SUFFIX, SUMMARY, is_gem, plain

SUMMARY_ATTENTION = st.sampled_from(["isolated", "causal"])
WINDOWS = st.sampled_from([None, None, 1, 3, 20, 90])
LAYOUTS = st.one_of(bounds(), st.integers(0, 2**32).map(random_bounds))
HALF = [torch.bfloat16, torch.float16]


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, SUMMARY_ATTENTION, WINDOWS, st.booleans())
def test_sdpa_equals_dense_in_fp32(bounds_D4, summary_attention, window, rest):
    assume(not rest or is_gem(bounds_D4).any())
    equals_dense(bounds_D4, "sdpa", summary_attention, window, rest=rest)


@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
def test_sdpa_equals_dense_for_all_heads(size, heads):
    row = bounds_from([(70, 2, 60), (30, 0, 0), (1, 2, 0), (5, 2, 9)])
    for rest in (False, True):
        equals_dense(row, "sdpa", heads=heads, size=size, rest=rest)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("summary_attention", ["isolated", "causal"])
@pytest.mark.parametrize("window", [None, 25])
@pytest.mark.parametrize(("k", "longest"), [(1, 60), (3, 60), (1, 800), (3, 800)])
def test_sdpa_in_half_precision_is_no_farther_from_fp32_than_dense(
    dtype, summary_attention, window, k, longest
):
    is_no_farther_than_dense("sdpa", dtype, summary_attention, window, k, longest=longest)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("summary_attention", "k", "longest"), [("isolated", 3, 60), ("causal", 1, 800)]
)
def test_so_it_is_for_a_few_queries(dtype, summary_attention, k, longest):
    """Over more rows, since a row has fewer of them."""
    case = {"longest": longest, "rest": True, "n_rows": 8}
    is_no_farther_than_dense("sdpa", dtype, summary_attention, None, k, **case)


def slow_varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """The contract of `torch.nn.attention.varlen.varlen_attn`, segment by segment."""
    left, right = window_size
    assert right == 0
    out = []
    ends_q, ends_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    for s in range(len(ends_q) - 1):
        q_s, k_s, v_s = (
            x[ends[s] : ends[s + 1]].transpose(0, 1)
            for x, ends in ((q, ends_q), (k, ends_k), (v, ends_k))
        )
        n, m = q_s.shape[1], k_s.shape[1]
        i, j = torch.arange(n)[:, None] + (m - n), torch.arange(m)[None, :]
        mask = (j <= i) & ((i - j <= left) if left >= 0 else True)
        o = F.scaled_dot_product_attention(
            q_s, k_s, v_s, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        out.append(o.transpose(0, 1))
    return torch.cat(out)


@settings(max_examples=40, deadline=None)
@given(bounds(), SUMMARY_ATTENTION, WINDOWS, st.booleans())
def test_varlen_hands_its_kernel_the_rule(bounds_D4, summary_attention, window, rest):
    """With the kernel's contract in place of the kernel, which runs on GPUs only."""
    assume(not rest or is_gem(bounds_D4).any())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "varlen_attn", slow_varlen)
        equals_dense(bounds_D4, "varlen", summary_attention, window, rest=rest)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=15, deadline=None)
@given(bounds(), SUMMARY_ATTENTION, WINDOWS, st.sampled_from([None, 2.0]), st.booleans())
def test_flex_forward_equals_dense(bounds_D4, summary_attention, window, cap, rest):
    """On the CPU, where FlexAttention computes no gradients."""
    assume(not rest or is_gem(bounds_D4).any())
    about = bounds_D4, "flex", summary_attention, window
    equals_dense(*about, softcap=cap, grad=False, rest=rest)


def test_a_token_moves_no_output_and_no_gradient_of_another_document():
    model = tiny_model()
    attach(model)
    T = int(MIXED[-1, END])
    ids = torch.randint(64, (T,), generator=torch.Generator().manual_seed(2))

    def run(ids):
        embeds = model.get_input_embeddings()(ids)[None].detach().requires_grad_()
        out = hidden_states(model, ids, MIXED, inputs_embeds=embeds)
        out.square().sum().backward()
        return out.detach(), embeds.grad[0]

    out, grad = run(ids)
    for t in range(T):
        changed = ids.clone()
        changed[t] = (ids[t] + 1) % 64
        out_t, grad_t = run(changed)
        document = next(d for d in MIXED if d[START] <= t < d[END])
        others = torch.ones(T, dtype=torch.bool)
        others[document[START] : document[END]] = False
        assert torch.equal(out[others], out_t[others])
        assert torch.equal(grad[others], grad_t[others])
        assert not torch.equal(out[t], out_t[t])


def test_the_suffix_reads_the_prefix_only_through_the_summary():
    """With the summary's hidden states held at every layer, a prefix token moves no suffix output;
    without holding them, it does."""
    model = tiny_model()
    attach(model)
    document = bounds_from([(7, 1, 6)])
    start, summary, suffix, end = document[0]
    ids = torch.randint(64, (int(end),), generator=torch.Generator().manual_seed(3))
    held: list[torch.Tensor] = []

    def remember(_module, _args, output):
        held.append(output[:, summary:suffix].detach().clone())

    def run(ids, hook=None):
        handles = [layer.register_forward_hook(hook) for layer in model.model.layers if hook]
        with torch.no_grad():
            out = hidden_states(model, ids, document)
        for handle in handles:
            handle.remove()
        return out

    reference = run(ids, remember)
    for t in range(start, summary):
        changed = ids.clone()
        changed[t] = (ids[t] + 1) % 64
        states = iter(held)

        def hold(_module, _args, output, states=states):
            output = output.clone()
            output[:, summary:suffix] = next(states)
            return output

        assert torch.equal(run(changed, hold)[suffix:end], reference[suffix:end])
        assert not torch.equal(run(changed)[suffix:end], reference[suffix:end])


def test_auto_takes_the_fastest_that_the_model_and_device_allow():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    fp32, bf16 = torch.float32, torch.bfloat16
    llama, gemma2, gpt_oss = map(tiny_model, ("llama", "gemma2", "gpt_oss"))
    assert choose("auto", llama, cpu, bf16) == "sdpa"
    assert choose("auto", gemma2, cpu, bf16) == "dense"
    assert choose("auto", gpt_oss, cpu, bf16) == "dense"
    assert choose("auto", tiny_model(head_dim=16), cuda, fp32) == "flex"
    assert choose("auto", tiny_model("gemma2", head_dim=16), cuda, bf16) == "flex"
    assert choose("auto", llama, cuda, fp32) == "dense", "its heads are of 8"


@pytest.mark.parametrize(
    ("choice", "family", "message"),
    [
        ("varlen", "llama", "varlen cannot be: it needs a CUDA GPU and the model is on the cpu"),
        ("flex", "llama", "flex cannot be: it needs a CUDA GPU"),
        ("sdpa", "gemma2", "gemma2 soft-caps its attention scores; choose auto"),
        ("sdpa", "gpt_oss", "gpt_oss has attention sinks"),
        ("fast", "llama", "unknown attention backend 'fast'; choose auto, dense, sdpa"),
    ],
)
def test_an_impossible_choice_is_refused_with_the_reason(choice, family, message):
    with pytest.raises(InputError, match=message):
        choose(choice, tiny_model(family), torch.device("cpu"), torch.float32)


def test_a_gpus_backend_is_refused_for_what_its_kernel_does_not_compute():
    cuda = torch.device("cuda")
    with pytest.raises(InputError, match="heads of at least 16, and llama has heads of 8"):
        choose("flex", tiny_model(), cuda, torch.float32)
    with pytest.raises(InputError, match="computes in bf16 and fp16, and the model in"):
        choose("varlen", tiny_model(), cuda, torch.float32)
    with pytest.raises(InputError, match="heads of 8, 16 … 256, and llama has heads of 12"):
        choose("varlen", tiny_model(head_dim=12), cuda, torch.bfloat16)


def test_a_model_that_cannot_be_attached_is_refused_by_name():
    with pytest.raises(InputError, match="'bloom' does not use"):
        attach(tiny_model("bloom", n_head=4))


@pytest.mark.parametrize(("of_keys", "of_values"), [(12, 8), (8, 12)])
@pytest.mark.parametrize("backend", ["dense", "sdpa"])
def test_values_may_be_of_another_size_than_keys(backend, of_keys, of_values):
    T = int(MIXED[-1, END])
    generator = torch.Generator().manual_seed(0)
    shapes = (4, of_keys), (2, of_keys), (2, of_values)
    q, k, v = (torch.randn(1, n, T, size, generator=generator) for n, size in shapes)
    mask = masks.dense(MIXED)
    expected = backends.weighted(
        q[0], *(x[0].repeat_interleave(2, 0) for x in (k, v)), mask, 0.3, None, None
    )
    plan = make_plan(MIXED, backend)
    out, _ = gem_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, gem_plan=plan)
    assert out.is_contiguous()
    assert torch.allclose(out[0].transpose(0, 1), expected, atol=1e-6)


def test_a_kernel_refuses_scores_it_does_not_compute():
    for extra in ({"softcap": 2.0}, {"s_aux": torch.zeros(4)}):
        with pytest.raises(InputError, match="the sdpa backend does not compute"):
            attend(MIXED, "sdpa", **extra)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([[0, 3, 4, 8], [7, 9, 9, 9]], "document 1 does not start where the one before it ends"),
        ([[0, 5, 4, 8]], "document 0 has boundaries out of order"),
        ([[2, 3, 4, 8]], "document 0 does not start"),
        ([[0, 3, 4, 8], [8, 9, 11, 12]], "document 1 does not have 1 summary tokens"),
    ],
)
def test_a_layout_that_is_not_well_formed_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        make_plan(np.array(broken, dtype=np.int32), "sdpa")


def test_another_number_of_summary_tokens_than_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match="document 0 does not have 2 summary tokens"):
        make_plan(MIXED, "sdpa", n_summary=2)


def test_a_plan_of_another_stream_is_refused():
    q = torch.zeros(1, 2, 9, 8)
    with pytest.raises(ValueError, match=r"Module: the plan is for one flat stream of 35 tokens"):
        gem_attention(torch.nn.Module(), q, q, q, None, gem_plan=make_plan(MIXED, "sdpa"))


def test_keys_beyond_32_bits_are_refused():
    n = 2**30
    bounds_D4 = np.array([[0, n, n + 2, n + 2]], dtype=np.int32)
    with pytest.raises(ValueError, match="32-bit offsets can hold; take fewer rows"):
        backends.Varlen.of(bounds_D4, "isolated", None)


def test_layout_helpers_of_this_test_say_what_they_mean():
    assert is_gem(MIXED).tolist() == [True, False, True, True]
    assert MIXED[1].tolist() == list(plain(14, 23))
    assert (MIXED[:, SUFFIX] - MIXED[:, SUMMARY]).tolist() == [1, 0, 1, 1]
