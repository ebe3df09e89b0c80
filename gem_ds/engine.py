"""Building a training run and its loop: from a configuration to checkpoints."""

import importlib.metadata
import json
import logging
import os
import shutil
import time
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig
from transformers.integrations import HfDeepSpeedConfig

from gem_ds import checkpoint, dist, model, tokenization
from gem_ds.config import TrainConfig, read_json, resolve_deepspeed
from gem_ds.data import Batch, BatchOptions, Loader
from gem_ds.errors import InputError
from gem_ds.metrics import Metrics, memory_gib
from gem_ds.objectives import Schedule, step_loss
from gem_ds.shards import Manifest, Shards, replacing

VERSIONS = ("gem_ds", "torch", "deepspeed", "transformers", "tokenizers", "numpy", "pyarrow")


@dataclass(frozen=True)
class Run:
    """A run that is ready to take steps."""

    config: TrainConfig
    folder: Path
    device: torch.device
    engine: Any
    loader: Loader
    schedule: Schedule
    state: dict[str, Any]  # what its checkpoints must agree with
    first_step: int


def train(config: TrainConfig) -> None:
    """Run training to its last step. Raises `InputError` for what the user can mend."""
    run = open_run(config)
    metrics = Metrics(run.folder, run.first_step, config.steps, enabled=dist.rank() == 0)
    with closing(metrics), closing(run.loader):
        _loop(run, metrics)


def _loop(run: Run, metrics: Metrics) -> None:
    config = run.config
    skipped = 0
    for step in range(run.first_step, config.steps):
        values, batches = train_step(run, step)
        skipped = skipped + 1 if values["train/skipped"] else 0
        metrics.log(step, values)
        if skipped:
            _report_skip(run.folder, step, batches, skipped, config.max_skipped_steps)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            path = checkpoint.save(
                run.engine,
                run.folder,
                {**run.state, "step": step + 1},
                run.engine.module.save_config,
                config.keep_last,
            )
            metrics.say(f"saved {path}")


def open_run(config: TrainConfig) -> Run:
    """Join the other ranks, check everything, build, and resume where that is asked for."""
    device = _start_process(config)
    config.check(dist.world_size())
    shards = Shards(config.shards)
    manifest = shards.manifest
    _check_objective(config, manifest)
    base_config = _model_config(config, manifest)
    ds_config = resolve_deepspeed(
        read_json(config.deepspeed),
        config,
        dist.world_size(),
        base_config.get_text_config().hidden_size,
    )
    folder = Path(config.output)
    _open_folder(config, ds_config, manifest, folder)
    engine = _build_engine(config, ds_config, manifest)
    state = _state(config, manifest, engine.module.lm.config)
    done = checkpoint.found(folder)
    options = BatchOptions(
        positives=config.positives,
        prefix_dropout=config.prefix_dropout,
        bos_token_id=manifest.bos_token_id,
        eos_token_id=manifest.eos_token_id,
        attention=config.attention,
        summary_attention=config.summary_attention,
    )
    loader = Loader(
        shards,
        options,
        config.rows_per_step,
        config.rows_per_micro_batch,
        dist.rank(),
        dist.world_size(),
        config.seed,
    )
    schedule = Schedule(
        steps=config.steps,
        warmup=config.warmup_steps,
        ntp_rate=config.learning_rate,
        contrastive_rate=config.contrastive_learning_rate,
        final_rate=config.final_rate,
        alpha=config.alpha,
        alpha_start=config.alpha_start,
        alpha_ramp=config.alpha_ramp,
    )
    first_step = checkpoint.load(engine, done[-1], state) if done else 0
    return Run(config, folder, device, engine, loader, schedule, state, first_step)


