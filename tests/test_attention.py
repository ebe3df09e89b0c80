"""Every backend equals `dense` in values and gradients; no document sees another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import bounds, bounds_from
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds import attention
from gem_ds.attention import attach, gem_attention, make_plan
from gem_ds.errors import InputError
from gem_ds.layout import END, START, SUFFIX, SUMMARY, is_gem, plain, positions

SUMMARY_ATTENTION = st.sampled_from(["isolated", "causal"])


def attend(bounds_D4, backend, summary_attention, dtype=torch.float32, n_heads=4, n_kv=2, size=8):
    """Output and gradients of q, k, v for seeded random inputs, in fp64 for comparison."""
    generator = torch.Generator().manual_seed(int(bounds_D4.sum()))
    T = int(bounds_D4[-1, END])
    tensors = [torch.randn(1, n, T, size, generator=generator) for n in (n_heads, n_kv, n_kv)]
    weight = torch.randn(1, T, n_heads, size, generator=generator)
    q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
    plan = make_plan(bounds_D4, "cpu", backend, summary_attention)
    out, _ = gem_attention(torch.nn.Module(), q, k, v, None, gem_plan=plan)
    (out * weight.to(dtype)).sum().backward()
    return [x.double() for x in (out.detach(), q.grad, k.grad, v.grad)]


def max_relative_error(got, expected):
    return max(
        float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, expected, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(bounds(), SUMMARY_ATTENTION)
def test_sdpa_equals_dense_in_fp32(bounds_D4, summary_attention):
    expected = attend(bounds_D4, "dense", summary_attention)
    got = attend(bounds_D4, "sdpa", summary_attention)
    assert max_relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("summary_attention", ["isolated", "causal"])
@pytest.mark.parametrize("k", [1, 3])
def test_sdpa_in_bf16_is_no_farther_from_fp32_than_dense_in_bf16(k, summary_attention):
    """Over a row of many documents: on one tiny document rounding decides either way."""
    lengths = np.random.default_rng(k).integers(1, 60, (40, 2))
    row = bounds_from([(m, k, n) if i % 3 else (m, 0, 0) for i, (m, n) in enumerate(lengths)])
    reference = attend(row, "dense", summary_attention)

    def distances(backend):
        got = attend(row, backend, summary_attention, torch.bfloat16)
        return [float((g - r).norm()) for g, r in zip(got, reference, strict=True)]

    for sdpa, dense in zip(distances("sdpa"), distances("dense"), strict=True):
        assert sdpa <= dense * 1.02  # two roundings of one size differ by this much


def test_sdpa_makes_no_mask_of_the_stream_and_batches_small_documents():
    many = bounds_from([(20 + i % 3, 1, 9) for i in range(300)])
    plan = make_plan(many, backend="sdpa")
    assert plan.mask_TT is None
    assert all(piece.mask_B1QK is None for piece in plan.pieces)
    assert len(plan.pieces) < 6, "similar lengths share a kernel call"
    slots = sum(b * n for b, n in (piece.shape_BQ for piece in plan.pieces))
    assert slots < 1.2 * int(many[-1, END])


FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "olmo2": {},
    "phi3": {"pad_token_id": 0},
    "gpt_neox": {},
}


def tiny_model(family="llama", **extra):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 128,
            **FAMILIES.get(family, {}),
            **extra,
        },
    )
    return AutoModelForCausalLM.from_config(config).eval()


def hidden_states(model, ids, bounds_D4, backend="sdpa", inputs_embeds=None, **kwargs):
    inputs = {"input_ids": ids[None]} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    return model.base_model(
        **inputs,
        position_ids=torch.from_numpy(positions(bounds_D4))[None],
        gem_plan=make_plan(bounds_D4, backend=backend),
        use_cache=False,
        **kwargs,
    ).last_hidden_state[0]


MIXED = bounds_from([(7, 1, 6), (9, 0, 0), (4, 1, 0), (1, 1, 5)])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_compute_plain_documents_as_transformers_does(family):
    model = tiny_model(family)
    ids = torch.randint(64, (int(MIXED[-1, END]),), generator=torch.Generator().manual_seed(1))
    a, b = MIXED[1, START], MIXED[1, END]
    with torch.no_grad():
        expected = model.base_model(ids[None, a:b]).last_hidden_state[0]
        attach(model)
        got = {backend: hidden_states(model, ids, MIXED, backend) for backend in ("dense", "sdpa")}
    assert torch.allclose(got["sdpa"][a:b], expected, atol=2e-6)
    assert torch.allclose(got["sdpa"], got["dense"], atol=2e-6)
    # A document that attends across its summary is computed differently: the mask is at work.
    c, d = MIXED[0, START], MIXED[0, END]
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        causal = model.base_model(ids[None, c:d]).last_hidden_state[0]
    assert not torch.allclose(got["sdpa"][d - 1], causal[-1], atol=1e-3)


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


def test_what_no_backend_computes_is_refused_by_name():
    model = tiny_model("mistral", sliding_window=4)
    attach(model)
    ids = torch.zeros(int(MIXED[-1, END]), dtype=torch.long)
    with pytest.raises(InputError, match="window of 4 tokens and a document has 14"):
        hidden_states(model, ids, MIXED)
    gemma = tiny_model("gemma2", head_dim=8)
    attach(gemma)
    with pytest.raises(InputError, match=r"Gemma2Attention.*soft-capping"):
        hidden_states(gemma, ids, MIXED)
    with torch.no_grad():
        assert hidden_states(gemma, ids, MIXED, "dense").isfinite().all()
    with pytest.raises(InputError, match="attention_dropout"):
        attach(tiny_model(attention_dropout=0.1))
    with pytest.raises(InputError, match="unknown attention backend"):
        make_plan(MIXED, backend="fast")


def test_lengths_are_batched_within_the_padding_limit():
    lengths = np.random.default_rng(0).lognormal(5, 1, 500).astype(np.int64) + 1
    batches = attention._similar(lengths)
    assert sorted(np.concatenate(batches)) == list(range(500))
    for batch in batches:
        padded = lengths[batch].max() * len(batch)
        assert padded - lengths[batch].sum() <= attention.MAX_PADDING * padded


def test_layout_helpers_of_this_test_say_what_they_mean():
    assert is_gem(MIXED).tolist() == [True, False, True, True]
    assert MIXED[1].tolist() == list(plain(14, 23))
    assert (MIXED[:, SUFFIX] - MIXED[:, SUMMARY]).tolist() == [1, 0, 1, 1]
