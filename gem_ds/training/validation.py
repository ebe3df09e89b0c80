"""Whether base, shards and flags of a run go together: refusals before it, and warnings."""

from typing import Any

from gem_ds import distributed, launcher
from gem_ds.attention.hf_config import disable_dropout, longest_document, why_no_longer
from gem_ds.errors import InputError
from gem_ds.model import base_model
from gem_ds.shards.documents import CONTINUATION, PAIR, PLAIN
from gem_ds.shards.manifest import Manifest
from gem_ds.training.config import TrainConfig


def check_objective(config: TrainConfig, manifest: Manifest) -> None:
    """Refuse an objective that the shards have nothing for."""
    if config.adapter != "none" and not manifest.summary_tokens:
        raise InputError(
            f"{config.shards} has no summary tokens, which --adapter {config.adapter} is to train; "
            "shard with --kinds plain=0.8,continuation=0.2"
        )
    documents = manifest.documents
    if not config.alpha or config.alpha_start >= config.steps:
        if config.adapter == "summary" and documents <= {PLAIN}:
            raise InputError(
                f"{config.shards} has only plain documents and alpha is 0, so there is nothing "
                "that --adapter summary could learn; give --alpha 1, or shard with --kinds "
                "plain=0.8,continuation=0.2"
            )
        return
    if not manifest.summary_tokens:
        raise InputError(
            f"{config.shards} was made without summary tokens, so there is nothing to embed with; "
            "train it with --alpha 0, or shard with --summary-tokens 1"
        )
    needed = {"dropout": documents - {PLAIN}, "crops": documents}
    for kind in config.positive_kinds(documents):
        if not needed.get(kind, documents & {kind}):
            share = PAIR if kind == PAIR else CONTINUATION
            raise InputError(
                f"--positives {kind}: {config.shards} has only {' and '.join(sorted(documents))} "
                f"documents, which have none; shard with --kinds plain=0.8,{share}=0.2, or choose "
                "--positives crops, which every text has, or train with --alpha 0"
            )


def model_config(config: TrainConfig, manifest: Manifest) -> Any:
    """The base's Transformers configuration, after a look at its files and at the shards."""
    base = config.model or config.config or ""
    hf_config = base_model.read_config(base)
    if config.disable_dropout:
        disable_dropout(hf_config)
    if config.model:
        for note in base_model.check_files(config.model, hf_config):
            if launcher.rank() == 0:  # they have not joined yet
                print(f"WARNING: {note}", flush=True)
    longest = longest_document(hf_config)
    if manifest.row_length > longest:
        why = why_no_longer(hf_config)
        raise InputError(
            f"rows of {config.shards} have {manifest.row_length} tokens, and {base} takes at most "
            f"{longest} ({why}); shard with --row-length {longest} or less"
        )
    return hf_config


def warn_of_rounding(config: TrainConfig, ds_config: dict[str, Any], engine: Any) -> None:
    """AdamW moves a weight by about the rate, and bf16 has 8 bits of it."""
    if not ds_config.get("bf16", {}).get("bf16_master_weights_and_grads"):
        return
    rate = max(config.rates(engine.module.lm.config.get_text_config().hidden_size))
    weight = _typical_weight(engine)
    if rate < weight / 256 and distributed.rank() == 0:
        print(
            f"WARNING: master weights are kept in bf16, and the rate of {rate:.1e} is below 1/256 "
            f"of a typical weight ({weight:.3f}): most of what is learned will be rounded away; "
            "raise --learning-rate, or take a DeepSpeed file without bf16_master_weights_and_grads "
            "(docs/performance.md)",
            flush=True,
        )


def _typical_weight(engine: Any) -> float:
    """Root mean square of this rank's part of the matrices that are trained."""
    parts = [
        getattr(parameter, "ds_tensor", parameter).detach()
        for parameter in engine.module.parameters()
        if parameter.requires_grad and len(getattr(parameter, "ds_shape", parameter.shape)) > 1
    ]
    squares = sum(float(part.float().square().sum()) for part in parts)
    return float((squares / max(1, sum(part.numel() for part in parts))) ** 0.5)


def warn_of_other_negatives(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Embeddings are told from the others of a micro-batch on all ranks: that number matters."""
    before = saved["config"]["rows_per_micro_batch"] * saved["world_size"]
    now = config.rows_per_micro_batch * distributed.world_size()
    if before != now and config.alpha and distributed.rank() == 0:
        print(
            f"WARNING: the contrastive loss compares within {now} rows at a time, and {before} "
            "before: it will not continue as it was; choose --rows-per-micro-batch so that times "
            f"{distributed.world_size()} ranks it is {before}",
            flush=True,
        )
