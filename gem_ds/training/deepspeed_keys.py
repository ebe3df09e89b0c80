"""Whether DeepSpeed can read its JSON: the keys, which it ignores if it does not know them, and the
values.

The keys are those of the installed DeepSpeed's own models, and the constants with which it reads
the sections that have none. Filling the JSON is in `deepspeed_config`.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.profiling import constants as profiler
from deepspeed.runtime import constants as c
from deepspeed.runtime.activation_checkpointing import config as activations
from deepspeed.runtime.config import EXPERT_PARALLEL, DeepSpeedConfig, HybridEngineConfig
from deepspeed.runtime.data_pipeline.constants import DATA_EFFICIENCY
from deepspeed.runtime.model_checkpointing import constants as writing
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.swap_tensor import constants as swapping
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION, DeepSpeedZeroConfig
from deepspeed.utils.config import TIMERS, TIMERS_THROUGHPUT, DeepSpeedThroughputTimerConfig
from pydantic import BaseModel, ValidationError

from gem_ds.errors import InputError

# Sections that a run here does not use: of fp16, and what flags set.
_UNUSED = {c.FP16, c.OPTIMIZER, c.SCHEDULER, c.BFLOAT16_OLD}
_ZERO_DEPRECATED = {
    "cpu_offload": '"offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": '"offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": "pin_memory in offload_optimizer or offload_param",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}

# Sections and their keys: a mapping, or None for a section whose content is free or a plain value.
Known = Mapping[str, Any]


def _of_model(model: type[BaseModel]) -> Known:
    """The keys of one of DeepSpeed's models, by their names and aliases."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        inside = [t for t in (info.annotation, *get_args(info.annotation)) if isinstance(t, type)]
        nested = next((t for t in inside if issubclass(t, BaseModel)), None)
        for key in {name, info.alias or name}:
            found[key] = _of_model(nested) if nested else None
    return found


def _values(module: Any, prefix: str) -> dict[str, None]:
    """The keys that a module's constants spell."""
    constants = {n: v for n, v in vars(module).items() if n.startswith(prefix)}
    keys = {
        v: None for n, v in constants.items() if isinstance(v, str) and not n.endswith("DEFAULT")
    }
    return {key: None for key in keys if key.isidentifier()}


def known() -> Known:
    """All keys that DeepSpeed reads, section by section."""
    plain = (
        *(c.TRAIN_BATCH_SIZE, c.TRAIN_MICRO_BATCH_SIZE_PER_GPU, c.GRADIENT_ACCUMULATION_STEPS),
        *(c.MANAGED_GRADIENT_ACCUMULATION, c.STEPS_PER_PRINT, c.GRADIENT_CLIPPING),
        *(c.ZERO_ALLOW_UNTESTED_OPTIMIZER, c.ZERO_FORCE_DS_CPU_OPTIMIZER, c.DISABLE_ALLGATHER),
        *(c.COMMUNICATION_DATA_TYPE, c.SEQ_PARALLEL_COMMUNICATION_DATA_TYPE),
        *(c.PRESCALE_GRADIENTS, c.GRADIENT_PREDIVIDE_FACTOR, c.GRADIENT_ALLREDUCE_OP),
        *(c.DUMP_STATE, c.DISABLE_PYTHON_GC, c.VOCABULARY_SIZE, c.WALL_CLOCK_BREAKDOWN),
        *(c.MEMORY_BREAKDOWN, c.DATALOADER_DROP_LAST, c.USE_DATA_BEFORE_EXPERT_PARALLEL),
        *(c.LOG_LEVEL, "sequence_parallel_size", "data_parallel_size"),
    )
    free = ("autotuning", "pipeline", "datastates_ckpt", DATA_EFFICIENCY, EXPERT_PARALLEL)
    checkpoint = (
        *(c.CHECKPOINT_TAG_VALIDATION, c.LOAD_UNIVERSAL_CHECKPOINT),
        *(c.USE_NODE_LOCAL_STORAGE_CHECKPOINT, writing.CHECKPOINT_SERIALIZATION),
        writing.CHECKPOINT_WRITER,
    )
    parallel = {c.CHECKPOINT_PARALLEL_WRITE_PIPELINE_STAGE: None}
    chosen = {c.TYPE: None, c.LEGACY_FUSION: None, c.OPTIMIZER_PARAMS: None}
    types = (c.GRAD_ACCUM_DTYPE, c.PARAM_DTYPE, c.BUFFER_DTYPE, c.KEEP_IN_FP32_MODULES)
    return {
        **dict.fromkeys((*plain, *free)),
        ZERO_OPTIMIZATION: _of_model(DeepSpeedZeroConfig),
        c.BFLOAT16: _of_model(DeepSpeedBF16Config),
        c.BFLOAT16_OLD: _of_model(DeepSpeedBF16Config),
        c.FP16: _of_model(DeepSpeedFP16Config),
        c.DATA_TYPES: dict.fromkeys(types),
        c.TORCH_AUTOCAST: {
            c.TORCH_AUTOCAST_ENABLED: None,
            c.TORCH_AUTOCAST_DTYPE: None,
            c.TORCH_AUTOCAST_LOWER_PRECISION_SAFE_MODULES: None,
        },
        c.CHECKPOINT: {**dict.fromkeys(checkpoint), c.CHECKPOINT_PARALLEL_WRITE: parallel},
        c.OPTIMIZER: chosen,
        c.SCHEDULER: chosen,
        activations.ACT_CHKPT: dict.fromkeys(activations.ACT_CHKPT_DEFAULT),
        swapping.AIO: dict.fromkeys(_values(swapping, "AIO_")),
        profiler.FLOPS_PROFILER: _values(profiler, "FLOPS_PROFILER_"),
        "comms_logger": _of_model(CommsLoggerConfig),
        "tensorboard": _of_model(TensorBoardConfig),
        "wandb": _of_model(WandbConfig),
        "csv_monitor": _of_model(CSVConfig),
        "comet": _of_model(CometConfig),
        "compile": _of_model(CompileConfig),
        "hybrid_engine": _of_model(HybridEngineConfig),
        "weight_quantization": _of_model(WeightQuantConfig),
        "tensor_parallel": _of_model(TPTrainingConfig),
        TIMERS: {TIMERS_THROUGHPUT: _of_model(DeepSpeedThroughputTimerConfig)},
    }


