"""What readers of exported folders look for, key by key.

Each table says which reader wants which key; readers are named with the code that reads it:
SentenceTransformers (``base/model.py``, ``base/modules``), text-embeddings-inference
(``router/src/lib.rs``: `PoolConfig`, `STConfig`, `ModelConfig`), vLLM
(``vllm/transformers_utils/config.py``: `get_pooling_config`,
`get_sentence_transformer_tokenizer_config`), llama.cpp (``convert_hf_to_gguf.py``).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from exports import export_tiny
from tokenizers import Tokenizer

TEI, VLLM, ST, LLAMA_CPP = "text-embeddings-inference", "vLLM", "SentenceTransformers", "llama.cpp"
ALL = (TEI, VLLM, ST, LLAMA_CPP)


@pytest.fixture(scope="module")
def folder(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model of one summary token, all of whose weights were trained."""
    return export_tiny(tokenizer_dir, tmp_path_factory.mktemp("readers"))[1]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# Of 1_Pooling/config.json. TEI's first four have no default there: without them it stops.
POOLING = {
    "word_embedding_dimension": (32, (ST,)),
    "pooling_mode_cls_token": (False, (TEI, ST)),
    "pooling_mode_mean_tokens": (False, (TEI, ST)),
    "pooling_mode_max_tokens": (False, (TEI, ST)),
    "pooling_mode_mean_sqrt_len_tokens": (False, (TEI, ST)),
    "pooling_mode_weightedmean_tokens": (False, (ST,)),
    "pooling_mode_lasttoken": (True, ALL),
    "include_prompt": (True, (ST,)),
}


def test_pooling(folder: Path) -> None:
    found = read(folder / "model-embed" / "1_Pooling" / "config.json")
    assert found == {key: value for key, (value, _) in POOLING.items()}


def test_vllm_takes_the_last_token(folder: Path) -> None:
    """It takes the name of whatever key is true, and drops names that are no pooling."""
    found = read(folder / "model-embed" / "1_Pooling" / "config.json")
    kinds = [vllms_name(key) for key, value in found.items() if value is True]
    poolings = {"CLS", "LAST", "MEAN"}  # its SEQ_POOLING_TYPES
    assert [kind for kind in kinds if kind in poolings] == ["LAST"]


def vllms_name(key: str) -> str:
    """Its `parse_pooling_type`."""
    name = key.replace("pooling_mode_", "")
    return "LAST" if "lasttoken" in name else name.split("_", 1)[0].upper()


def test_modules_have_the_names_that_all_know(folder: Path) -> None:
    """vLLM looks for these very types; SentenceTransformers 6 still loads them."""
    modules = read(folder / "model-embed" / "modules.json")
    assert [(m["idx"], m["path"], m["type"]) for m in modules] == [
        (0, "", "sentence_transformers.models.Transformer"),
        (1, "1_Pooling", "sentence_transformers.models.Pooling"),
        (2, "2_Normalize", "sentence_transformers.models.Normalize"),
    ]


def test_lengths(folder: Path) -> None:
    """vLLM reads this file only with both keys; TEI wants the first."""
    found = read(folder / "model-embed" / "sentence_bert_config.json")
    assert found == {"max_seq_length": 64, "do_lower_case": False}


def test_model_config(folder: Path) -> None:
    """TEI stops without the first three; its pad token is a number or absent."""
    for name in ("model", "model-embed"):
        found = read(folder / name / "config.json")
        assert found["architectures"] == ["LlamaForCausalLM"]
        assert found["model_type"] == "llama"
        assert found["max_position_embeddings"] == 64
        assert "auto_map" not in found, "no code of its own (vLLM, Transformers)"
        assert found["vocab_size"] == 406


def test_similarity(folder: Path) -> None:
    found = read(folder / "model-embed" / "config_sentence_transformers.json")
    assert found["similarity_fn_name"] == "cosine"
    assert (found["prompts"], found["default_prompt_name"]) == ({}, None)


def test_the_tokenizer_alone_appends_the_summary_token(folder: Path) -> None:
    """TEI, vLLM and llama.cpp read tokenizer.json and nothing of ours."""
    appended = Tokenizer.from_file(str(folder / "model-embed" / "tokenizer.json"))
    assert appended.encode("x").ids[-1] == 400
    plain = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    assert 400 not in plain.encode("x").ids, "lm-eval scores continuations"


def test_a_generating_folder_looks_like_nothing_else(folder: Path) -> None:
    """vLLM's `auto` runner pools where there is a modules.json."""
    names = {path.name for path in (folder / "model").iterdir()}
    assert not names & {"modules.json", "1_Pooling", "sentence_bert_config.json"}
