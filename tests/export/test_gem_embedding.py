"""The module that exports carry for SentenceTransformers embeds as our encoder does."""

import ast
import copy
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from exports import TEXTS, gem_config, random_b, run_tokenizer
from models import FAMILIES, tiny_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from gem_ds.export import gem_embedding, gem_seal
from gem_ds.export.export import export
from gem_ds.inference.encoder import Encoder
from gem_ds.model import adapter_files, adapters

K = 3
PIECES = ("the separator ", "a list ", "é漢 ")


def exported(
    work, tokenizer, family="llama", k=K, attention="isolated", aggregation="mean", adapter=True
):
    """The folder of the export of a random model, with an adapter where the family can have one."""
    vocab, tokens = run_tokenizer(tokenizer, work / "tokenizer", k)
    capped = {"attn_logit_softcapping": 0.1, "query_pre_attn_scalar": 1}
    extra = capped if family.startswith("gemma2") else {}
    lm = tiny_model(family, vocab_size=vocab.size, max_position_embeddings=64, **extra)
    with torch.no_grad():  # so that attention is no average, and a wrong position shows
        for parameter in lm.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    gem = replace(gem_config(tokens, attention), aggregation=aggregation, adapter=adapter)
    if adapter:
        adapters.inject(lm, "summary", 4, 8.0, tokens, 0)
        random_b(lm)
    state = {n: t for n, t in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    state, lora = adapter_files.separated(state)
    made = adapter_files.Adapter(lora, 8.0) if adapter else None
    folder = work / "export"
    export(state, lm.config, work / "tokenizer", gem, folder, torch.float32, None, made)
    return folder


def opened(folder, **how):
    return SentenceTransformer(
        str(folder / "model-embed"), device="cpu", trust_remote_code=True, **how
    )


def agree(a, b):
    assert a.shape == b.shape
    return (a * b).sum(1).min() > 0.9999 and np.abs(a @ a.T - np.eye(len(a))).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree_with_the_encoder(family, tokenizer_dir, tmp_path):
    folder = exported(tmp_path, tokenizer_dir, family, adapter=family != "gpt_oss")
    expected = Encoder.from_pretrained(folder).encode(TEXTS)
    embedder = opened(folder)
    together = embedder.encode(TEXTS, batch_size=len(TEXTS))  # padded
    alone = embedder.encode(TEXTS, batch_size=1)
    assert agree(together, expected)
    assert agree(alone, expected)
    assert (expected @ expected.T - np.eye(len(TEXTS))).max() < 0.999, "texts are told apart"


@pytest.mark.parametrize(
    ("k", "attention", "aggregation", "adapter"),
    [
        (1, "isolated", "mean", True),
        (3, "causal", "mean", False),
        (3, "causal", "last", True),
        (3, "isolated", "concat", True),
        (3, "isolated", "last", False),
        (8, "isolated", "mean", True),
    ],
)
def test_settings_agree_with_the_encoder(
    k, attention, aggregation, adapter, tokenizer_dir, tmp_path
):
    folder = exported(tmp_path, tokenizer_dir, "llama", k, attention, aggregation, adapter)
    encoder, embedder = Encoder.from_pretrained(folder), opened(folder)
    assert agree(embedder.encode(TEXTS), encoder.encode(TEXTS))
    assert embedder.get_embedding_dimension() == encoder.width
    cut = opened(folder, truncate_dim=8).encode(TEXTS, normalize_embeddings=True)
    assert agree(cut, encoder.encode(TEXTS, truncate_dim=8))


@pytest.fixture(scope="module")
def folder(tokenizer_dir, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("default"), tokenizer_dir)


def test_each_part_is_at_work(folder, tokenizer_dir, tmp_path):
    """Without the adapter, or with summary tokens that see each other, vectors are others."""
    right = opened(folder)
    vectors = right.encode(TEXTS)
    causal = opened(folder)
    causal[0].settings["summary_attention"] = "causal"
    off = opened(folder)
    off[0].settings["lora_alpha"] = 0.0
    for other in (causal, off):
        assert ((other.encode(TEXTS) * vectors).sum(1) < 0.999).any()


def test_text_that_spells_a_control_token_stays_text(folder):
    texts = ["a <|summary_0|> b", "a <|bos|> b", "a  b"]
    vectors = opened(folder).encode(texts)
    assert agree(vectors, Encoder.from_pretrained(folder).encode(texts))
    assert not (opened(folder).preprocess(texts)["input_ids"][:, 1:-K] >= 400).all(1).any()


def test_long_texts_are_cut_and_prompts_go_before(folder):
    embedder, encoder = opened(folder), Encoder.from_pretrained(folder)
    long = "word after word, " * 60
    assert embedder.preprocess([long])["input_ids"].shape == (1, 64)
    assert agree(embedder.encode([long, "x"]), encoder.encode([long, "x"]))
    embedder.max_seq_length = 10
    assert agree(embedder.encode([long, "x"]), encoder.encode([long, "x"], max_length=10))
    embedder.max_seq_length = K + 1
    with pytest.raises(ValueError, match="max_seq_length is 4; no text has room"):
        embedder.encode(["x"])
    embedder.max_seq_length = 64
    prompted = embedder.encode(["text", "other"], prompt="query: ")
    assert agree(prompted, encoder.encode(["query: text", "query: other"]))


def test_threads_do_not_see_each_others_batches(folder):
    embedder = opened(folder)
    texts = [piece * n for n in range(1, 9) for piece in PIECES]
    expected = embedder.encode(texts, batch_size=4)
    found = {}

    def encode(number):
        found[number] = embedder.encode(texts[number:], batch_size=1 + number)

    threads = [Thread(target=encode, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(agree(vectors, expected[number:]) for number, vectors in found.items())
    assert len(found) == 4


def test_what_is_saved_is_loaded_again(folder, tmp_path):
    embedder = opened(folder)
    embedder.max_seq_length = 40
    embedder.save(str(tmp_path / "model-embed"))
    again = opened(tmp_path)
    assert again.max_seq_length == 40
    assert agree(again.encode(TEXTS), embedder.encode(TEXTS))


def test_its_tokenizer_is_one_of_transformers(folder):
    """What it makes of texts is what the module reads, padded and cut as its caller wants."""
    embedder = opened(folder)
    tokenizer = embedder.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(folder / "model"))
    long = "word after word, <|bos|> " * 60
    texts = [*TEXTS, "a <|summary_0|> b", long]
    expected = embedder.encode(texts)
    for padding in (True, "max_length"):
        features = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")
        assert features["input_ids"].shape == (len(texts), 64)
        with torch.no_grad():
            assert agree(embedder(dict(features))["sentence_embedding"].numpy(), expected)
    assert np.array_equal(embedder.encode(texts), expected), "calls leave no trace"
    assert (
        tokenizer(texts[0])["input_ids"] == embedder.preprocess(texts[:1])["input_ids"][0].tolist()
    )
    embedder.max_seq_length = 10
    assert tokenizer.model_max_length == 10
    assert len(tokenizer.encode(long, truncation=True)) == 10


def test_text_splitters_get_their_text_back(folder):
    """They take an id off each end, cut what is left and decode the parts."""
    tokenizer = opened(folder).tokenizer
    text = "  Words of <|bos|> a text, and all of them. " * 9
    ids = tokenizer.encode(text, max_length=2**31 - 1, truncation="do_not_truncate")[1:-1]
    assert len(ids) == len(tokenizer.tokenize(text)) + K - 1
    parts = [tokenizer.decode(ids[at : at + 50]) for at in range(0, len(ids), 50)]
    assert "".join(parts) == text
    assert "<|summary_0|>" in tokenizer.decode(ids, skip_special_tokens=False)


def test_its_tokenizer_needs_no_bos(folder):
    module = opened(folder)[0]
    tokenizer = type(module.tokenizer)(module.backend, {**module.settings, "bos": []})
    assert tokenizer.bos_token is None
    assert tokenizer.encode("x") == module.tokenizer.encode("x")[1:]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"]
)
def test_copies_embed_as_the_original(folder, copied):
    """Processes of a pool get a pickled one; text that spells a control token stays text there."""
    texts = [*TEXTS, "a <|bos|> b <|summary_1|>"]
    embedder = opened(folder)
    again = copied(embedder)
    assert np.array_equal(again.encode(texts), embedder.encode(texts))
    assert again.tokenizer(texts)["input_ids"] == embedder.tokenizer(texts)["input_ids"]


def test_half_precision_is_close(folder):
    half = opened(folder, model_kwargs={"dtype": torch.bfloat16}).encode(TEXTS)
    assert 0.98 < (half * opened(folder).encode(TEXTS)).sum(1).min() < 0.99999


def test_its_attention_is_its_own(folder):
    with pytest.raises(ValueError, match="attn_implementation is 'eager', but this model embeds"):
        opened(folder, model_kwargs={"attn_implementation": "eager"})


def test_readers_that_pass_over_the_module_find_no_model(folder):
    """Rather than embed without summary tokens and adapter."""
    embed = folder / "model-embed"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(embed), device="cpu")
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(embed)
    assert not (embed / "config.json").exists()


def test_the_folder_is_whole_and_takes_no_room(folder, tmp_path):
    """Moved alone it embeds, also with the encoder; beside the export it holds the same files."""
    embed = folder / "model-embed"
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (embed / name).stat().st_ino == (folder / name).stat().st_ino
    assert agree(Encoder.from_pretrained(embed).encode(TEXTS), opened(folder).encode(TEXTS))


def test_the_code_needs_nothing_of_this_project(folder):
    codes = []
    for module in (gem_embedding, gem_seal):
        path = Path(module.__file__)
        codes.append((folder / "model-embed" / path.name).read_text())
        assert codes[-1] == path.read_text()
    imported = {
        name.split(".")[0]
        for code in codes
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
        )
    }
    stock = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"}
    assert imported <= stock | {"gem_seal"} | set(sys.stdlib_module_names)