def train_step(run: Run, step: int) -> tuple[dict[str, float], list[Batch]]:
    """One optimizer step. Returns its metrics, the same on all ranks, and this rank's
    micro-batches. ``train/skipped`` is 1 where the gradient was not finite and nothing moved."""
    began = time.perf_counter()
    engine, device = run.engine, run.device
    # For models with dropout: a function of the step, so that resuming repeats it.
    torch.manual_seed((run.config.seed << 40) + (step << 16) + dist.rank())
    alpha, rate = run.schedule.alpha_at(step), run.schedule.rate_at(step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    batches = run.loader.step(step, with_targets=alpha < 1, with_views=alpha > 0)
    loaded = time.perf_counter()
    local = [
        sum(len(b.targets) for b in batches),
        sum(len(b.anchors) for b in batches),
        sum(b.input_ids.numel() for b in batches),
        sum(b.n_padding for b in batches),
    ]
    counts = dist.sum_over_ranks(torch.tensor(local, dtype=torch.int64, device=device)).tolist()
    n_targets, n_anchors, n_tokens, n_padding = counts

    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        out = engine(batch.to(device))
        loss = step_loss(out.ntp, out.contrastive, alpha, n_targets, n_anchors, dist.world_size())
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        sums += torch.stack([x.detach().double() for x in out[:4]])
    sums_of_all = dist.sum_over_ranks(sums).tolist()
    ntp = sums_of_all[0] / max(n_targets, 1)
    contrastive, positive, negative = (x / max(n_anchors, 1) for x in sums_of_all[1:])
    grad_norm = engine.get_global_grad_norm()
    seconds = time.perf_counter() - began
    values = {
        "loss/total": (1 - alpha) * ntp + alpha * contrastive,
        "loss/ntp": ntp,
        "loss/contrastive": contrastive,
        "cosine/positives": positive,
        "cosine/negatives": negative,
        "schedule/alpha": alpha,
        "schedule/learning_rate": rate,
        "schedule/temperature": float(out.scale),
        "train/grad_norm": float("nan") if grad_norm is None else float(grad_norm),
        "train/skipped": float(not engine.was_step_applied()),
        "data/tokens": n_tokens,
        "data/targets": n_targets,
        "data/anchors": n_anchors,
        "data/padding": n_padding / n_tokens,
        "speed/step_seconds": seconds,
        "speed/data_seconds": loaded - began,
        "speed/tokens_per_second": n_tokens / seconds,
        "speed/targets_per_second": n_targets / seconds,
        "memory/gib": memory_gib(device),
    }
    return values, batches


def _start_process(config: TrainConfig) -> torch.device:
    """Join the other ranks; the device of this one."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)  # started without a launcher: one process
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))
    deepspeed.init_distributed(timeout=timedelta(minutes=config.timeout_minutes))
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _check_objective(config: TrainConfig, manifest: Manifest) -> None:
    gem_share = sum(share for kind, share in manifest.kinds.items() if kind != "plain")
    if config.alpha > 0 and config.alpha_start < config.steps and not gem_share:
        raise InputError(
            f"{config.shards} has only plain documents, so there is nothing to embed; train it "
            "with --alpha 0, or shard with --kinds plain=0.8,continuation=0.2"
        )


def _model_config(config: TrainConfig, manifest: Manifest) -> Any:
    """The base's Transformers configuration, checked against the shards."""
    base = config.model or config.config
    try:
        hf_config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot read the model configuration of {base!r}: {reason}") from error
    longest = getattr(hf_config.get_text_config(), "max_position_embeddings", None)
    if longest and manifest.row_length > longest:
        raise InputError(
            f"rows of {config.shards} have {manifest.row_length} tokens but {base} has "
            f"{longest} positions; shard with --row-length {longest} or less"
        )
    return hf_config


def _open_folder(
    config: TrainConfig, ds_config: dict[str, Any], manifest: Manifest, run: Path
) -> None:
    """Make the run's folder on rank 0; refuse one that another run has filled."""
    done = checkpoint.found(run)
    if done and config.resume == "never":
        raise InputError(
            f"{run} already has checkpoints (newest {done[-1].name}); continue with --resume auto "
            "or choose another --output"
        )
    dist.barrier()
    if dist.rank() == 0:
        checkpoint.folder_of(run).mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(config.shards) / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
        resolved = {
            "config": asdict(config),
            "deepspeed": ds_config,
            "manifest": manifest.digest,
            "world_size": dist.world_size(),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        }
        with replacing(run / "run.json") as partial:
            partial.write_text(json.dumps(resolved, indent=1))
    dist.barrier()


def _build_engine(config: TrainConfig, ds_config: dict[str, Any], manifest: Manifest) -> Any:
    """The DeepSpeed engine around a `model.GemModel`."""
    if ds_config.get("fp16", {}).get("enabled"):
        raise InputError(f"{config.deepspeed} enables fp16; use bf16, or neither for fp32")
    bf16 = ds_config.get("bf16", {}).get("enabled", False)
    zero = ds_config.get("zero_optimization", {})
    # Transformers builds the model partitioned while this object lives.
    partitioned = HfDeepSpeedConfig(ds_config) if zero.get("stage") == 3 else None
    lm = model.load(
        base=config.model or config.config or "",
        from_scratch=config.config is not None,
        vocab_size=manifest.vocab_size,
        new_tokens=_new_tokens(config, manifest),
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    gem = model.GemModel(lm, config.temperature)
    optimizer = torch.optim.AdamW(
        model.parameter_groups(gem, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=gem, optimizer=optimizer, config=ds_config)
    del partitioned
    engine.train()
    return engine


def _new_tokens(config: TrainConfig, manifest: Manifest) -> list[int]:
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


def _state(config: TrainConfig, manifest: Manifest, model_config: Any) -> dict[str, Any]:
    """What a checkpoint must agree with for this run to continue from it."""
    shape = model_config.get_text_config()
    return {
        "step": 0,
        "model_type": shape.model_type,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "vocab_size": shape.vocab_size,
        "summary_tokens": manifest.summary_tokens,
        "summary_attention": config.summary_attention,
        "manifest": manifest.digest,
        "rows_per_step": config.rows_per_step,
        "seed": config.seed,
        "world_size": dist.world_size(),
    }


def _report_skip(run: Path, step: int, batches: list[Batch], skipped: int, limit: int) -> None:
    """Write down the rows of a step that was not applied; stop after `limit` in a row."""
    rows = [i for batch in batches for i in batch.row_ids]
    path = run / f"skipped-rank{dist.rank()}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")
    if skipped >= limit:
        raise InputError(
            f"{skipped} steps in a row, the last {step}, had gradients that are not finite; their "
            f"rows are in {path.with_name('skipped-rank*.jsonl')}; lower --learning-rate or look "
            "at those rows, then continue with --resume auto"
        )
