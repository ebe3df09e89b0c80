"""Real DeepSpeed runs that train adapters beside a frozen base: gloo ranks, resuming, export."""

import dataclasses
import shutil

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from exports import TEXTS
from helpers import save_tokenizer
from runs import ROOT, bf16, fp32, llama_config, metrics, random_shards
from sentence_transformers import SentenceTransformer
from several_runs import several_runs
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.checkpoints.checkpoint import ROWS, find, load_weights, read_state
from gem_ds.errors import InputError
from gem_ds.export.export import export_run
from gem_ds.inference.encoder import Encoder
from gem_ds.model import adapter_files
from gem_ds.shards.manifest import Manifest
from gem_ds.training import engine_factory, validation
from gem_ds.training.config import TrainConfig

K = 2
# All weights trained, those of matrices in a group of their own.
ALL = {"adapter": "none", "weight_decay": 0.1, "steps": 1, "save_every": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a base, its shards and, after a launch on two ranks, of runs from it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tokenizer(folder / "base")
    random_shards(folder / "shards", base, n_rows=4, k=K, gem_share=0.8)
    llama_config(folder / "config", vocab_size=400)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder / "config", initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    fp32("zero3.json", folder, stage3_param_persistence_threshold=0)
    stages = {"zero2": ROOT / "ds_configs" / "zero2.json", "zero3": folder / "fp32-zero3.json"}
    several_runs(
        folder / "two",
        2,
        {
            "summary": flags(folder, rows_per_micro_batch=2),
            "everywhere": flags(folder, adapter="everywhere"),
            "zero2": flags(folder, deepspeed=ROOT / "ds_configs" / "zero2.json"),
            "zero3": flags(folder, deepspeed=bf16("zero3.json", folder)),
            "gradients": flags(folder, gradients=3, max_grad_norm=1e9),
            **{f"all-{n}": flags(folder, deepspeed=path, **ALL) for n, path in stages.items()},
        },
    )
    return folder


def flags(folder, **changed):
    return {
        "model": folder / "base",
        "shards": folder / "shards",
        "deepspeed": folder / "fp32-zero3.json",
        "adapter": "summary",
        "lora_rank": 3,
        "steps": 6,
        "save_every": 3,
        "rows_per_step": 4,
        "alpha_start": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "contrastive_learning_rate": 1e-2,
        **changed,
    }


@pytest.mark.parametrize("name", ["summary", "everywhere", "zero2", "zero3"])
def test_the_base_stays_bit_for_bit_and_the_adapters_learn(made, name):
    expected = AutoModelForCausalLM.from_pretrained(made / "base").state_dict()
    weights = {step: load_weights(find(made / "two" / name, step)) for step in (3, 6)}
    base, lora = map(dict, adapter_files.separated(weights[6]))
    trained = {**lora, ROWS: base.pop(ROWS)}
    assert base.keys() == expected.keys() - {"lm_head.weight"}
    for key, weight in base.items():
        kept = weight[:400] if key == "model.embed_tokens.weight" else weight
        assert torch.equal(kept, expected[key].to(weight.dtype)), key
    earlier = {**adapter_files.separated(weights[3])[1], ROWS: weights[3][ROWS]}
    for key, weight in trained.items():
        assert weight.dtype == torch.float32, key
        assert weight.abs().max() > 0, key
        assert not torch.equal(weight, earlier[key]), key
    assert trained[ROWS].shape == (K, 32)
    losses = [m["loss/ntp"] for m in metrics(made / "two" / name)]
    assert losses[-1] < losses[0] - 0.1, "every step has the same rows"


@pytest.mark.parametrize(
    "name", ["summary", "everywhere", "zero2", "zero3", "all-zero2", "all-zero3"]
)
def test_weights_read_one_by_one_are_those_that_deepspeed_gathers(made, name):
    checkpoint = find(made / "two" / name)
    gathered = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    expected = {n.removeprefix("lm."): tensor for n, tensor in gathered.items()}
    weights = load_weights(checkpoint)
    assert expected.keys() - weights.keys() == {"lm_head.weight", "log_scale"}
    for key, weight in weights.items():
        assert torch.equal(weight, expected[key]), key
        assert weight.dtype == expected[key].dtype, key


def test_the_frozen_weights_have_no_optimizer_state(made):
    """Of the base the checkpoint holds one copy, of what is trained fp32 and two moments."""
    checkpoint = find(made / "two" / "zero3")
    weights = load_weights(checkpoint)
    n_trained = 1 + sum(w.numel() for n, w in weights.items() if ".lora_" in n or n == ROWS)
    n_held = 0
    for path in checkpoint.glob("*_optim_states.pt"):
        state = torch.load(path, weights_only=False)["optimizer_state_dict"]
        flat = state["fp32_flat_groups"]
        n_held += sum(tensor.numel() for tensor in flat)
        moments = state["optimizer_state_dict"]["state"].values()
        assert sum(m["exp_avg"].numel() for m in moments) == sum(t.numel() for t in flat)
    n_tensors = sum(".lora_" in name for name in weights) + 2
    assert n_trained <= n_held <= n_trained + n_tensors, "one element of padding each at most"
    frozen = {w.dtype for n, w in weights.items() if ".lora_" not in n and n != ROWS}
    assert frozen == {torch.bfloat16}


def test_two_ranks_compute_what_one_does(made):
    setting = flags(made, gradients=3, max_grad_norm=1e9, rows_per_micro_batch=2)
    several_runs(made / "one", 1, {"gradients": setting})
    one, two = (torch.load(made / name / "gradients.pt") for name in ("one", "two"))
    for key in ("loss/ntp", "loss/contrastive", "train/grad_norm"):
        assert one["values"][key] == pytest.approx(two["values"][key], rel=1e-5), key
    assert one["values"]["loss/contrastive"] > 0.01
    assert one["grads"].keys() == two["grads"].keys()
    assert all(".lora_" in n or n in (ROWS, "log_scale") for n in one["grads"])
    for name, grad in one["grads"].items():
        error = (grad - two["grads"][name]).abs().max() / grad.abs().max().clamp_min(1e-20)
        assert error < 1e-5, (name, float(error))
        assert grad.abs().max() > 0 or ".lora_A." in name, name  # B is still zero


def test_a_resumed_run_continues_bit_for_bit(made):
    whole, cut = made / "two" / "summary", made / "cut" / "summary"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    (cut / "checkpoints" / "latest").write_text("step-00000003")
    several_runs(made / "cut", 2, {"summary": flags(made, rows_per_micro_batch=2, resume="auto")})
    a, b = (load_weights(find(run, 6)) for run in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    losses = [[m["loss/total"] for m in metrics(run)] for run in (whole, cut)]
    assert losses[0] == losses[1]
    assert read_state(find(cut))["adapter"] == ["summary", 3, 32.0]


def test_an_adapter_for_summary_tokens_is_exported_beside_its_base(made, tmp_path):
    run = made / "two" / "summary"
    export_run(run, None, tmp_path / "out", torch.float32)
    base = AutoModelForCausalLM.from_pretrained(made / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    rows = load_weights(find(run))[ROWS]
    assert torch.equal(loaded.get_input_embeddings().weight[400:402], rows)
    ids = torch.randint(400, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits[..., :400], base(ids).logits)
    on = Encoder.from_pretrained(tmp_path / "out").encode(TEXTS)
    embedder = SentenceTransformer(
        str(tmp_path / "out" / "model-embed"), device="cpu", trust_remote_code=True
    )
    assert (on * embedder.encode(TEXTS)).sum(1).min() > 0.9999
    off = Encoder(loaded.base_model, *_settings(tmp_path / "out")).encode(TEXTS)
    assert (on * off).sum(1).max() < 0.999


def _settings(folder):
    encoder = Encoder.from_pretrained(folder)
    return encoder.vocab, encoder.summary_tokens, encoder.summary_attention


def test_an_adapter_everywhere_is_exported_merged(made, tmp_path):
    run = made / "two" / "everywhere"
    export_run(run, None, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out" / "adapter").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").state_dict()
    weights = load_weights(find(run))
    name = "model.layers.1.mlp.down_proj"
    a, b = (weights[f"{name}.lora_{x}.default.weight"] for x in "AB")
    expected = weights[f"{name}.base_layer.weight"] + 32 / 3 * b @ a
    assert torch.allclose(loaded[f"{name}.weight"], expected, atol=1e-6)
    assert not torch.allclose(loaded[f"{name}.weight"], weights[f"{name}.base_layer.weight"])
    assert torch.equal(loaded["model.embed_tokens.weight"][400:402], weights[ROWS])
    assert Encoder.from_pretrained(tmp_path / "out").encode(TEXTS).shape == (len(TEXTS), 32)


def test_what_adapters_cannot_do_is_refused(made):
    config = TrainConfig(
        **{n: str(v) if n in ("model", "shards") else v for n, v in flags(made).items()}, output="o"
    )
    manifest = Manifest.load(made / "shards")
    none = dataclasses.replace(manifest, summary_tokens=[])
    validation.check_objective(config, manifest)
    with pytest.raises(InputError, match="has no summary tokens, which --adapter summary is to"):
        validation.check_objective(dataclasses.replace(config, alpha=0.0), none)
    plain = dataclasses.replace(manifest, counts={"documents": {"plain": 9, "continuation": 0}})
    validation.check_objective(dataclasses.replace(config, positives="crops"), plain)
    with pytest.raises(InputError, match=r"only plain documents and alpha is 0.*--alpha 1"):
        validation.check_objective(dataclasses.replace(config, alpha=0.0), plain)
    with pytest.raises(InputError, match=r"ZeRO stage below 2.*--adapter summary freezes"):
        engine_factory.build_engine(config, {"zero_optimization": {"stage": 1}}, manifest, None)
