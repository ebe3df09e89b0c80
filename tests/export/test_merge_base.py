"""Averaging towards the base: exact values, rows that the base lacks, refusals, a real run."""

import json
import re
import subprocess
import sys

import pytest
import torch
from exports import SIZES, run_tokenizer, tiny
from helpers import save_tokenizer
from runs import ROOT, llama_config, random_base, random_shards, train
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from gem_ds.checkpoints.checkpoint import find, load_weights
from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.export import merge_base
from gem_ds.export.export import export_run
from gem_ds.export.gem_config import read_gem_config

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def base_folder(folder, tokenizer_dir, family="llama", rows=400, **how):
    """(a random base of 400 tokens and `rows` embedding rows, its folder)."""
    lm = tiny(family, rows, seed=1)
    lm.save_pretrained(folder, **how)
    for file in tokenizer_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return lm, folder


def weights_of(lm):
    return {n: t.clone() for n, t in lm.state_dict().items() if n not in lm.all_tied_weights_keys}


@pytest.mark.parametrize(
    ("family", "rows", "how"),
    [("llama", 400, {}), ("llama-tied", 448, {}), ("qwen3", 400, {"max_shard_size": "20KB"})],
)
def test_each_weight_is_the_average_but_rows_that_the_base_did_not_train(
    tokenizer_dir, tmp_path, family, rows, how
):
    """Whether the base has no rows for the new tokens, or only untrained ones."""
    vocab, _ = run_tokenizer(tokenizer_dir, tmp_path / "tok", k=2)
    before, folder = base_folder(tmp_path / "base", tokenizer_dir, family, rows, **how)
    assert len(list(folder.glob("*.safetensors"))) > 1 or not how
    lm = tiny(family, 448)
    weights, expected = weights_of(lm), weights_of(lm)
    base = before.state_dict()
    for name, tensor in expected.items():
        n = 400 if name in EMBEDDINGS else len(tensor)
        tensor[:n] = 0.7 * tensor[:n] + 0.3 * base[name][:n]
    weights = merge_base.merge(weights, merge_base.open_base(str(folder), lm.config, vocab), 0.3)
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=1e-6, atol=1e-7), name
        assert not torch.allclose(weights[name], lm.state_dict()[name], rtol=1e-2), name
    kept = lm.state_dict()["model.embed_tokens.weight"][400:]
    assert torch.equal(weights["model.embed_tokens.weight"][400:], kept)


def test_the_ends_are_the_models_themselves(tokenizer_dir, tmp_path):
    vocab, _ = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    before, folder = base_folder(tmp_path / "base", tokenizer_dir)
    lm = tiny("llama", 448)
    for share, wanted in ((0.0, lm), (1.0, before)):
        weights = weights_of(lm)
        weights = merge_base.merge(
            weights, merge_base.open_base(str(folder), lm.config, vocab), share
        )
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(weights[name][: 400 if name in EMBEDDINGS else None], tensor[:400])


def test_a_base_in_bf16_is_averaged_in_fp32(tokenizer_dir, tmp_path):
    vocab, _ = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    before, folder = base_folder(tmp_path / "base", tokenizer_dir)
    path = folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(path).items()}, path, {"format": "pt"})
    lm = tiny("llama", 448)
    weights = weights_of(lm)
    weights = merge_base.merge(weights, merge_base.open_base(str(folder), lm.config, vocab), 0.3)
    name = "model.norm.weight"
    expected = 0.7 * lm.state_dict()[name] + 0.3 * before.state_dict()[name].bfloat16().float()
    assert torch.allclose(weights[name], expected, rtol=1e-6)


def test_of_a_base_that_knows_the_summary_tokens_every_row_counts(tokenizer_dir, tmp_path):
    vocab, _ = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    before, folder = base_folder(tmp_path / "base", tmp_path / "tok", rows=448)
    lm = tiny("llama", 448)
    weights = weights_of(lm)
    weights = merge_base.merge(weights, merge_base.open_base(str(folder), lm.config, vocab), 1.0)
    assert torch.equal(weights["lm_head.weight"], before.lm_head.weight)


