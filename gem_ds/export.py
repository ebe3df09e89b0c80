"""Writing a trained model as folders that stock libraries load.

``model/`` is a plain Transformers folder: it generates, and knows the summary tokens but never
emits them. ``model-embed/`` is the same weights as a SentenceTransformers folder, whose tokenizer
puts the summary token behind every text. One folder could not be both: pooling configuration in
the root makes servers choose pooling, and a tokenizer that appends a token shifts the scoring of
continuations. Reading weights out of DeepSpeed's files is the business of `checkpoint`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from gem_ds import adapter_files, merge, tokenization
from gem_ds.errors import InputError
from gem_ds.gem_config import GEM_CONFIG, GemConfig
from gem_ds.tokenization import Vocabulary

EMBED_REFUSED = "model-embed.txt"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def export_run(
    run: Path,
    step: int | None,
    output: Path,
    dtype: torch.dtype,
    base_share: float = 0.0,
    base: str | None = None,
) -> Path:
    """Export the checkpoint of a run's `step`, or its newest; returns the checkpoint's folder.

    The weights are ``1 - base_share`` of the trained ones plus `base_share` of the base's. The base
    is the run's own, or `base` where that has moved. Raises `InputError` if there is no
    checkpoint, if the base is not this model's, or as `export` does.
    """
    from gem_ds import checkpoint  # DeepSpeed takes seconds to import; readers of exports need none

    folder = checkpoint.find(run, step)
    _check_output(output)  # before the weights are read, which takes minutes for a large model
    state = checkpoint.read_state(folder)
    mode, _, alpha = state.get("adapter") or (None, 0, 0.0)
    told = json.loads((run / "run.json").read_text())["config"]
    gem = GemConfig(
        summary_tokens=tuple(state["summary_tokens"]),
        summary_attention=state["summary_attention"],
        base=told["model"] or told["config"],
        step=state["step"],
        manifest=state["manifest"],
        aggregation=state["aggregation"],
        dimensions=tuple(state["dimensions"]),
        base_share=base_share,
        adapter=mode == "summary",
    )
    generation_path = folder / "model" / "generation_config.json"
    generation = json.loads(generation_path.read_text()) if generation_path.is_file() else None
    config = AutoConfig.from_pretrained(folder / "model")
    source = _base_of(told, base, base_share)
    if source and mode == "summary":
        raise InputError(f"{run} has trained an adapter beside its base; drop --merge-base")
    vocab = tokenization.load(run / "tokenizer")
    opened = merge.open_base(source, config, vocab) if source else None
    weights = checkpoint.load_weights(folder)
    adapter = None
    if mode is not None:
        rows_kC = weights.pop(checkpoint.ROWS)
        if mode == "summary":
            weights, lora = adapter_files.separated(weights)
            adapter = adapter_files.Adapter(lora, alpha)
        else:
            weights = adapter_files.merged(weights, alpha)
        adapter_files.write_rows(weights, config, gem.summary_tokens, rows_kC)
    if opened:
        merge.merge(weights, opened, base_share)
    export(weights, config, run / "tokenizer", gem, output, dtype, generation, adapter)
    return folder


def _base_of(told: Mapping[str, Any], base: str | None, share: float) -> str | None:
    """The base to average with, None where nothing of it is wanted."""
    if not 0 <= share <= 1:
        raise InputError(f"--merge-base {share} is no share; give one from 0 to 1")
    if told["model"] is None and (share or base):
        raise InputError("this run was trained from scratch, so it has no base; drop --merge-base")
    if base and not share:
        raise InputError(f"--base {base} is only read with --merge-base; say how much of it")
    return base or told["model"] if share else None


def export(
    weights: Mapping[str, Tensor],
    config: Any,
    tokenizer_folder: Path,
    gem: GemConfig,
    output: Path,
    dtype: torch.dtype = torch.bfloat16,
    generation_config: Mapping[str, Any] | None = None,
    adapter: adapter_files.Adapter | None = None,
) -> None:
    """Write ``output/model`` and, where stock readers can be exact, ``output/model-embed``.

    An `adapter` is written into ``output/adapter`` as `peft` does.

    `weights` are named as in the Transformers model of `config`; a tied head's alias may be
    absent. With an adapter, or where the number of summary tokens is not one, a text file in the
    place of ``model-embed`` says why there is none. `output` appears complete or not at all. Raises
    `InputError` if it exists and is not empty, or if weights, config and tokenizer do not belong
    together.
    """
    _check_output(output)
    vocab = tokenization.load(tokenizer_folder)
    if tuple(tokenization.summary_ids(vocab)) != gem.summary_tokens:
        raise InputError(
            f"the tokenizer in {tokenizer_folder} has the summary tokens "
            f"{tokenization.summary_ids(vocab)}, the checkpoint {list(gem.summary_tokens)}; "
            "export with the tokenizer of the same run"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        _write_model(temporary / "model", weights, config, vocab, gem, dtype, generation_config)
        shutil.copytree(tokenizer_folder, temporary / "model", dirs_exist_ok=True)
        if adapter is not None:
            adapter.write(temporary / adapter_files.FOLDER, gem.summary_tokens, dtype)
            (temporary / EMBED_REFUSED).write_text(adapter_files.WHY_NO_EMBED)
        elif len(gem.summary_tokens) == 1:
            _write_embed(temporary / "model", temporary / "model-embed", vocab, gem)
        else:
            (temporary / EMBED_REFUSED).write_text(_why_no_embed(gem))
        temporary.replace(output)  # onto nothing or an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _why_no_embed(gem: GemConfig) -> str:
    k = len(gem.summary_tokens)
    if not k:
        return "This model was trained without summary tokens, so it generates but cannot embed.\n"
    return (
        f"This model embeds with {k} summary tokens ({gem.aggregation} over them).\n"
        "Stock SentenceTransformers cannot do that, so there is no model-embed here.\n"
        "Embed with launch/encode.py --model, or gem_ds.encode.Encoder.\n"
    )


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not empty; name another --output or remove it")


def _write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Any,
    vocab: Vocabulary,
    gem: GemConfig,
    dtype: torch.dtype,
    generation_config: Mapping[str, Any] | None,
) -> None:
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.load_state_dict(_checked(weights, lm, dtype), strict=False, assign=True)
    lm.tie_weights()
    lm.config.use_cache = True
    lm.config.__dict__.pop("auto_map", None)  # the architecture is a stock one
    lm.save_pretrained(folder)
    if generation_config is None:
        generation_config = GenerationConfig.from_model_config(lm.config).to_dict()
    rows = lm.get_input_embeddings().weight.shape[0]
    suppressed = {
        *(generation_config.get("suppress_tokens") or []),
        *gem.summary_tokens,
        *range(vocab.size, rows),  # rows that only fill up the embedding spell nothing
    }
    generation = {**generation_config, "suppress_tokens": sorted(suppressed)}
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / GEM_CONFIG, asdict(gem))


def _checked(weights: Mapping[str, Tensor], lm: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`, after a check that they are this model's, all of them."""
    expected = lm.state_dict()
    missing = expected.keys() - weights.keys() - lm.all_tied_weights_keys.keys()
    unknown = weights.keys() - expected.keys()
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    wrong = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unknown" for name in unknown),
        *shapes,
    ]
    if wrong:
        raise InputError(
            f"the weights are not those of this {type(lm).__name__}: {sorted(wrong)[0]} "
            f"({len(wrong)} such tensors); take config and weights from the same checkpoint"
        )
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def _write_embed(model: Path, folder: Path, vocab: Vocabulary, gem: GemConfig) -> None:
    """The SentenceTransformers folder: ``bos text summary``, the last token's state, normalised.

    Pooling and module names are written in their oldest spelling, which every version of
    SentenceTransformers, text-embeddings-inference and vLLM reads.
    """
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "2_Normalize").mkdir()
    for pattern in WEIGHTS:
        for file in model.glob(pattern):
            _link(file, folder / file.name)
    shutil.copy2(model / "config.json", folder)
    config = AutoConfig.from_pretrained(model).get_text_config()
    _write_embed_tokenizer(model, folder, vocab, gem.summary_tokens[0])
    module = "sentence_transformers.models"
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{module}.{name}"}
        for i, (name, path) in enumerate(paths.items())
    ]
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    modes += ["weightedmean_tokens", "lasttoken"]
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    size = {"word_embedding_dimension": config.hidden_size}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling" / "config.json", size | pooling | {"include_prompt": True})
    _write_json(folder / "2_Normalize" / "config.json", {})
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_embed_tokenizer(model: Path, folder: Path, vocab: Vocabulary, summary: int) -> None:
    """The tokenizer that writes ``bos text summary``, as the encoder does.

    It has no chat template, which would make readers send texts as chat; it pads on the right, so
    that learned positions count from the text's first token.
    """
    backend = Tokenizer.from_str(vocab.backend.to_str())
    before = [] if vocab.bos_token_id is None else [vocab.bos_token_id]
    names = {i: backend.id_to_token(i) or "" for i in (*before, summary)}
    bos, name = [names[i] for i in before], names[summary]
    backend.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A", name],
        pair=[*bos, "$A", "$B", name],
        special_tokens=[(token, i) for i, token in names.items()],
    )
    backend.save(str(folder / "tokenizer.json"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    config["padding_side"] = config["truncation_side"] = "right"
    if config.get("pad_token") is None:  # what pads is masked, so any token will do
        config["pad_token"] = name
    _write_json(folder / "tokenizer_config.json", config)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy on a file system without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
