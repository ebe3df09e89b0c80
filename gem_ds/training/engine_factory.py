"""The engine of a run: its model, what holds it to a base, its optimizer, under DeepSpeed."""

from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from gem_ds.attention import compatibility, forward, registry
from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.model import adapters, language_model, layer_options
from gem_ds.model.contrastive import ContrastiveOptions
from gem_ds.model.kl_reference import Reference
from gem_ds.model.layer_options import Recompute
from gem_ds.shards.manifest import Manifest
from gem_ds.training import compile_lock, deepspeed_keys
from gem_ds.training.config import TrainConfig


def dtype_of(ds_config: dict[str, Any]) -> torch.dtype:
    """What the model computes in."""
    return torch.bfloat16 if ds_config.get("bf16", {}).get("enabled") else torch.float32


def build_engine(
    config: TrainConfig, ds_config: dict[str, Any], manifest: Manifest, hf_config: Any
) -> Any:
    """The DeepSpeed engine around a `model.language_model.TrainingModel` of a
    `validation.model_config`."""
    base = _build_base(config, ds_config, manifest, hf_config) if config.kl_to_base else None
    if config.adapter != "none" and ds_config.get("zero_optimization", {}).get("stage", 0) < 2:
        raise InputError(
            f"{config.deepspeed} has a ZeRO stage below 2, whose checkpoints leave out the weights "
            f"that --adapter {config.adapter} freezes; use ds_configs/zero2.json or zero3.json"
        )
    partitioned = _partitioned(ds_config)
    lm = language_model.load(
        base=config.model,
        config=hf_config,
        vocab_size=manifest.vocab_size,
        new_tokens=new_tokens(config, manifest),
        recompute=_recompute(config),
        seed=config.seed,
        dtype=dtype_of(ds_config),
    )
    _fuse(config, lm)
    rows = _freeze(config, lm, manifest) if config.adapter != "none" else None
    gem = language_model.TrainingModel(lm, _contrastive_options(config, lm, manifest), base, rows)
    optimizer = torch.optim.AdamW(
        language_model.parameter_groups(gem, config.weight_decay),
        lr=0.0,  # each step sets its own
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    with deepspeed_keys.refusing(config.deepspeed), compile_lock.warning_of_locks():
        engine, *_ = deepspeed.initialize(model=gem, optimizer=optimizer, config=ds_config)
    del partitioned
    engine.train()
    return engine


def _fuse(config: TrainConfig, lm: Any) -> None:
    if config.liger:
        layer_options.apply_liger(lm)
    for part in layer_options.compile_parts(lm) if config.compile else ():
        set_z3_leaf_module(part, True)


def _recompute(config: TrainConfig) -> Recompute | None:
    if not config.gradient_checkpointing:
        return None
    if config.offload_activations and not torch.cuda.is_available():
        raise InputError("--offload-activations needs a GPU: without one all is in host memory")
    return Recompute(config.checkpoint_every, config.keep_products, config.offload_activations)


def _contrastive_options(config: TrainConfig, lm: Any, manifest: Manifest) -> ContrastiveOptions:
    width = lm.config.get_text_config().hidden_size
    if config.aggregation == "concat":
        width *= len(manifest.summary_tokens)
    dimensions = config.dimensions()
    if dimensions and dimensions[-1] >= width:
        raise InputError(
            f"--matryoshka {config.matryoshka}: an embedding has {width} dimensions, which are "
            "always trained; give smaller ones"
        )
    return ContrastiveOptions(
        temperature=config.temperature,
        learn_temperature=config.learn_temperature,
        scales=(config.least_temperature, config.most_temperature),
        aggregation=config.aggregation,
        negatives=config.negatives,
        dimensions=dimensions,
    )


def _partitioned(ds_config: dict[str, Any]) -> HfDeepSpeedConfig | None:
    """Transformers builds models partitioned under ZeRO-3 while the result lives."""
    zero = ds_config.get("zero_optimization", {})
    return HfDeepSpeedConfig(ds_config) if zero.get("stage") == 3 else None


def _build_base(
    config: TrainConfig, ds_config: dict[str, Any], manifest: Manifest, hf_config: Any
) -> "FrozenBase":
    """The base as it was before training, to be compared with."""
    ds_config = frozen_config(ds_config)
    partitioned = _partitioned(ds_config)
    lm = language_model.load(
        base=config.model,
        config=hf_config,
        vocab_size=0,
        new_tokens=(),
        recompute=None,
        seed=config.seed,
        dtype=dtype_of(ds_config),
    )
    del partitioned
    _fuse(config, lm)
    rows = lm.config.get_text_config().vocab_size
    trained = min(new_tokens(config, manifest), default=rows)
    if trained > rows:
        raise InputError(
            f"the tokenizer of {config.model} has {trained} tokens and its embedding {rows} rows, "
            "so the base has nothing to say of some; give --kl-to-base 0, or another base"
        )
    return FrozenBase(lm, trained, ds_config)


def _freeze(config: TrainConfig, lm: Any, manifest: Manifest) -> language_model.SummaryRows:
    """Freeze the base and give it adapters; the summary tokens' rows, which are trained too."""
    assert config.adapter != "none"
    plan = registry.make_plan(compatibility.BOUNDS, "dense", device=lm.device)
    compatibility.check_embeddings(lm, plan)
    adapters.inject(
        lm,
        config.adapter,
        config.lora_rank,
        config.lora_alpha,
        manifest.summary_tokens,
        config.seed,
    )
    return language_model.summary_rows(lm, manifest.summary_tokens)


def new_tokens(config: TrainConfig, manifest: Manifest) -> list[int]:
    """The summary tokens that the base does not have yet; refuse a base with another tokenizer."""
    if config.model is None:
        return manifest.summary_tokens
    base = tokenization.fingerprint(tokenization.load(config.model))
    if base == manifest.tokenizer_sha256:
        return []
    if base != manifest.base_tokenizer_sha256:
        raise InputError(
            f"{config.model} has another tokenizer than the one {config.shards} was made with; "
            f"shard again with --tokenizer {config.model}"
        )
    return manifest.summary_tokens


def frozen_config(ds_config: dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed configuration of a model without optimizer beside one that has `ds_config`."""
    zero = ds_config.get("zero_optimization", {})
    kept = {key: value for key, value in zero.items() if key != "offload_optimizer"}
    return {**ds_config, "zero_optimization": kept if zero.get("stage") == 3 else {"stage": 0}}


class _Hidden(nn.Module):
    """A language model whose forward gives hidden states."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, reference: Reference) -> Tensor:
        return language_model.hidden_states(self.lm, reference)


class FrozenBase:
    """A `model.kl_reference.Base` with weights of its own, frozen, in an engine of its own.

    It lies as the trained model's parameters do: partitioned over the ranks under ZeRO-3, whole on
    every rank otherwise.
    """

    def __init__(self, lm: Any, vocab_size: int, ds_config: dict[str, Any]) -> None:
        """`ds_config` is of `frozen_config`, and `lm` of `language_model.load`, partitioned by
        it."""
        self.vocab_size = vocab_size
        module = _Hidden(lm.requires_grad_(False)).eval()
        self._engine, *_ = deepspeed.initialize(model=module, config=ds_config)
        self._engine.eval()

    @torch.no_grad()
    def hidden(self, reference: Reference) -> Tensor:
        hidden_SC: Tensor = self._engine(reference)
        return hidden_SC[: len(reference.index)]

    @torch.no_grad()
    def logits(self, hidden_nC: Tensor) -> Tensor:
        # The head by itself: a forward of the whole engine would begin another trace of the order
        # in which ZeRO-3 is to fetch parameters.
        return forward.logits(self._engine.module.lm, hidden_nC)
