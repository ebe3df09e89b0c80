"""gem_ds.model.architecture: every parameter counted, against Transformers' models."""

import json
import re

import pytest
import torch
from full_size import config_of
from models import tiny_model
from runs import llama_config
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.errors import InputError
from gem_ds.model import architecture, language_model

COUNTS = {
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen3-8b": 8_190_735_360,
}


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", architecture.BUILT_IN)
def test_a_built_in_shape_has_the_parameters_of_transformers_model(name):
    shape = architecture.BUILT_IN[name]
    made = on_meta(config_of(shape))
    assert shape.n_parameters == made.num_parameters() == COUNTS[name]
    layer = made.base_model.layers[0]
    assert sum(m.numel for m in shape.layer()) == sum(p.numel() for p in layer.parameters())
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.layer_matrices == shape.layers * sum(m.weight.numel() for m in linear)
    assert shape.lora(16) == 16 * shape.layers * sum(sum(m.weight.shape) for m in linear)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 24}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True}),
        ("smollm3", {}),
        ("smollm3", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ],
)
def test_a_config_file_is_read_as_transformers_reads_it(family, extra, tmp_path):
    lm = tiny_model(family, **extra)
    lm.config.save_pretrained(tmp_path)
    shape = architecture.load(tmp_path)
    assert shape.n_parameters == lm.num_parameters()
    assert shape.window == (extra.get("sliding_window") if family == "mistral" else None)
    names = [name for name, p in lm.base_model.layers[0].named_parameters() if p.ndim]
    assert sorted({m.name for m in shape.layer()}) == sorted({n.rpartition(".")[0] for n in names})
    assert architecture.load(tmp_path / "config.json") == architecture.of_config(
        json.loads((tmp_path / "config.json").read_text()), str(tmp_path / "config.json")
    )


@pytest.mark.parametrize("n_tokens", [400, 402])
def test_rows_for_summary_tokens_are_those_of_the_model(tmp_path, n_tokens):
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(llama_config(tmp_path, vocab_size=402))
    )
    shape = architecture.load(tmp_path)
    shape = type(shape)(**{**vars(shape), "n_tokens": n_tokens})
    language_model.add_rows(lm, n_tokens + 2, n_tokens)
    assert shape.with_summary_tokens(2).vocab == lm.config.vocab_size


def test_an_unknown_shape_is_refused_with_the_list(tmp_path):
    known = ", ".join(architecture.BUILT_IN)
    with pytest.raises(
        InputError,
        match=re.escape(f"no such shape or file; give a folder, a config.json, or one of {known}"),
    ):
        architecture.load("llama-9000")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba", "hidden_size": 8}))
    with pytest.raises(InputError, match=f"family 'mamba' are not known.*llama, mistral.*{known}"):
        architecture.load(tmp_path)
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(InputError, match="has no num_attention_heads"):
        architecture.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(InputError, match="no JSON object"):
        architecture.load(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        architecture.load(tmp_path)
    window = {"model_type": "qwen2", "use_sliding_window": True}
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    path.write_text(json.dumps({**window, **dict.fromkeys((*sizes, "vocab_size"), 8)}))
    with pytest.raises(InputError, match="sliding window"):
        architecture.load(tmp_path)
