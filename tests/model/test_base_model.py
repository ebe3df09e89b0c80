"""Folders of models whose files are not what they say, as people have them."""

import json
import shutil

import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gem_ds.attention import hf_config
from gem_ds.errors import InputError
from gem_ds.model import base_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    tiny_model(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def load(folder):
    config = base_model.read_config(folder)
    notes = base_model.check_files(folder, config)
    return base_model.load(folder, torch.float32, config), notes


def refused(folder, message):
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_whole_base_is_loaded_as_stock_transformers_does(folder):
    lm, notes = load(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert notes == []
    assert all(torch.equal(tensor, stock[name]) for name, tensor in lm.state_dict().items())


@pytest.mark.parametrize(
    "lost", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
)
@pytest.mark.parametrize("pickled", [False, True])
def test_a_base_that_lacks_a_tensor_is_refused_by_its_name(folder, lost, pickled):
    rewrite(folder, lambda tensors: tensors.pop(lost))
    if pickled:
        pickle(folder)
    refused(folder, rf"lacks {lost} of LlamaForCausalLM.*")


def test_an_expert_that_is_missing_is_named(tmp_path):
    folder = tmp_path / "base"
    tiny_model("mixtral", tie_word_embeddings=False).save_pretrained(folder)
    load(folder)
    lost = next(name for name in load_file(folder / WEIGHTS) if "experts.2" in name)
    rewrite(folder, lambda tensors: tensors.pop(lost))
    refused(folder, f"lacks {lost}, so it cannot be trained from")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(folder, value, dtype):
    """In rows and layers that are not tried, too."""
    lost = "model.layers.1.mlp.down_proj.weight", "lm_head.weight"
    config = base_model.read_config(folder)
    base_model.load(folder, dtype, config)
    for name in lost:
        rewrite(folder, lambda tensors, name=name: tensors[name][-1, -1:].fill_(value))
    with pytest.raises(InputError, match=rf"not finite .* in {lost[1]}, {lost[0]}; get it again"):
        base_model.load(folder, dtype, config)


def test_a_bare_body_has_no_head(folder):
    def bare(tensors):
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(folder, bare)
    refused(folder, "lacks lm_head.weight of .*tie_word_embeddings")
    change(folder, tie_word_embeddings=True)
    lm, _ = load(folder)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_tensors_of_another_shape_and_surplus_ones_are_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(2, 32)}))
    _, notes = load(folder)
    assert notes == [f"{folder} has tensors that are not used: score.weight"]
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}))
    refused(folder, r"has model.norm.weight of shape \(5,\), and its config.json makes it \(32,\)")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_head_of_its_own_beside_a_tied_flag_is_kept(folder, pickled):
    change(folder, tie_word_embeddings=True)
    if pickled:
        pickle(folder)
    lm, notes = load(folder)
    assert "have a head that differs" in notes[0]
    assert not lm.config.tie_word_embeddings
    stock = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    assert torch.equal(lm.lm_head.weight, stock)
    assert not torch.equal(lm.lm_head.weight, lm.model.embed_tokens.weight)


def test_a_head_equal_to_a_tied_embedding_is_tied(folder):
    change(folder, tie_word_embeddings=True)

    def alike(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(folder, alike)
    lm, notes = load(folder)
    assert notes == []
    assert lm.config.tie_word_embeddings
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_a_quantized_base_is_refused(folder, method):
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    refused(folder, rf"is quantized \(quantization_config: {method}\).*take the unquantized model")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_of_eight_bits_are_refused_without_a_configuration_too(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(folder, rf"stores weights as \w+ \({name}\), so it is quantized")


def test_an_adapter_beside_or_instead_of_weights_is_refused(folder, tmp_path):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(folder, "has an adapter_config.json: .* merge that into its base first")
    (tmp_path / "adapter").mkdir()
    shutil.copy(folder / "adapter_config.json", tmp_path / "adapter")
    refused(tmp_path / "adapter", "has an adapter_config.json")


def test_damaged_files_are_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    refused(folder, rf"{WEIGHTS} is damaged")
    (folder / WEIGHTS).write_bytes(whole)
    pickle(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    refused(folder, "pytorch_model.bin cannot be read")
    (folder / "config.json").write_text('{"model_type": "llama"')
    refused(folder, "cannot read the model configuration of")
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')
    refused(folder, "cannot read the model configuration of")
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    refused(folder, "cannot read the model configuration of")


def test_an_index_that_names_a_file_that_is_not_there(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink()
    lm, notes = load(folder)
    assert notes == []
    assert len(set(base_model.tensor_files(folder).values())) > 1
    assert set(base_model.tensor_files(folder)) == set(lm.state_dict())
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    refused(folder, r"lacks model-00002-of-\d+.safetensors, which model.safetensors.index.json")


def test_other_kinds_of_models_are_refused(tmp_path):
    for name, config, message in [
        ("t5", {"model_type": "t5"}, "is an encoder-decoder"),
        ("clip", {"model_type": "clip"}, "cannot load the model|cannot read"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        refused(tmp_path / name, message)
    refused(tmp_path / "nowhere", "there is no folder .*nowhere")


def test_the_longest_document_is_one_whose_positions_do_not_depend_on_others():
    assert hf_config.longest_document(tiny_model().config) == 128
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    longrope = tiny_model(
        "phi3",
        original_max_position_embeddings=32,
        rope_scaling={"type": "longrope", **factors},
    ).config
    assert hf_config.longest_document(longrope) == 32
    assert "LongRoPE" in hf_config.why_no_longer(longrope)
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    assert hf_config.longest_document(tiny_model(rope_parameters=dynamic).config) == 128
    assert hf_config.why_no_longer(tiny_model().config) == "max_position_embeddings"