def check(raw: Mapping[str, Any], name: str) -> None:
    """Raise `InputError` for a key that DeepSpeed does not read or that is deprecated, with what to
    write instead, and for a section that is none."""
    keys = known()
    for path in _unknown(raw, keys):
        raise InputError(f"{name}: {_advice(path)}")
    for section in raw.keys() & {key for key, inside in keys.items() if inside}:
        if not isinstance(raw[section], Mapping):
            raise InputError(
                f"{name}: {section} is {raw[section]!r}; remove it, or write an object"
            )
    for path in ((c.BFLOAT16_OLD,), *((ZERO_OPTIMIZATION, key) for key in _ZERO_DEPRECATED)):
        if path[-1] in (raw if len(path) == 1 else raw.get(ZERO_OPTIMIZATION, {})):
            cure = _ZERO_DEPRECATED.get(path[-1], c.BFLOAT16)
            raise InputError(f"{name}: {'.'.join(path)} is deprecated; write {cure}")


def check_values(resolved: Mapping[str, Any], name: str) -> None:
    """Raise `InputError` for a value that DeepSpeed refuses, and for ZeRO stage 0."""
    # Sizes of batches are checked by `deepspeed_config`; DeepSpeed would compare them with the
    # ranks.
    sizes = (c.TRAIN_BATCH_SIZE, c.GRADIENT_ACCUMULATION_STEPS)
    content = {key: value for key, value in resolved.items() if key not in sizes}
    with refusing(name):
        read = DeepSpeedConfig({**content, c.TRAIN_MICRO_BATCH_SIZE_PER_GPU: 1})
    if not read.zero_optimization_stage:
        raise InputError(
            f"{name} leaves ZeRO off, so that each rank keeps the whole optimizer; write "
            '"zero_optimization": {"stage": 1}, which trains the same, or a higher stage'
        )
    offload = read.zero_config.offload_param
    if offload and offload.device != "none" and read.zero_optimization_stage < 3:
        raise InputError(
            f"{name}: DeepSpeed ignores zero_optimization.offload_param below stage 3; remove it, "
            "or write stage 3"
        )


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turns what DeepSpeed says of its JSON `name` into one sentence."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {error.title} refuses {where}: {first['msg']}") from error
    except RuntimeError:  # memory, or a rank that is lost
        raise
    except Exception as error:  # DeepSpeed raises of every kind
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: DeepSpeed cannot use it: {said}") from error


def check_groups(resolved: Mapping[str, Any], ranks: int, local_ranks: int, name: str) -> None:
    """Raise `InputError` where the groups of hpZ do not divide the ranks of a machine, and all."""
    zero = resolved.get(ZERO_OPTIMIZATION, {})
    group = zero.get("zero_hpz_partition_size", 1)
    if group <= 1:
        return
    if zero.get("stage") != 3:
        raise InputError(f"{name}: zero_hpz_partition_size is of ZeRO stage 3; leave it out")
    if ranks % group or local_ranks % group:
        raise InputError(
            f"{name}: groups of zero_hpz_partition_size {group} do not divide the {local_ranks} "
            f'ranks of this machine and the {ranks} of the run; give {local_ranks}, or "auto"'
        )


def _unknown(node: Any, at: Known | None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(node, Mapping) or at is None:
        return
    for key, value in node.items():
        if key in at:
            yield from _unknown(value, at[key], (*path, key))
        else:
            yield (*path, key)


def _advice(path: tuple[str, ...]) -> str:
    """What to do about a key that is not known."""
    *section, key = path
    here: Any = known()
    elsewhere = [found for found in _paths(here) if found[-1] == key]
    usable = [".".join(found) for found in elsewhere if found[0] not in _UNUSED]
    for part in section:
        here = here[part]
    near = difflib.get_close_matches(key, here, 1, cutoff=0.8 if elsewhere else 0.5)
    shown = ".".join(path)
    if elsewhere and not usable and not near:
        why = "bf16 needs none" if elsewhere[0][0] == c.FP16 else "flags set it"
        return f"remove {shown}: it is of {elsewhere[0][0]}, and {why}"
    if 1 <= len(usable) <= 2:
        cure = f"write it as {' or '.join(usable)}"
    else:
        cure = f"did you mean {near[0]!r}?" if near else "remove it"
    return f"DeepSpeed knows no {shown!r} and would ignore it; {cure}"


def _paths(at: Known, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inside in at.items():
        yield (*path, key)
        if inside is not None:
            yield from _paths(inside, (*path, key))
