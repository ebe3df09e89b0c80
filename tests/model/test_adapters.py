"""Adapters act at summary tokens and nowhere else, whatever the family and the order of passes."""

import json
from pathlib import Path

import pytest
import torch
from exports import TEXTS, export_adapter, random_b
from layouts import bounds_from
from models import DENSE, MIXED, hidden_states, tiny_model
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from gem_ds import layout
from gem_ds.attention.registry import attach, choose, make_plan
from gem_ds.errors import InputError
from gem_ds.export.gem_config import read_gem_config
from gem_ds.inference.encoder import Encoder
from gem_ds.layout import END
from gem_ds.model import adapter_files, adapters, language_model

SUMMARY = 63  # the token of tiny models that stands for a summary


def adapted(family="llama", mode="summary", seed=0, dtype=torch.float32):
    lm = tiny_model(family).to(dtype)
    attach(lm)
    adapters.inject(lm, mode, 4, 8.0, [SUMMARY], seed)
    random_b(lm)
    return lm


def stream_of(bounds_D4, seed=1):
    n = int(bounds_D4[-1, END])
    ids = torch.randint(60, (n,), generator=torch.Generator().manual_seed(seed))
    ids[layout.summary_index(bounds_D4).flatten()] = SUMMARY
    return ids


def backend_of(lm):
    return choose("auto", lm, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family", DENSE)
def test_a_token_before_the_summary_is_computed_as_in_the_base(family):
    base, lm = tiny_model(family), adapted(family)
    attach(base)
    ids, backend = stream_of(MIXED), backend_of(lm)
    n_linear = sum(isinstance(m, nn.Linear) for m in base.modules()) - 1  # all but the head
    assert sum("lora_A" in name for name, _ in lm.named_parameters()) == n_linear
    with torch.no_grad():
        expected = hidden_states(base, ids, MIXED, backend)
    hidden = hidden_states(lm, ids, MIXED, backend)
    same = [torch.equal(a, b) for a, b in zip(hidden, expected, strict=True)]
    documents = [(7, 1, 6), (9, 0, 0), (4, 1, 0), (1, 1, 5)]
    prefix_alone = [s for m, k, n in documents for s in [True] * m + [False] * (k + n)]
    assert same == prefix_alone
    # The suffix reads the summary, so its loss trains the adapters, of all layers.
    hidden[8:14].square().sum().backward()
    for name, parameter in lm.named_parameters():
        if ".lora_B." in name and ".layers.1." not in name:
            assert parameter.grad.abs().max() > 0, name
        assert parameter.requires_grad == (".lora_" in name), name


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3_text", "gpt_neox"])
def test_the_rows_beside_an_embedding_stand_for_its_own(family):
    lm = adapted(family)
    ids, backend = stream_of(MIXED), backend_of(lm)
    rows = language_model.summary_rows(lm, [SUMMARY])
    index = make_plan(MIXED, backend).summary_index
    with torch.no_grad():
        embedded = rows(lm.get_input_embeddings(), ids[None], index)
        expected = hidden_states(lm, ids, MIXED, backend)
        assert torch.equal(hidden_states(lm, ids, MIXED, backend, inputs_embeds=embedded), expected)
        rows.weight.mul_(2)
        other = rows(lm.get_input_embeddings(), ids[None], index)
    changed = (other != embedded).any(-1)[0].nonzero().flatten()
    assert changed.tolist() == index.flatten().tolist()


def test_without_summary_tokens_nothing_is_added_and_every_module_runs():
    plain = bounds_from([(9, 0, 0), (4, 0, 0)])
    base, lm = tiny_model(), adapted()
    attach(base)
    ids = stream_of(plain)
    rows = language_model.summary_rows(lm, [SUMMARY])
    embedded = rows(lm.get_input_embeddings(), ids[None], make_plan(plain, "sdpa").summary_index)
    hidden = hidden_states(lm, ids, plain, inputs_embeds=embedded)
    assert torch.equal(hidden, hidden_states(base, ids, plain))
    hidden.sum().backward()
    trained = [p for p in (*lm.parameters(), *rows.parameters()) if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def gradients(lm, streams, interleaved):
    """Of the sum over streams; interleaved, all passes forward come before all passes back."""
    lm.zero_grad()
    losses = []
    for ids, bounds_D4 in streams:
        losses.append(hidden_states(lm, ids, bounds_D4).square().sum())
        if not interleaved:
            losses.pop().backward()
    for loss in losses:
        loss.backward()
    return {n: p.grad.clone() for n, p in lm.named_parameters() if p.requires_grad}


def test_recomputed_layers_see_the_positions_of_their_own_micro_batch():
    layouts = [MIXED, bounds_from([(3, 1, 4), (8, 1, 18)]), bounds_from([(35, 0, 0)])]
    assert len({int(bounds[-1, END]) for bounds in layouts}) == 1, "sizes must not tell them apart"
    streams = [(stream_of(bounds, seed), bounds) for seed, bounds in enumerate(layouts)]
    lm = adapted()
    expected = gradients(lm, streams, interleaved=False)
    lm.train()
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(lm, streams, interleaved=True)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


def test_adapters_are_a_function_of_the_seed_in_the_bases_dtype():
    made = [adapted(seed=seed, dtype=torch.bfloat16).state_dict() for seed in (0, 0, 1)]
    a = [name for name in made[0] if "lora_A" in name]
    assert all(torch.equal(made[0][name], made[1][name]) for name in a)
    assert not any(torch.equal(made[0][name], made[2][name]) for name in a)
    assert {tensor.dtype for tensor in made[0].values()} == {torch.bfloat16}
    lm = tiny_model()
    adapters.inject(lm, "summary", 4, 8.0, [SUMMARY], 0)
    fresh = [p for name, p in lm.named_parameters() if "lora_B" in name]
    assert fresh
    assert not any(p.any() for p in fresh)  # untrained, they change nothing


def test_only_what_is_trained_goes_to_the_optimizer():
    lm = adapted()
    gem = language_model.TrainingModel(lm, summary_rows=language_model.summary_rows(lm, [SUMMARY]))
    names = {id(p): name for name, p in gem.named_parameters()}
    decayed, others = (
        {names[id(p)] for p in group["params"]}
        for group in language_model.parameter_groups(gem, 0.1)
    )
    assert others == {"summary_rows.weight", "log_scale"}
    assert decayed == {name for name in names.values() if ".lora_" in name}


def test_everywhere_is_pefts_own_lora_and_merges_as_peft_does():
    lm = adapted(mode="everywhere")
    ids = stream_of(MIXED)
    hidden = hidden_states(lm, ids, MIXED)
    merged = adapter_files.merged(lm.state_dict(), alpha=8.0)
    plain = tiny_model()
    attach(plain)
    assert not torch.allclose(hidden_states(plain, ids, MIXED), hidden, atol=1e-2)
    plain.load_state_dict(merged)
    assert torch.allclose(hidden_states(plain, ids, MIXED), hidden, atol=1e-5)
    config = adapter_files.lora_config(["q_proj", "down_proj"], 4, 8.0, None)
    peft = get_peft_model(tiny_model(), config)
    random_b(peft)
    ours = dict(adapter_files.merged(peft.get_base_model().state_dict(), alpha=8.0))
    for name, tensor in peft.merge_and_unload().state_dict().items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name


def test_what_cannot_be_switched_by_position_is_refused_by_name():
    with pytest.raises(InputError, match=r"'gpt_oss' has weights .*mlp\.router\.weight.*--adapter"):
        adapters.inject(tiny_model("gpt_oss"), "summary", 4, 8.0, [SUMMARY], 0)
    lm = adapted()
    hidden_states(lm, stream_of(MIXED), MIXED)
    linear = lm.model.layers[0].mlp.up_proj
    for shape in ((35, 32), (5, 7, 32), (1, 34, 32)):
        with pytest.raises(InputError, match="'llama' calls a linear layer on a tensor of shape"):
            linear(torch.zeros(shape))


@pytest.fixture(scope="module", params=["llama", "llama-tied", "gemma3"])
def exported(request, tokenizer_dir, tmp_path_factory):
    """(the base, whose vocabulary had to grow, the folder of its export with an adapter)."""
    return export_adapter(tokenizer_dir, tmp_path_factory.mktemp(request.param), request.param)


def test_text_without_summary_tokens_has_the_bases_logits_bit_for_bit(exported):
    base, folder = exported
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = torch.randint(400, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        logits, expected = loaded(ids).logits, base(ids).logits
    assert logits.shape[-1] == 448 > expected.shape[-1] == 400
    assert torch.equal(logits[..., :400], expected)


def test_the_encoder_agrees_with_stock_peft(exported):
    _, folder = exported
    lm = AutoModelForCausalLM.from_pretrained(folder / "model")
    stock = PeftModel.from_pretrained(lm, str(folder / "adapter"))
    encoder = Encoder.from_pretrained(folder)
    again = Encoder.from_pretrained(folder / "model").encode(TEXTS)
    vectors = encoder.encode(TEXTS)
    assert (vectors == again).all()
    off = []
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor(encoder._read([text], None, "", "cut").documents[0].astype("int64"))[
            None
        ]
        with torch.inference_mode():
            on = stock(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            with stock.disable_adapter():
                off.append(stock(ids, output_hidden_states=True).hidden_states[-1][0, -1])
        assert vector @ (on / on.norm()).numpy() > 0.99999
    assert torch.nn.functional.cosine_similarity(on, off[-1], dim=0) < 0.99  # it does something


def test_the_folder_says_how_to_embed(exported):
    _, folder = exported
    names = ["README.md", "adapter", "model", "model-embed"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "an adapter (LoRA) is on at summary tokens alone" in (folder / "README.md").read_text()
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] == [400]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8.0, "CAUSAL_LM")
    assert read_gem_config(folder / "model").adapter


def test_an_export_without_its_adapter_is_refused_and_an_older_one_is_read(
    exported, tmp_path: Path
):
    _, folder = exported
    (tmp_path / "model").symlink_to(folder / "model")
    with pytest.raises(
        InputError, match=r"adapter/adapter_model\.safetensors is missing; copy the"
    ):
        Encoder.from_pretrained(tmp_path)
    told = json.loads((folder / "model" / "gem_config.json").read_text())
    del told["adapter"]
    (tmp_path / "gem_config.json").write_text(json.dumps(told))
    assert not read_gem_config(tmp_path).adapter