def test_another_base_is_refused(tokenizer_dir, tmp_path):
    vocab, _ = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    _, folder = base_folder(tmp_path / "base", tokenizer_dir)

    def refuses(message, config=None, base=folder, of=vocab):
        config = config or tiny("llama", 448).config
        with pytest.raises(InputError, match=message):
            merge_base.open_base(str(base), config, of)

    wide = LlamaConfig(**{**SIZES, "intermediate_size": 96}, vocab_size=448)
    refuses(r"is not this model's base: model\.layers\.0\.mlp.* there and .*--base", wide)
    refuses(r"embed_tokens\.weight is \(400, 32\) there and \(384", tiny("llama", 384).config)
    deep = LlamaConfig(**{**SIZES, "num_hidden_layers": 3}, vocab_size=448)
    refuses(r"has no tensor model\.layers\.2\..*--base", deep)
    other = tokenization.load(save_tokenizer(tmp_path / "other", vocab_size=350))
    refuses("has another tokenizer", of=other)
    (folder / "model.safetensors").unlink()
    refuses(r"has no model\.safetensors; .* save_pretrained")
    refuses("there is no folder", base=tmp_path / "moved")


@pytest.fixture(scope="module")
def run(tokenizer_dir, tmp_path_factory):
    """A run from a base, which has moved since."""
    folder = tmp_path_factory.mktemp("merge")
    random_shards(folder / "shards", tokenizer_dir, n_rows=4)
    base = random_base(folder / "base", llama_config(folder / "config"), tokenizer_dir)
    flags = {"model": base, "shards": folder / "shards", "output": folder / "run", "steps": 2}
    flags |= {"rows-per-step": 2, "warmup-steps": 0, "learning-rate": 0.01}
    flags |= {"recipe": "keep", "kl-to-base": 0}
    train(*(part for name, value in flags.items() for part in (f"--{name}", value)))
    base.rename(folder / "moved")
    return folder


def test_a_run_is_exported_with_a_share_of_its_moved_base(run, tmp_path):
    output = tmp_path / "out"
    line = [sys.executable, ROOT / "launch/export.py", "--run", run / "run", "--output", output]
    line += ["--merge-base", "0.3", "--dtype", "float32"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"^error: there is no folder .*base", done.stderr, re.MULTILINE)
    scores = tmp_path / "scores.json"
    scores.write_text('{"STS": 12.5}')
    line += ["--base", run / "moved", "--shard-gb", "2e-5", "--scores", scores]
    subprocess.run([*map(str, line)], check=True, capture_output=True)
    assert len(list((output / "model").glob("model-*-of-*.safetensors"))) > 3
    card = (output / "README.md").read_text()
    for part in ("| STS | 12.5 |", "| recipe | keep |", "base averaged in | 0.3 |", "tokens seen"):
        assert part in card
    assert read_gem_config(output / "model").base_share == 0.3
    trained = load_weights(find(run / "run"))
    base = AutoModelForCausalLM.from_pretrained(run / "moved").state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(output / "model").state_dict()
    for name, tensor in trained.items():
        n = 400 if name in EMBEDDINGS else len(tensor)
        assert not torch.equal(tensor[:n], base[name][:n]), "training moved it"
        average = 0.7 * tensor[:n] + 0.3 * base[name][:n]
        assert torch.allclose(loaded[name][:n], average, rtol=1e-6, atol=1e-8), name
        assert torch.equal(loaded[name][n:], tensor[n:]), name

    text = "Split the string."
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    ids = torch.tensor([[*tokenizer(text)["input_ids"], 400]])
    with torch.inference_mode():
        last = AutoModel.from_pretrained(output / "model")(ids).last_hidden_state[0, -1]
    embedder = SentenceTransformer(str(output / "model-embed"), device="cpu")
    vector = torch.from_numpy(embedder.encode([text])[0])
    assert torch.allclose(vector, last / last.norm(), atol=1e-6)


def test_what_makes_no_sense_is_refused_before_anything_is_read(run, tmp_path):
    def refuses(message, *args):
        with pytest.raises(InputError, match=message):
            export_run(run / "run", None, tmp_path / "never", torch.float32, *args)
        assert not (tmp_path / "never").exists()

    for share in (-0.1, 1.1, float("nan")):
        refuses(rf"--merge-base {share} is no share; give one from 0 to 1", share)
    refuses("is only read with --merge-base", 0.0, str(run / "moved"))
    told = json.loads((run / "run" / "run.json").read_text())
    scratch = {**told, "config": {**told["config"], "model": None, "config": "c"}}
    (run / "run" / "run.json").write_text(json.dumps(scratch))
    try:
        refuses("trained from scratch, so it has no base; drop --merge-base", 0.3)
    finally:
        (run / "run" / "run.json").write_text(json.dumps(told))


def test_files_of_exports_before_there_was_a_share_are_read(tmp_path):
    old = {"summary_tokens": [400], "summary_attention": "isolated", "base": "b", "step": 1}
    (tmp_path / "gem_config.json").write_text(json.dumps({**old, "manifest": "f00"}))
    assert read_gem_config(tmp_path).base_share == 0
