"""What is exported loads in stock libraries and computes what was trained.

Refusals: test_export_refusals.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import TEXTS, export_tiny, gem_config
from runs import ROOT, llama_config, random_shards
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from several_runs import several_runs
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from gem_ds.checkpoints.checkpoint import load_weights
from gem_ds.errors import InputError
from gem_ds.export import export, sentence_transformers_folder
from gem_ds.export.gem_config import read_gem_config
from gem_ds.inference.encoder import Encoder

FAMILIES = ["llama", "llama-tied", "qwen3", "gemma3"]
IDS = torch.randint(0, 400, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(
    tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, Path]]:
    return {
        family: export_tiny(tokenizer_dir, tmp_path_factory.mktemp(family), family)
        for family in FAMILIES
    }


def _logits(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return lm(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_gives_the_trained_logits(exported: Any, family: str) -> None:
    lm, folder = exported[family]
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert loaded.dtype == torch.float32
    assert torch.equal(_logits(loaded, IDS), _logits(lm, IDS))
    assert loaded.config.architectures == [type(lm).__name__]
    assert loaded.config.use_cache


def test_bf16_export_is_the_rounded_weights(tokenizer_dir: Path, tmp_path: Path) -> None:
    lm, folder = export_tiny(tokenizer_dir, tmp_path, dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert loaded.dtype == torch.bfloat16
    rounded = {name: tensor.bfloat16() for name, tensor in lm.state_dict().items()}
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == dict.fromkeys(
        rounded, torch.bfloat16
    )
    assert all(torch.equal(rounded[name], tensor) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_written_once(exported: Any, family: str) -> None:
    lm, folder = exported[family]
    with safe_open(folder / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(lm.state_dict()) - set(lm.all_tied_weights_keys)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == (family in ("llama-tied", "gemma3"))


def test_generation_never_emits_a_summary_or_a_filling_token(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    base = {"max_new_tokens": 12, "eos_token_id": 1, "suppress_tokens": [7]}
    _, folder = export_tiny(tokenizer_dir, tmp_path, generation=base)
    written = json.loads((folder / "model" / "generation_config.json").read_text())
    assert written == {
        "max_new_tokens": 12,
        "eos_token_id": 1,
        "suppress_tokens": [7, *range(400, 406)],
    }
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():  # make those tokens the likeliest by far
        loaded.lm_head.weight[400:] = 50 * torch.randn(6, 32)
    torch.manual_seed(0)
    ids = loaded.generate(torch.tensor([[0, 5, 9]] * 8), do_sample=True)
    assert ids.shape == (8, 15)
    assert ids[:, 3:].max() < 400
    assert 7 not in ids[:, 3:]
    free = loaded.generate(torch.tensor([[0, 5, 9]] * 8), do_sample=True, suppress_tokens=None)
    assert free[:, 3:].max() >= 400  # the test is not vacuous


def test_without_a_generation_config_the_models_own_is_written(exported: Any) -> None:
    _, folder = exported["llama"]
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model").generation_config
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 1)
    assert loaded.suppress_tokens == list(range(400, 406))


def test_model_tokenizer_is_the_bases(exported: Any, tokenizer_dir: Path) -> None:
    _, folder = exported["llama"]
    base = AutoTokenizer.from_pretrained(tokenizer_dir)
    loaded = AutoTokenizer.from_pretrained(folder / "model")
    assert loaded(TEXTS)["input_ids"] == base(TEXTS)["input_ids"]
    assert loaded("a", "b")["input_ids"] == base("a", "b")["input_ids"]
    assert len(loaded) == len(base) + 1
    assert loaded.convert_tokens_to_ids("<|summary_0|>") == 400


def test_gem_config_comes_back(exported: Any) -> None:
    _, folder = exported["llama"]
    found = read_gem_config(folder / "model")
    assert len(found.fingerprint) == 64
    assert replace(found, fingerprint="", sealed=False) == gem_config((400,), "isolated")
    with pytest.raises(InputError, match=r"model-embed has no gem_config\.json"):
        read_gem_config(folder / "model-embed")


def _by_hand(model_folder: Path, texts: list[str]) -> np.ndarray:
    """Plain Transformers: text by text, the summary token's id appended, its last state."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    backbone = AutoModel.from_pretrained(model_folder)
    vectors = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], 400]])
        with torch.inference_mode():
            vectors.append(backbone(ids).last_hidden_state[0, -1])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_sentence_transformers_equals_plain_transformers(
    exported: Any, family: str, side: str
) -> None:
    _, folder = exported[family]
    st = SentenceTransformer(str(folder / "model-embed"), device="cpu")
    assert st.tokenizer.padding_side == "right"
    st.tokenizer.padding_side = side
    vectors = st.encode(TEXTS, batch_size=len(TEXTS))
    cosines = (vectors * _by_hand(folder / "model", TEXTS)).sum(1)
    assert cosines.min() > 0.9999
    assert np.abs(vectors[0] @ vectors[1:].T).max() < 0.999  # the texts are told apart


