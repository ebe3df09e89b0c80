"""Building a training run: check everything, join the ranks, make the engine, resume.

`trainer` runs the steps.
"""

import logging
import os
import shutil
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch

from gem_ds import distributed, launcher
from gem_ds.attention import registry
from gem_ds.checkpoints import checkpoint, resharding, run_record
from gem_ds.errors import InputError
from gem_ds.model import architecture, layer_options
from gem_ds.model.batch import BatchOptions
from gem_ds.model.loss_normalization import Schedule
from gem_ds.model.positives import PositiveOptions
from gem_ds.shards import verify
from gem_ds.shards.dataset import Shards
from gem_ds.shards.manifest import TOKENIZER, Manifest
from gem_ds.training import compile_lock, deepspeed_keys, run_folder, validation
from gem_ds.training.config import TrainConfig
from gem_ds.training.data_loader import Loader
from gem_ds.training.deepspeed_config import read_json, resolve_deepspeed
from gem_ds.training.engine_factory import build_engine, dtype_of
from gem_ds.training.watchdog import Watchdog

JOINING_MINUTES = 30.0  # to wait for a rank before the first step, while models are loaded


@dataclass(frozen=True)
class Run:
    """A run that is ready to take steps."""

    config: TrainConfig
    device: torch.device
    engine: Any
    loader: Loader
    schedule: Schedule
    state: dict[str, Any]  # what its checkpoints must agree with, and a record
    first_step: int
    watchdog: Watchdog
    shape: architecture.Shape | None  # of the model, where its operations can be counted

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state of its checkpoint after so many steps."""
        return {**self.state, "step": step, "rows": step * self.config.rows_per_step}


def open_run(config: TrainConfig, stack: ExitStack) -> Run:
    """Check everything, join the other ranks, build, and resume where that is asked for.

    What is to be given back when the run ends goes on the stack.
    """
    launcher.join()
    n_ranks, local_ranks = launcher.size(), launcher.local_size()
    config.check(n_ranks)
    shards = Shards(config.shards)
    manifest = shards.manifest
    verify.tokenizer(shards)
    validation.check_objective(config, manifest)
    hf_config = validation.model_config(config, manifest)
    hidden_size = hf_config.get_text_config().hidden_size
    raw = read_json(config.deepspeed)
    deepspeed_keys.check(raw, config.deepspeed)

    def resolve(bf16: bool) -> dict[str, Any]:
        return resolve_deepspeed(raw, config, n_ranks, hidden_size, bf16, local_ranks)

    deepspeed_keys.check_values(resolve(bf16=True), config.deepspeed)
    deepspeed_keys.check_groups(resolve(bf16=True), n_ranks, local_ranks, config.deepspeed)
    with distributed.meeting():
        device = _start_process(config)  # the other ranks are needed from here on
        ds_config = resolve(distributed.computes_bf16(device))
    layer_options.check(config.compile, config.liger, device)
    watchdog = run_folder.enter(config, stack)
    checkpoint_found = run_folder.to_resume(config)
    engine = build_engine(config, ds_config, manifest, hf_config)
    if config.save:
        distributed.same_on_all(lambda: run_folder.check_room(config, engine))
    validation.warn_of_rounding(config, ds_config, engine)
    state = _state(config, manifest, engine)
    first_step = 0
    if checkpoint_found is not None:
        saved = checkpoint.check_agrees(checkpoint_found, state)
        resharding.load(
            engine, checkpoint_found, saved[checkpoint.RECORD], state[checkpoint.RECORD]
        )
        first_step = saved["step"]
        validation.warn_of_other_negatives(config, saved[checkpoint.RECORD])
    backend = registry.choose(config.attention, engine.module.lm, device, dtype_of(ds_config))
    started = run_record.environment()
    if distributed.rank() == 0:
        folder = Path(config.output)
        _copy_tokenizer(shards, folder)
        resolved = {"config": asdict(config), "deepspeed": ds_config, "manifest": manifest.digest}
        run_record.write(folder, first_step, started, {**resolved, "attention": backend})
        precision = str(dtype_of(ds_config)).removeprefix("torch.")
        passes = config.steps * config.rows_per_step / len(shards)
        print(
            f"{run_folder.told(config, first_step)}\n"
            f"{precision} on the {device.type}, attention {backend}, "
            f"{config.summary_attention} summaries\n"
            f"{config.steps:,} steps of {config.rows_per_step:,} rows are "
            f"{passes:{',.1f' if passes >= 10 else '.2g'}} passes over the "
            f"{len(shards):,} rows of {config.shards}",
            flush=True,
        )
    shape = _shape(engine.module.lm)
    loader = Loader(
        shards,
        _batch_options(config, manifest, backend, shape.window if shape else None),
        config.rows_per_step,
        config.rows_per_micro_batch,
        distributed.rank(),
        distributed.world_size(),
        config.seed,
    )
    schedule = _schedule(config, hidden_size)
    return Run(config, device, engine, loader, schedule, state, first_step, watchdog, shape)


def _copy_tokenizer(shards: Shards, folder: Path) -> None:
    """Files, but not their modes, which are those that the umask gives."""
    (folder / TOKENIZER).mkdir(exist_ok=True)
    for path in filter(Path.is_file, (shards.folder / TOKENIZER).iterdir()):
        shutil.copyfile(path, folder / TOKENIZER / path.name)


def _batch_options(
    config: TrainConfig, manifest: Manifest, backend: registry.Backend, window: int | None
) -> BatchOptions:
    return BatchOptions(
        positives=PositiveOptions(
            kinds=config.positive_kinds(manifest.documents),
            prefix_dropout=config.prefix_dropout,
            crop_tokens=config.crop_lengths(),
            crop_every=config.crop_every,
            pair_tokens=config.pair_lengths(),
            summary_tokens=tuple(manifest.summary_tokens),
            bos_token_id=manifest.bos_token_id,
            eos_token_id=manifest.eos_token_id,
        ),
        attention=backend,
        summary_attention=config.summary_attention,
        reference_capacity=config.rows_per_micro_batch * manifest.row_length
        if config.kl_to_base
        else 0,
        frozen_text=config.adapter == "summary",
        window=window,
    )


def _shape(lm: Any) -> architecture.Shape | None:
    """None for a family whose sizes `model.architecture` does not know."""
    config = lm.config.get_text_config().to_dict()
    try:
        return architecture.of_config(config, "this model")
    except InputError:
        return None


def _schedule(config: TrainConfig, hidden_size: int) -> Schedule:
    ntp_rate, contrastive_rate = config.rates(hidden_size)
    return Schedule(
        steps=config.steps,
        warmup=config.warmup_steps,
        ntp_rate=ntp_rate,
        contrastive_rate=contrastive_rate,
        final_rate=config.final_rate,
        alpha=config.alpha,
        alpha_start=config.alpha_start,
        alpha_ramp=config.alpha_ramp,
        alpha_shape=config.alpha_shape,
    )


def _start_process(config: TrainConfig) -> torch.device:
    """Join the other ranks; the device of this one."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launcher.local_size()))
    # Beside the watchdog's timeout, which is for steps.
    minutes = max(JOINING_MINUTES, 2 * config.timeout_minutes)
    try:
        with compile_lock.warning_of_locks():
            deepspeed.init_distributed(timeout=timedelta(minutes=minutes))
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"port {os.environ['MASTER_PORT']} of this machine is in use, by another run perhaps; "
            "choose one: deepspeed --master_port PORT, or MASTER_PORT=PORT without a launcher"
        ) from error
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    _forget_shared_memory()
    return torch.device("cpu")


