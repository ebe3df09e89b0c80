"""Writing a trained model as folders that stock libraries load.

``model/`` is a plain Transformers folder: it generates, and knows the summary tokens but never
emits them. ``model-embed/`` is the same weights as a SentenceTransformers folder, which puts the
summary tokens behind every text. One folder could not be both: pooling configuration in the root
makes servers choose pooling, and a tokenizer that appends a token shifts the scoring of
continuations. Reading weights out of DeepSpeed's files is in `checkpoint`, writing
them in `weights_writer`, ``model-embed/`` in `sentence_transformers_folder`, the cards in
`model_card`, and what keeps the files as they were written in `sealing`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.errors import InputError
from gem_ds.export import (
    base_names,
    merge_base,
    model_card,
    output_folder,
    sealing,
    sentence_transformers_folder,
    weights_writer,
)
from gem_ds.export.gem_config import GemConfig
from gem_ds.export.model_card import Provenance
from gem_ds.export.sentence_transformers_folder import write_json
from gem_ds.model import adapter_files
from gem_ds.model.lazy_tensors import renamed

SHARD_GB = 5.0


def export_run(
    run: Path,
    step: int | None,
    output: Path,
    dtype: torch.dtype,
    base_share: float = 0.0,
    base: str | None = None,
    shard_gb: float = SHARD_GB,
    scores: Path | None = None,
) -> Path:
    """Export the checkpoint of a run's `step`, or its newest; returns the checkpoint's folder.

    The weights are ``1 - base_share`` of the trained ones plus `base_share` of the base's. The base
    is the run's own, or `base` where that has moved. Weights go from the checkpoint's files into
    those of the export tensor by tensor: memory holds about an output shard, and as much of mapped
    files. `scores` are measured figures for the model card, a JSON file. Raises `InputError` if
    there is no checkpoint, if the base is not this model's, if the tokenizer is not the one that
    the run was trained with, or as `export` does.
    """
    # DeepSpeed takes seconds to import; readers of exports need none.
    from gem_ds.checkpoints import checkpoint, run_record

    folder = checkpoint.find(run, step)
    # Before the weights are read, which takes minutes for a large model.
    output_folder.check(output, folder)
    shard_bytes = _bytes_of(shard_gb)
    state = checkpoint.read_state(folder)
    mode, _, alpha = state.get("adapter") or (None, 0, 0.0)
    told = run_record.read(run)["config"]
    made_from = base or told["model"] or told["config"]
    gem = GemConfig(
        summary_tokens=tuple(state["summary_tokens"]),
        summary_attention=state["summary_attention"],
        base=base_names.name_of(told["model"] or told["config"]),
        base_digest=base_names.digest_of(made_from),
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
    about = model_card.provenance(run, gem.step, base or told["model"], scores)
    vocab = tokenization.load(run / "tokenizer")
    _check_tokenizer(vocab, state)
    opened = merge_base.open_base(source, config, vocab) if source else None
    weights: Mapping[str, Tensor] = checkpoint.load_weights(folder, shard_bytes)
    adapter = None
    if mode is not None:
        rows_kC = weights[checkpoint.ROWS]
        weights = renamed(weights, {name: name for name in weights if name != checkpoint.ROWS})
        if mode == "summary":
            weights, lora = adapter_files.separated(weights)
            adapter = adapter_files.Adapter(lora, alpha)
        else:
            weights = adapter_files.merged(weights, alpha)
        weights = adapter_files.with_rows(weights, config, gem.summary_tokens, rows_kC)
    if opened:
        weights = merge_base.merge(weights, opened, base_share)
    tokenizer = run / "tokenizer"
    export(weights, config, tokenizer, gem, output, dtype, generation, adapter, shard_gb, about)
    return folder


def _bytes_of(shard_gb: float) -> int:
    if not shard_gb > 0:
        raise InputError(f"--shard-gb {shard_gb} is no size; give gigabytes above 0")
    return max(1, round(shard_gb * 1e9))


def _check_tokenizer(vocab: Vocabulary, state: Mapping[str, Any]) -> None:
    """Refuse another tokenizer than the shards'; older runs do not tell which that was."""
    from gem_ds.checkpoints import checkpoint

    trained = state[checkpoint.RECORD].get("tokenizer_sha256")
    if trained not in (None, tokenization.fingerprint(vocab)):
        raise InputError(
            f"{vocab.source} is not the tokenizer that the run was trained with; copy tokenizer/ "
            "from the folder of its shards"
        )


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
    shard_gb: float = SHARD_GB,
    about: Provenance | None = None,
) -> None:
    """Write ``output/model`` and ``output/model-embed``, and an `adapter` into ``output/adapter``
    as `peft` does, each with its card.

    `weights` are named as in the Transformers model of `config`; a tied head's alias may be absent.
    Each is looked up once and not kept. They go into files of at most `shard_gb` gigabytes. Without
    summary tokens a text file in the place of ``model-embed`` says why there is none. `output`
    appears complete or not at all. Raises `InputError` if it exists and is not empty or cannot be
    written, if weights are not finite, or if weights, config and tokenizer do not belong together.
    """
    place = output_folder.check(output)
    shard_bytes = _bytes_of(shard_gb)
    vocab = tokenization.load(tokenizer_folder)
    if tuple(tokenization.summary_ids(vocab)) != gem.summary_tokens:
        raise InputError(
            f"the tokenizer in {tokenizer_folder} has the summary tokens "
            f"{tokenization.summary_ids(vocab)}, the checkpoint {list(gem.summary_tokens)}; "
            "export with the tokenizer of the same run"
        )
    with output_folder.building(place) as folder:
        model = folder / output_folder.MODEL
        model.mkdir()
        lm = _without_memory(config, dtype)
        weights_writer.write(model, weights, lm, dtype, shard_bytes)
        _write_configs(model, lm, vocab, gem, generation_config)
        for file in filter(Path.is_file, tokenizer_folder.iterdir()):
            shutil.copyfile(file, model / file.name)  # with the mode that the umask gives
        if adapter is not None:
            adapter.write(folder / adapter_files.FOLDER, gem.summary_tokens, dtype)
        known: sealing.Known = {}
        gem = sealing.seal_model(model, gem, known)
        sentence_transformers_folder.write(folder, vocab, gem)
        if (folder / sentence_transformers_folder.FOLDER).is_dir():
            sealing.seal_embed(folder / sentence_transformers_folder.FOLDER, known)
        model_card.write(folder, gem, about or Provenance())


def _without_memory(config: Any, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.config.use_cache = True
    lm.config.dtype = dtype
    lm.config.architectures = [type(lm).__name__]
    lm.config.__dict__.pop("auto_map", None)  # the architecture is a stock one
    return lm


def _write_configs(
    folder: Path,
    lm: Any,
    vocab: Vocabulary,
    gem: GemConfig,
    generation_config: Mapping[str, Any] | None,
) -> None:
    """How to build the model, and how to generate with it: no token that spells nothing."""
    lm.config.save_pretrained(folder)
    if generation_config is None:
        generation_config = GenerationConfig.from_model_config(lm.config).to_dict()
    rows = lm.get_input_embeddings().weight.shape[0]
    suppressed = {
        *(generation_config.get("suppress_tokens") or []),
        *gem.summary_tokens,
        *range(vocab.size, rows),  # rows that only fill up the embedding spell nothing
    }
    generation = {**generation_config, "suppress_tokens": sorted(suppressed)}
    write_json(folder / "generation_config.json", generation)
