"""What a model is tried for before it is trained or used, on tiny random models."""

import pytest
import tiny_families
import torch
from models import FAMILIES, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface

from gem_ds.attention import compatibility, hf_config
from gem_ds.attention.registry import NAME, gem_attention, make_plan
from gem_ds.errors import InputError

MIXERS = r"where the GEM mask\s+(cannot|does not) reach"


def check(model, longest=128):
    compatibility.check(model, longest, NAME, make_plan(compatibility.BOUNDS, "dense"))


class Shift(torch.nn.Module):
    """Adds to each token what stands before it, as recurrent and convolution layers do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kwargs):
        return self.inner(x + 0.01 * x.roll(1, dims=1), *args, **kwargs)


@pytest.mark.parametrize("family", [*FAMILIES, "cohere", "granite", "deepseek_v3", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_as_training_takes_it_passes_and_stays_as_it_was(family, dtype):
    extra = {
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0},
        "deepseek_v3": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    }
    model = tiny_model(family, **extra.get(family, {})).to(dtype)
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    attention = model.config._attn_implementation
    n_layers = len(model.base_model.layers)
    check(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: kept for name, (kept, _) in before.items()
    }
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert not model.training
    assert model.config._attn_implementation == attention
    assert len(model.base_model.layers) == n_layers
    check(model.train())
    assert model.training


@pytest.mark.parametrize(
    ("family", "extra", "message"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, MIXERS),
        ("qwen3_5_text", {}, r"another kind than attention \(linear_attention\)"),
        (
            "minimax",
            {"layer_types": ["full_attention", "linear_attention"], "num_local_experts": 2},
            r"another kind than attention \(linear_attention\)",
        ),
        ("bloom", {"n_head": 4}, "'bloom' does not use Transformers' attention interface"),
        ("bert", {}, "attends in both directions, as encoders do"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attends in both directions"),
        ("modernbert-decoder", {"pad_token_id": 0}, "logits otherwise than by attention layers"),
        ("nemotron", {"head_dim": 8}, "does not get the keyword arguments"),
        ("doge", {}, "makes an attention mask of its own"),
        ("llama", {"attention_dropout": 0.1}, r"\(attention_dropout 0\.1\).*--disable-dropout"),
        ("gpt2", {"n_embd": 32, "n_head": 4}, r"resid_pdrop 0\.1, embd_pdrop 0\.1, attn_pdrop"),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, r"\(dropout 0\.1\)"),
        ("mixtral", {"router_jitter_noise": 0.1}, r"\(router_jitter_noise 0\.1\)"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused_with_the_true_reason(family, extra, message):
    with pytest.raises(InputError, match=message):
        check(tiny_model(family, **extra))


def test_dropout_is_switched_off_whatever_it_is_called():
    for family, extra in [("gpt2", {"n_embd": 32, "n_head": 4}), ("mixtral", {"dropout": 0.1})]:
        model = tiny_model(family, **extra)
        config = model.config
        hf_config.disable_dropout(config)
        check(type(model)(config))
        assert not hf_config.dropout_of(config)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("part", ["mlp", "self_attn.q_proj", "self_attn.v_proj"])
def test_a_module_that_mixes_tokens_is_found_by_what_it_does(layer, part):
    """In any layer, inside of attention too."""
    model = tiny_model(num_hidden_layers=4)
    parent = model.model.layers[layer].get_submodule(part.rpartition(".")[0])
    name = part.rpartition(".")[2]
    setattr(parent, name, Shift(getattr(parent, name)))
    with pytest.raises(InputError, match=rf"\(Shift in model\.layers\.{layer}\.{part}\)"):
        check(model)


def test_a_window_that_attention_does_not_hear_of_is_found():
    model = tiny_model("gemma3_text+window")
    check(model)
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(InputError, match="hides position 0 from position 5"):
        check(model)


def test_attention_in_chunks_is_refused_for_longer_documents():
    extra = {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 16}
    model = tiny_model("llama4_text", head_dim=8, **extra)
    assert hf_config.longest_document(model.config) == 16
    check(model, 16)
    with pytest.raises(InputError, match="hides position 0 from position 16"):
        check(model, 17)


@pytest.mark.parametrize("how", ["view", "copy", "written to"])
def test_a_mask_is_the_one_that_was_asked_for(how):
    """A family may slice its mask; what it computes itself would be lost."""
    model = tiny_model()
    attention = model.model.layers[0].self_attn
    inner = attention.forward

    def forward(*args, attention_mask=None, **kwargs):
        if attention_mask is not None and how == "view":
            attention_mask = attention_mask[:, :, :, : attention_mask.shape[-1]]
        if attention_mask is not None and how == "copy":
            attention_mask = attention_mask & attention_mask
        if attention_mask is not None and how == "written to":
            attention_mask.logical_and_(attention_mask)
        return inner(*args, attention_mask=attention_mask, **kwargs)

    attention.forward = forward
    if how == "view":
        check(model)
    else:
        with pytest.raises(InputError, match="makes an attention mask of its own"):
            check(model)


def test_positions_that_depend_on_the_whole_stream_are_found():
    model = tiny_model()
    rotary = model.model.rotary_emb
    inner = rotary.forward
    rotary.forward = lambda x, position_ids: inner(x, position_ids * (1 + position_ids.max() // 6))
    with pytest.raises(InputError, match="computes its logits otherwise"):
        check(model)


def test_documents_that_see_each_other_are_found():
    """In attention itself: the token before a document's first is one of another."""
    model = tiny_model()

    def leaking(module, q, k, v, mask, gem_plan=None, **how):
        out, _ = gem_attention(module, q, k, v, mask, gem_plan=gem_plan, **how)
        return out + 0.01 * out.roll(1, dims=1), None

    AttentionInterface.register("leaking", leaking)
    AttentionMaskInterface.register("leaking", lambda *_, **__: None)
    with pytest.raises(InputError, match="lets packed documents see each other"):
        compatibility.check(model, 128, "leaking", make_plan(compatibility.BOUNDS, "dense"))


def test_weights_that_are_not_finite_are_found():
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        check(model)


def test_any_other_exception_becomes_a_sentence():
    model = tiny_model()

    def broken(*_, **__):
        raise ZeroDivisionError("an odd size\nin many lines")

    model.model.layers[0].mlp.forward = broken
    with pytest.raises(InputError, match=r"does not run with the GEM attention \(an odd size\)"):
        check(model)
    del model.model.layers[0].mlp.forward
    check(model)


def test_no_more_layers_run_than_show_one_of_each_kind():
    model = tiny_model("gemma3_text+window", num_hidden_layers=8, layer_types=None)
    ran = set()
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.add(i))
    check(model)
    kinds = model.config.layer_types
    assert len(set(kinds)) == 2
    assert ran == set(range(1 + kinds.index("full_attention")))


def check_embeddings(family):
    model = tiny_families.tiny_model(tiny_families.tiny_config(family))
    tiny_families.randomize(model)
    before = model.get_input_embeddings().weight.clone()
    model.set_attn_implementation(NAME)
    try:
        compatibility.check_embeddings(model, make_plan(compatibility.BOUNDS, "dense"))
    finally:
        assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_families_that_read_tokens_beside_their_embeddings_are_refused(family):
    check_embeddings("llama")
    with pytest.raises(InputError, match=f"'{family}' reads tokens beside their embeddings"):
        check_embeddings(family)
