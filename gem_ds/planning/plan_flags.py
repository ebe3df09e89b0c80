"""The flags of ``launch/plan.py``, and the job and ways that they stand for."""

import argparse
import math
from dataclasses import replace
from typing import Any, Literal, cast

from gem_ds import hardware
from gem_ds.errors import InputError
from gem_ds.flags import Parser, real, whole
from gem_ds.model import architecture
from gem_ds.planning.expected_batch import Data, Views
from gem_ds.planning.plan import Fixed, best
from gem_ds.planning.speed import Cluster
from gem_ds.planning.strategy import OFFLOADS, Job, Offload, Plan
from gem_ds.shards.manifest import Manifest
from gem_ds.training.config import AUTO, TrainConfig
from gem_ds.training.deepspeed_config import read_json
from gem_ds.training.recipes import DEFAULT, RECIPES

SIZE = real(0, 1e6, above=True)


def parser(description: str) -> Parser:
    """All flags, with their help."""
    made = Parser(description)
    add = made.add_argument
    add("--model", required=True, help=f"folder, config.json or {', '.join(architecture.BUILT_IN)}")
    machine = made.add_argument_group("machines").add_argument
    machine("--gpu", choices=hardware.GPUS, default="h100", help="whose figures are the defaults")
    machine("--gpus", type=whole(1, 10**6), default=8, metavar="N", help="in all; default 8")
    machine("--gpus-per-node", type=whole(1, 1000), default=8, metavar="N", help="default 8")
    machine("--gpu-memory", type=SIZE, metavar="GIB", help="of a GPU")
    machine(
        "--host-memory",
        type=real(0, 1e6),
        default=0.0,
        metavar="GIB",
        help="of a machine; unlimited",
    )
    machine("--peak", type=SIZE, metavar="TFLOPS", help="of a GPU, dense bf16")
    machine("--hbm", type=SIZE, metavar="GBPS", help="bandwidth of a GPU's memory")
    machine("--inside", type=SIZE, metavar="GBPS", help="of a GPU to others of its machine")
    machine("--outside", type=SIZE, metavar="GBPS", help="of a GPU to other machines")
    machine("--host", type=SIZE, metavar="GBPS", help="of a GPU to its host")
    what = made.add_argument_group("what is trained, as for launch/train.py").add_argument
    what("--recipe", choices=RECIPES, default=DEFAULT, help=f"default {DEFAULT}")
    what("--adapter", choices=("none", "summary", "everywhere"), help="default: the recipe's")
    what("--lora-rank", type=whole(1, 10**5), metavar="R", help="default: the recipe's")
    what("--alpha", type=real(0, 1), metavar="A", help="default: the recipe's")
    what("--kl-to-base", type=real(0, 1000), metavar="W", help="default: the recipe's")
    what("--positives", metavar="KINDS", help="default: the recipe's")
    what("--rows-per-step", type=whole(1, 10**6), default=32, metavar="N", help="default 32")
    data = made.add_argument_group("data").add_argument
    data("--shards", metavar="FOLDER", help="finished shards, instead of the following four")
    data(
        "--row-length", type=whole(1, 2**24), default=2048, metavar="N", help="tokens; default 2048"
    )
    data(
        "--document-length",
        type=real(1, 2**24),
        metavar="N",
        help="mean tokens; default 512, or a row",
    )
    data("--gem-share", type=real(0, 1), default=0.2, metavar="S", help="of documents; default 0.2")
    data("--summary-tokens", type=whole(0, 1000), default=8, metavar="K", help="default 8")
    how = made.add_argument_group("how; what is left out is chosen").add_argument
    how("--deepspeed", metavar="JSON", help="a file of this kind instead of stage and offload")
    how("--zero-stage", type=whole(2, 3), help="of ZeRO")
    how("--offload", choices=OFFLOADS, help="to the host: nothing, the optimizer, weights too")
    how(
        "--rows-per-micro-batch",
        type=whole(1, 10**6),
        metavar="N",
        help="packed rows a GPU computes at once",
    )
    how(
        "--checkpoint-every",
        type=whole(0),
        default=1,
        metavar="N",
        help="layers, 0 for none; default 1",
    )
    how("--bf16-states", action="store_true", help="master weights and AdamW's moments in bf16")
    run = made.add_argument_group("the whole run").add_argument
    run("--steps", type=whole(1), metavar="N", help="default: those of launch/train.py")
    run(
        "--tokens",
        type=real(0, 1e15, above=True),
        metavar="N",
        help="instead of steps: of rows, such as 1e9",
    )
    run("--price-per-gpu-hour", type=real(0, 1e6), default=0.0, metavar="P", help="in any currency")
    out = made.add_argument_group("output").add_argument
    out("--json", action="store_true", help="all figures as JSON instead")
    out("--write", metavar="JSON", help="write the DeepSpeed file here")
    out(
        "--write-sbatch",
        metavar="FILE",
        help="write a script that submits the run here; its DeepSpeed file is FILE.json unless "
        "--write or --deepspeed names one",
    )
    return made


