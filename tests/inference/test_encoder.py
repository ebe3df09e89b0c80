"""Embeddings are those of plain Transformers, whatever the batch, the order and the text."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import TEXTS, export_tiny, run_tokenizer, tiny, unseal
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from gem_ds import layout
from gem_ds.attention import masks
from gem_ds.errors import InputError
from gem_ds.inference.encoder import Encoder, batches, stream


@pytest.fixture(scope="module", params=["llama", "llama-tied", "qwen3"])
def exported(
    request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_tiny(tokenizer_dir, tmp_path_factory.mktemp("export"), request.param)[1]


@pytest.fixture(scope="module")
def llama(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tokenizer_dir, tmp_path_factory.mktemp("llama"))[1]


@pytest.mark.parametrize("lengths", [[3, 9, 1, 9, 4, 12, 2], [1], [50], [7] * 5])
def test_batches_hold_every_document_once_and_fit(lengths: list[int]) -> None:
    found = list(batches(lengths, 13))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert sum(lengths[i] for i in batch) <= 13 or len(batch) == 1
    in_order = [lengths[i] for batch in found for i in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_stream_lays_documents_out_one_after_another() -> None:
    documents = [np.array(ids, dtype=np.int32) for ids in ([5, 6, 7, 90, 91], [8, 90, 91])]
    arguments, bounds_D4 = stream(documents, n_summary=2)
    assert bounds_D4.tolist() == [[0, 3, 5, 5], [5, 6, 8, 8]]
    layout.check(bounds_D4, 8, 2)
    assert arguments["input_ids"].tolist() == [[5, 6, 7, 90, 91, 8, 90, 91]]
    assert arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]


def test_equals_plain_transformers_and_sentence_transformers(exported: Path) -> None:
    vectors = Encoder.from_pretrained(exported).encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    backbone = AutoModel.from_pretrained(exported / "model")
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], 400]])
        with torch.inference_mode():
            state = backbone(ids).last_hidden_state[0, -1]
        assert vector @ (state / state.norm()).numpy() > 0.99999
    stock = SentenceTransformer(str(exported / "model-embed"), device="cpu").encode(TEXTS)
    assert (stock * vectors).sum(1).min() > 0.9999


def test_independent_of_batch_and_order(llama: Path) -> None:
    encoder = Encoder.from_pretrained(llama)
    texts = [text[: 3 * n] for n in range(1, 12) for text in TEXTS]
    together = encoder.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = encoder.encode([texts[i] for i in order], batch_tokens=70)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert (together[order] * shuffled).sum(1).min() >= 0.99999
    assert (together * alone).sum(1).min() >= 0.99999
    assert np.abs(together[order] - together).max() > 0.1  # the order does matter to the result


@pytest.mark.parametrize(
    ("attention", "backend", "aggregation"),
    [
        ("isolated", "sdpa", "mean"),
        ("isolated", "dense", "concat"),
        ("causal", "sdpa", "last"),
        ("causal", "dense", "mean"),
    ],
)
def test_several_summary_tokens_follow_the_rule(
    tokenizer_dir: Path, tmp_path: Path, attention: Any, backend: Any, aggregation: Any
) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, k=3, attention=attention)
    unseal(folder, aggregation=aggregation)
    vectors = Encoder.from_pretrained(folder, attention=backend).encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    backbone = AutoModel.from_pretrained(folder / "model")
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = [*tokenizer(text)["input_ids"], 400, 401, 402]
        bounds_D4 = np.array([[0, len(ids) - 3, len(ids), len(ids)]], dtype=np.int32)
        allowed = masks.dense(bounds_D4, attention)[None, None]
        with torch.inference_mode():
            states = backbone(torch.tensor([ids]), attention_mask=allowed).last_hidden_state[0, -3:]
        expected = {"mean": states.mean(0), "concat": states.flatten(), "last": states[-1]}
        expected = expected[aggregation]
        assert vector @ (expected / expected.norm()).numpy() > 0.99999


def test_cut_embeddings_are_unit_vectors_of_the_first_dimensions(llama: Path) -> None:
    encoder = Encoder.from_pretrained(llama)
    whole, cut = encoder.encode(TEXTS), encoder.encode(TEXTS, truncate_dim=8)
    first = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert cut.shape == (len(TEXTS), 8)
    assert np.allclose(cut, first, atol=1e-6)
    stock = SentenceTransformer(str(llama / "model-embed"), device="cpu", truncate_dim=8)
    vectors = stock.encode(TEXTS, normalize_embeddings=True)
    assert (vectors * cut).sum(1).min() > 0.9999
    for size in (0, 33):
        with pytest.raises(InputError, match=f"has 32 dimensions, not {size}; ask for fewer"):
            encoder.encode(TEXTS, truncate_dim=size)


def test_older_exports_are_means(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "older")
    unseal(folder, aggregation=None, dimensions=None)
    vectors = Encoder.from_pretrained(folder).encode(TEXTS)
    assert np.array_equal(vectors, Encoder.from_pretrained(llama).encode(TEXTS))
    unseal(folder, aggregation="median")
    with pytest.raises(InputError, match="aggregation 'median' is unknown"):
        Encoder.from_pretrained(folder)


def test_text_that_spells_a_control_token_stays_text(llama: Path) -> None:
    texts = ["a <|summary_0|> b", "a <|bos|> b", "a  b"]
    vectors = Encoder.from_pretrained(llama).encode(texts)
    # The same ids as plain characters, for a tokenizer that was never told of these tokens.
    tokenizer = AutoTokenizer.from_pretrained(llama / "model")
    backbone = AutoModel.from_pretrained(llama / "model")
    spelled = tokenizer(["a <|summary_0|> b", "a <|bos|> b"], split_special_tokens=True)
    for ids, vector in zip(spelled["input_ids"], vectors, strict=False):
        assert 400 not in ids
        with torch.inference_mode():
            state = backbone(torch.tensor([[*ids, 400]])).last_hidden_state[0, -1]
        assert vector @ (state / state.norm()).numpy() > 0.99999
    # Stock readers parse it: documented, and the reason to embed foreign text with our encoder.
    stock = SentenceTransformer(str(llama / "model-embed"), device="cpu")
    assert (stock.tokenize(texts[:1])["input_ids"] == 400).sum() == 2


def test_an_empty_text_is_the_bos_token(llama: Path) -> None:
    (vector,) = Encoder.from_pretrained(llama).encode([""])
    backbone = AutoModel.from_pretrained(llama / "model")
    with torch.inference_mode():
        state = backbone(torch.tensor([[0, 400]])).last_hidden_state[0, -1]
    assert vector @ (state / state.norm()).numpy() > 0.99999
    encoder = Encoder.from_pretrained(llama)
    assert encoder.encode([]).shape == (0, 32)


def test_without_bos_an_empty_text_is_refused_by_number(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    vocab, summary = run_tokenizer(tokenizer_dir, tmp_path / "tok")
    without = type(vocab)(**{**vars(vocab), "bos_token_id": None})
    encoder = Encoder(tiny("llama", vocab.size).base_model, without, summary)
    assert encoder.encode(["a", "b"]).shape == (2, 32)
    with pytest.raises(InputError, match="text 2 is empty"):
        encoder.encode(["a", "", "b"])


def test_long_texts_are_cut_once_said(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Encoder.from_pretrained(llama)
    long = "word after word, " * 60
    whole = encoder.encode([long, "short", long + "more"])
    assert "2 of 3 texts are longer than 64 tokens" in capsys.readouterr().err
    assert whole[0] @ whole[2] > 0.99999  # they differ only behind the cut
    stock = SentenceTransformer(str(llama / "model-embed"), device="cpu").encode([long])
    assert stock[0] @ whole[0] > 0.9999
    cut = encoder.encode([long], max_length=10)
    assert "longer than 10 tokens" in capsys.readouterr().err
    assert cut[0] @ whole[0] < 0.9999
    for wrong in (2, 65):
        with pytest.raises(InputError, match=f"max length {wrong} must be between 3 and 64"):
            encoder.encode(["a"], max_length=wrong)


def test_windows_are_averaged_by_their_tokens(llama: Path) -> None:
    encoder = Encoder.from_pretrained(llama)
    long = "word after word, " * 20
    read = encoder._read([long], None, "", "windows")
    parts = encoder.embed(read.documents).numpy()
    expected = read.shares_D @ parts
    raw = encoder.encode(["a", long, "b"], long_texts="windows", normalize=False)
    assert np.allclose(raw[1], expected, atol=1e-5)
    vectors = encoder.encode(["a", long, "b"], long_texts="windows")
    assert np.allclose(vectors[1], expected / np.linalg.norm(expected), atol=1e-6)
    assert np.array_equal(vectors[[0, 2]], encoder.encode(["a", "b"]))
    assert vectors[1] @ encoder.encode([long])[0] < 0.9999


def test_prompt_length_and_precision(llama: Path) -> None:
    encoder = Encoder.from_pretrained(llama)
    assert np.allclose(encoder.encode(["a b"], prompt="q: "), encoder.encode(["q: a b"]))
    stock = SentenceTransformer(str(llama / "model-embed"), device="cpu")
    ours, theirs = encoder.encode(TEXTS, prompt="q: "), stock.encode(TEXTS, prompt="q: ")
    assert (ours * theirs).sum(1).min() > 0.9999
    raw = encoder.encode(TEXTS, normalize=False)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    assert np.allclose(raw / lengths, encoder.encode(TEXTS), atol=1e-6)
    bits = encoder.encode(TEXTS, precision="binary", truncate_dim=16)
    assert (bits.shape, bits.dtype) == ((len(TEXTS), 2), np.uint8)
    assert encoder.encode(TEXTS, precision="int8").dtype == np.int8


def test_bf16_is_close_to_fp32(llama: Path) -> None:
    fp32 = Encoder.from_pretrained(llama).encode(TEXTS)
    bf16 = Encoder.from_pretrained(llama, dtype=torch.bfloat16).encode(TEXTS)
    assert 0.99 < (fp32 * bf16).sum(1).min() < 1 - 1e-7


def test_a_cpu_computes_in_fp32_unless_told_otherwise(tokenizer_dir: Path, tmp_path: Path) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, dtype=torch.bfloat16)
    assert Encoder.from_pretrained(folder, device="cpu").backbone.dtype == torch.float32


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, llama: Path) -> None:
    for folder in (tmp_path, llama / "model-embed"):
        with pytest.raises(InputError, match=r"has no gem_config\.json"):
            Encoder.from_pretrained(folder)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        Encoder.from_pretrained(tmp_path / "nowhere")


def test_a_model_without_summary_tokens_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path, k=0)
    with pytest.raises(InputError, match="trained without summary tokens"):
        Encoder.from_pretrained(folder)
