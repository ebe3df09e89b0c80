"""``model-embed/``: an exported model as a SentenceTransformers folder.

Where summary tokens attend one another and the last of them is the embedding, which is so of a
single one, stock modules embed: a tokenizer that puts the summary tokens behind every text, pooling
of the last token. Text-embeddings-inference and vLLM's pooling runner read such a folder too.

Other models need a module of their own (`gem_embedding`), whose code the folder carries. There
``model/`` and ``adapter/`` are folders in it, so that a reader that passes over the module finds no
model instead of embedding without it.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig

from gem_ds.attention.hf_config import longest_document
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.export import gem_embedding, gem_seal
from gem_ds.export.gem_config import GemConfig
from gem_ds.model import adapter_files

FOLDER = "model-embed"
REFUSED = "model-embed.txt"
WHY_NOT = "This model was trained without summary tokens, so it generates but cannot embed.\n"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_MODULE = "sentence_transformers.models"  # the oldest spelling, which all readers know


def is_stock(gem: GemConfig) -> bool:
    """Whether stock modules embed as the model was trained to."""
    one_sees_all = len(gem.summary_tokens) == 1 or gem.summary_attention == "causal"
    last = len(gem.summary_tokens) == 1 or gem.aggregation == "last"
    return one_sees_all and last and not gem.adapter


def needs_own_code(folder: Path) -> bool:
    """Whether a ``model-embed/`` that was written has a module of its own."""
    return (folder / gem_embedding.SETTINGS).is_file()


def carry_code(folder: Path) -> None:
    """Put the code of the module into a ``model-embed/`` that needs it."""
    for module in (gem_embedding, gem_seal):
        shutil.copyfile(str(module.__file__), folder / Path(str(module.__file__)).name)


def write(output: Path, vocab: Vocabulary, gem: GemConfig) -> None:
    """Write the folder in `output`, where ``model/`` and, if `gem` says so, ``adapter/`` are, or
    the text file that says why there is none."""
    folder = output / FOLDER
    if not gem.summary_tokens:
        (output / REFUSED).write_text(WHY_NOT)
        return
    folder.mkdir()
    share(output, gem)
    if is_stock(gem):
        _write_stock(output / "model", folder, vocab, gem)
    else:
        _write_own(output, folder, vocab, gem)


def shared(output: Path, gem: GemConfig) -> dict[Path, Path]:
    """Files that the folder shares with ``model/`` and ``adapter/``, by where it has them."""
    folder, model = output / FOLDER, output / "model"
    if is_stock(gem):
        weights = [path for pattern in WEIGHTS for path in model.glob(pattern)]
        return {folder / path.name: path for path in (*weights, model / "config.json")}
    parts = ["model", adapter_files.FOLDER] if gem.adapter else ["model"]
    files = (path for part in parts for path in (output / part).iterdir())
    kept = (path for path in files if gem_seal.is_sealed(path) or path.name == gem_seal.SEAL)
    return {folder / path.parent.name / path.name: path for path in kept}


def share(output: Path, gem: GemConfig) -> None:
    """Link these files into the folder, in place of those that it has."""
    folder = output / FOLDER
    for part in ("model", adapter_files.FOLDER):
        shutil.rmtree(folder / part, ignore_errors=True)
    for path in (path for pattern in WEIGHTS for path in folder.glob(pattern)):
        path.unlink()
    for target, source in shared(output, gem).items():
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        link(source, target)


def _write_stock(model: Path, folder: Path, vocab: Vocabulary, gem: GemConfig) -> None:
    """``bos text summary``, the last token's state, normalised.

    Pooling and module names are written in their oldest spelling, which every version of
    SentenceTransformers, text-embeddings-inference and vLLM reads.
    """
    config = AutoConfig.from_pretrained(model).get_text_config()
    _write_tokenizer(model, folder, vocab, gem.summary_tokens)
    _write_modules(
        folder,
        {
            f"{_MODULE}.Transformer": "",
            f"{_MODULE}.Pooling": "1_Pooling",
            f"{_MODULE}.Normalize": "2_Normalize",
        },
    )
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    modes += ["weightedmean_tokens", "lasttoken"]
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    size = {"word_embedding_dimension": config.hidden_size}
    write_json(folder / "1_Pooling" / "config.json", size | pooling | {"include_prompt": True})
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": longest_document(config), "do_lower_case": False},
    )


def _write_own(output: Path, folder: Path, vocab: Vocabulary, gem: GemConfig) -> None:
    """The module's code and settings."""
    alpha = None
    if gem.adapter:
        adapter = folder / adapter_files.FOLDER / adapter_files.CONFIG
        alpha = json.loads(adapter.read_text())["lora_alpha"]
    carry_code(folder)
    config = AutoConfig.from_pretrained(output / "model").get_text_config()
    settings = {
        "bos": [] if vocab.bos_token_id is None else [vocab.bos_token_id],
        "summary_tokens": gem.summary_tokens,
        "summary_attention": gem.summary_attention,
        "aggregation": gem.aggregation,
        "lora_alpha": alpha,
        "max_seq_length": longest_document(config),
        "sealed": True,
    }
    write_json(folder / gem_embedding.SETTINGS, settings)
    _write_modules(
        folder,
        {
            f"{gem_embedding.NAME}.{gem_embedding.GemEmbedding.__name__}": "",
            f"{_MODULE}.Normalize": "1_Normalize",
        },
    )


def _write_modules(folder: Path, paths: dict[str, str]) -> None:
    """What SentenceTransformers builds: modules by their class, and where each has its files."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": name}
        for i, (name, path) in enumerate(paths.items())
    ]
    write_json(folder / "modules.json", modules)
    for path in filter(None, paths.values()):
        (folder / path).mkdir()
    write_json(folder / paths[f"{_MODULE}.Normalize"] / "config.json", {})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_tokenizer(
    model: Path, folder: Path, vocab: Vocabulary, summary_tokens: Sequence[int]
) -> None:
    """The tokenizer that writes ``bos text summary``, as the encoder does.

    It has no chat template, which would make readers send texts as chat; it pads on the right, so
    that learned positions count from the text's first token.
    """
    backend = Tokenizer.from_str(vocab.backend.to_str())
    before = [] if vocab.bos_token_id is None else [vocab.bos_token_id]
    backend.post_processor = gem_embedding.template(backend, before, summary_tokens)
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    config["padding_side"] = config["truncation_side"] = "right"
    if config.get("pad_token") is None:  # what pads is masked, so any token will do
        config["pad_token"] = backend.id_to_token(summary_tokens[-1])
    write_json(folder / "tokenizer_config.json", config)


def link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy on a file system without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