def test_sentence_transformers_settings(exported: Any) -> None:
    _, folder = exported["llama"]
    st = SentenceTransformer(str(folder / "model-embed"), device="cpu")
    assert st.max_seq_length == 64
    assert st.similarity_fn_name == "cosine"
    long = st.tokenize(["word " * 500])["input_ids"]
    assert long.shape == (1, 64)
    assert long[0, -1] == 400  # cut texts keep their summary token


def test_a_tokenizer_without_bos_or_pad(tokenizer_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tokenizer = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>"}
    settings |= {"chat_template": "{{ messages }}"}
    settings |= {"padding_side": "left", "truncation_side": "left"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    _, folder = export_tiny(base, tmp_path)
    st = SentenceTransformer(str(folder / "model-embed"), device="cpu")
    assert st.tokenize(["x"])["input_ids"][0].tolist()[1:] == [400]
    assert st.tokenizer.chat_template is None
    assert st.tokenizer.padding_side == "right"
    assert st.tokenize(["x" + " word" * 500])["input_ids"][
        0, 0
    ] == st.tokenizer.convert_tokens_to_ids("x")
    texts = [text for text in TEXTS if text]
    cosines = (st.encode(texts) * _by_hand(folder / "model", texts)).sum(1)
    assert cosines.min() > 0.9999
    generating = AutoTokenizer.from_pretrained(folder / "model")
    assert generating.chat_template == "{{ messages }}"
    assert generating.pad_token is None


def test_the_two_folders_share_their_weights(exported: Any) -> None:
    _, folder = exported["llama"]
    model, embed = (folder / name / "model.safetensors" for name in ("model", "model-embed"))
    assert os.stat(model).st_ino == os.stat(embed).st_ino


def test_sharded_weights_are_shared_whole(tokenizer_dir: Path, tmp_path: Path) -> None:
    lm, folder = export_tiny(tokenizer_dir, tmp_path, shard_gb=2e-5)
    shards = sorted(path.name for path in (folder / "model-embed").glob("*.safetensors"))
    for name in shards:
        with safe_open(folder / "model" / name, "pt") as file:
            sizes = [file.get_tensor(key).nbytes for key in list(file.keys())]
        assert sum(sizes) <= 20_000 or len(sizes) == 1, "a tensor is never cut"
    assert len(shards) > 3
    index = json.loads((folder / "model" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in lm.parameters())
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model-embed")
    assert torch.equal(_logits(loaded, IDS), _logits(lm, IDS))
    for size in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=f"--shard-gb {size} is no size"):
            export_tiny(tokenizer_dir, tmp_path / "never", shard_gb=size)


def test_without_hard_links_the_weights_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("weights")
    sentence_transformers_folder.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "weights"


def test_causal_summary_tokens_of_which_the_last_counts_need_no_code(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, k=3, attention="causal", aggregation="last")
    assert not list((folder / "model-embed").glob("*.py"))
    st = SentenceTransformer(str(folder / "model-embed"), device="cpu")
    assert st.tokenize(["x"])["input_ids"][0, -3:].tolist() == [400, 401, 402]
    long = st.tokenize(["word " * 500])["input_ids"][0]
    assert (len(long), long[-3:].tolist()) == (64, [400, 401, 402])
    vectors = Encoder.from_pretrained(folder).encode(TEXTS)
    assert (st.encode(TEXTS) * vectors).sum(1).min() > 0.9999


def test_without_summary_tokens_the_model_only_generates(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, k=0)
    names = ["README.md", "model", "model-embed.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "without summary tokens" in (folder / "model-embed.txt").read_text()
    assert AutoModelForCausalLM.from_pretrained(folder / "model").generate(
        IDS, max_new_tokens=3
    ).shape == (2, 23)


def test_a_real_run_is_exported_by_step(tokenizer_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shards = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=4)
    config = llama_config(tmp_path / "config")
    flags: dict[str, Any] = {"config": config, "shards": shards, "steps": 2}
    flags |= {
        "deepspeed": ROOT / "ds_configs" / "zero3.json",
        "rows_per_step": 2,
        "save_every": 1,
        "alpha_start": 1,
    }
    several_runs(tmp_path, 1, {"run": flags})
    exported = {}
    for asked, step in ((None, 2), (1, 1)):
        output = tmp_path / f"out-{step}"
        checkpoint = export.export_run(run, asked, output, torch.float32)
        exported[step] = AutoModelForCausalLM.from_pretrained(output / "model")
        gem = read_gem_config(output / "model")
        assert (gem.summary_tokens, gem.step, gem.base) == ((400,), step, config.name)
        assert len(gem.base_digest) == 64
        weights = load_weights(checkpoint)
        loaded = exported[step].state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights.items())
        assert loaded.keys() - weights.keys() == {"lm_head.weight"}
    assert not torch.equal(_logits(exported[1], IDS), _logits(exported[2], IDS))
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        export.export_run(run, 7, tmp_path / "out", torch.float32)
    with pytest.raises(InputError, match="step-00000001, which is exported"):
        export.export_run(run, 1, run / "checkpoints/step-00000001/out", torch.float32)
    path = run / "tokenizer" / "tokenizer.json"
    told = json.loads(path.read_text())
    one, other = list(told["model"]["vocab"])[100:102]
    vocab = told["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match="is not the tokenizer that the run was trained with"):
        export.export_run(run, 1, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()