def plan_of(args: argparse.Namespace) -> Plan:
    """The best plan for parsed flags."""
    return best(job_of(args), fixed_of(args))


def job_of(args: argparse.Namespace) -> Job:
    """The job that parsed flags describe. Raises `InputError` for what cannot be."""
    _check(args)
    shape = architecture.load(args.model)
    data, documents = _data(args), set()
    if args.shards:
        documents = Manifest.load(args.shards).documents
    if shape.positions and data.row_length > shape.positions:
        raise InputError(
            f"rows of {data.row_length} tokens are longer than the {shape.positions} positions of "
            f"{args.model}; give --row-length {shape.positions} or less"
        )
    config = _config(args, data)
    config.check(1)
    views = Views(
        config.positive_kinds(documents),
        config.crop_lengths(),
        config.crop_every,
        config.pair_lengths(),
        config.prefix_dropout,
    )
    if config.alpha and not data.summary_tokens:
        raise InputError("without summary tokens nothing embeds; give --alpha 0 --adapter none")
    return Job(
        shape,
        Cluster(_gpu(args), args.gpus, args.gpus_per_node),
        data,
        views,
        config,
        args.host_memory,
        args.price_per_gpu_hour,
    )


def fixed_of(args: argparse.Namespace) -> Fixed:
    """What of the way is not open."""
    if args.deepspeed and (args.zero_stage or args.offload or args.bf16_states):
        raise InputError(
            f"--deepspeed {args.deepspeed} settles stage, offload and states; leave out "
            "--zero-stage, --offload and --bf16-states"
        )
    if args.offload == "all" and args.zero_stage == 2:
        raise InputError(
            "--offload all needs weights in parts: give --zero-stage 3, or leave it out"
        )
    if args.bf16_states and args.offload not in (None, "none"):
        raise InputError(
            f"--bf16-states with --offload {args.offload}: DeepSpeed's AdamW in the host keeps its "
            "states in fp32; choose one of the two"
        )
    file = read_json(args.deepspeed) if args.deepspeed else None
    for name in ("zero_optimization", "bf16", "fp16", "data_types"):
        if not isinstance((file or {}).get(name, {}), dict):
            raise InputError(
                f"{args.deepspeed}: {name} is no JSON object; ds_configs/ has examples"
            )
    rows = (file or {}).get("train_micro_batch_size_per_gpu", AUTO)
    if rows != AUTO and not (isinstance(rows, int) and rows >= 1):
        raise InputError(
            f"{args.deepspeed}: train_micro_batch_size_per_gpu is {rows!r}; give a number of "
            'rows, or "auto"'
        )
    return Fixed(
        args.zero_stage,
        cast(Offload | None, args.offload),
        args.rows_per_micro_batch or (None if rows == AUTO else rows),
        args.checkpoint_every,
        args.bf16_states,
        file,
    )


def _check(args: argparse.Namespace) -> None:
    if args.steps and args.tokens:
        raise InputError("--steps and --tokens both say how long the run is; give one of them")
    per_node = args.gpus_per_node
    if args.gpus > per_node and args.gpus % per_node:
        less = args.gpus - args.gpus % per_node
        raise InputError(
            f"--gpus {args.gpus} are no whole machines of {per_node}; give --gpus {less} or "
            f"{less + per_node}, or another --gpus-per-node"
        )


def _data(args: argparse.Namespace) -> Data:
    if args.shards:
        return Data.of(Manifest.load(args.shards))
    length = args.document_length or min(512, args.row_length)
    data = Data(args.row_length, length, args.gem_share, args.summary_tokens)
    data.check()
    return data


def _config(args: argparse.Namespace, data: Data) -> TrainConfig:
    """The training flags: the recipe's, and what was given beside it."""
    given: dict[str, Any] = dict(RECIPES[args.recipe])
    if args.tokens:
        given["steps"] = math.ceil(args.tokens / (args.rows_per_step * data.row_length))
    elif args.steps:
        given["steps"] = args.steps
    for name in ("adapter", "lora_rank", "alpha", "kl_to_base", "positives"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    return TrainConfig(
        shards=args.shards or "",
        output="",
        deepspeed="",
        model=args.model,
        recipe=args.recipe,
        rows_per_step=args.rows_per_step,
        rows_per_micro_batch=1,
        **given,
    )


def _gpu(args: argparse.Namespace) -> hardware.Gpu:
    gpu = hardware.GPUS[args.gpu]
    units: dict[
        str, tuple[Literal["memory", "peak", "hbm", "inside", "outside", "host"], float]
    ] = {
        "gpu_memory": ("memory", 1.0),
        "peak": ("peak", 1e12),
        "hbm": ("hbm", 1e9),
        "inside": ("inside", 1e9),
        "outside": ("outside", 1e9),
        "host": ("host", 1e9),
    }
    for flag, (name, unit) in units.items():
        value = getattr(args, flag)
        if value is not None:
            gpu = replace(gpu, **{name: value * unit})
    return gpu