def _forget_shared_memory() -> None:
    """Remove the name of the 66 MB that each of DeepSpeed's CPU ranks shares with the others.

    Nothing else does, whether a run ends or is killed; what all have mapped stays until then.
    """
    distributed.barrier()
    place = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], distributed.rank()
    name = "_".join(map(str, ("deepspeed_allreduce_buffer", os.getuid(), *place)))
    Path("/dev/shm", name).unlink(missing_ok=True)


def _state(config: TrainConfig, manifest: Manifest, engine: Any) -> dict[str, Any]:
    """What a checkpoint must agree with for this run to continue from it, and a record."""
    shape = engine.module.lm.config.get_text_config()
    adapter = [config.adapter, config.lora_rank, config.lora_alpha]
    return {
        "step": 0,
        "rows": 0,
        "model_type": shape.model_type,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "vocab_size": shape.vocab_size,
        "dtype": str(engine.module.lm.dtype).removeprefix("torch."),
        "summary_tokens": manifest.summary_tokens,
        "summary_attention": config.summary_attention,
        "aggregation": config.aggregation,
        "dimensions": list(config.dimensions()),
        "adapter": None if config.adapter == "none" else adapter,
        "manifest": manifest.digest,
        "rows_per_step": config.rows_per_step,
        "seed": config.seed,
        checkpoint.RECORD: {
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "world_size": distributed.world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            "config": asdict(config),
            "versions": run_record.versions(),
        },
    }
