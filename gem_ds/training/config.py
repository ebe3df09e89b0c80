"""What a training run is told: flags as a dataclass.

It owns batch, steps, rates, data and objective; the rest is `deepspeed_config`'s. Only `trainer`
and the scripts see these objects.
"""

from argparse import ArgumentTypeError
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gem_ds.errors import STOPPED, InputError
from gem_ds.flags import SEEDS, Range, check, real, whole
from gem_ds.model.positives import Kind
from gem_ds.shards.documents import PAIR
from gem_ds.training.recipes import DEFAULT

AUTO = "auto"
# Rates times the hidden size: 2e-3 and 3e-4 were found at a width of 320 (docs/log.md); at 4096
# they are 1.6e-4 and 2.4e-5.
ADAPTER_RATE, FULL_RATE = 0.64, 0.1
MOST_STEPS = 10**7  # `trainer` gives each step 2^16 seeds of the 2^40 that a run has
SHARE, BELOW_1 = real(0, 1), real(0, 1, below=True)
# What a rate is too high for shows in the gradients: see --max-skipped-steps.
RATE, SCALE, ABOVE_0 = (real(0, most, above=True) for most in (1e30, 1000, 1e9))


def _flag(help: str, default: Any = ..., allowed: Range | None = None) -> Any:
    given = {} if default is ... else {"default": default}
    return field(metadata={"help": help, "range": allowed}, **given)


@dataclass(frozen=True)
class TrainConfig:
    """Flags of ``launch/train.py``. Rates are per step; sizes in rows or tokens as named."""

    shards: str = _flag("folder written by data_prep/shard.py")
    output: str = _flag("folder of the run: checkpoints, logs, resolved configuration")
    deepspeed: str = _flag("DeepSpeed JSON, for example ds_configs/zero3.json")
    model: str | None = _flag("base model: hub name or folder", None)
    config: str | None = _flag("instead of --model: a model config, trained from scratch", None)
    recipe: Literal["paper", "keep", "lossless"] = _flag(
        "defaults of other flags, see docs/recipes.md", DEFAULT
    )

    steps: int = _flag("optimizer steps of the whole run", 1000, whole(1, MOST_STEPS))
    rows_per_step: int = _flag(
        "packed rows a step, over all ranks and micro-batches", 32, whole(1, 10**6)
    )
    rows_per_micro_batch: int = _flag("packed rows a rank computes at once", 1, whole(1, 10**6))
    seed: int = _flag("of row order, views and new weights", 0, whole(0, SEEDS))

    learning_rate: float | None = _flag(
        "peak rate of next-token prediction (alpha = 0); default: by the model's width C, 0.64 / C "
        "of adapters and 0.1 / C of all weights",
        None,
        RATE,
    )
    contrastive_learning_rate: float | None = _flag(
        "peak rate of the contrastive loss (alpha = 1); default: that of next-token prediction",
        None,
        RATE,
    )
    warmup_steps: int = _flag("linear warm-up", 20, whole(0))
    final_rate: float = _flag("share of the rate that the cosine decays to", 0.1, SHARE)
    weight_decay: float = _flag("AdamW, on matrices only", 0.0, SHARE)
    beta1: float = _flag("AdamW", 0.9, BELOW_1)
    beta2: float = _flag("AdamW", 0.95, BELOW_1)
    max_grad_norm: float = _flag("gradient clipping", 1.0, ABOVE_0)

    alpha: float = _flag("final weight of the contrastive loss (the paper's: 1)", 0.5, SHARE)
    alpha_start: int = _flag("steps before the contrastive loss begins", 100, whole(0))
    alpha_ramp: int = _flag(
        "steps over which alpha rises; 0 is a step, as the paper's", 0, whole(0)
    )
    alpha_shape: Literal["linear", "cosine"] = _flag("of that rise", "linear")

    positives: str = _flag(
        "what embeddings are to agree with, one or several of dropout, continuation, pair, crops: "
        "the same prefix with tokens dropped; its suffix; its answer; two spans of any text; auto "
        "is crops, and pair where the shards have pairs",
        AUTO,
    )
    prefix_dropout: float = _flag(
        "share of prefix tokens dropped (positives dropout)", 0.2, BELOW_1
    )
    crop_tokens: str = _flag("least and most tokens of a span (positives crops)", "16-64")
    crop_every: int = _flag(
        "tokens of text for each pair of spans, at least one a text", 128, whole(1)
    )
    pair_tokens: str = _flag(
        "least and most tokens of either side of a pair; a longer one is cut (positives pair)",
        "32-256",
    )
    negatives: Literal["views", "all"] = _flag(
        "what an anchor is told from: the others' views (the paper's), or their anchors too, and "
        "views likewise",
        "views",
    )
    temperature: float = _flag("initial scale of the cosines", 20.0, SCALE)
    learn_temperature: bool = _flag("learn that scale", True)
    least_temperature: float = _flag("the scale is clamped to no less", 1.0, SCALE)
    most_temperature: float = _flag("the scale is clamped to no more", 100.0, SCALE)
    aggregation: Literal["mean", "concat", "last"] = _flag(
        "what an embedding is of the states at its summary tokens", "mean"
    )
    matryoshka: str = _flag(
        "dimensions, as 64,128,256, that embeddings can be cut to: trained on the cut ones too", ""
    )

    kl_to_base: float = _flag(
        "weight of the KL of plain text and prefixes to --model; 0 is off", 0.0, real(0, 1000)
    )

    attention: Literal["auto", "dense", "sdpa", "varlen", "flex"] = _flag(
        "attention backend; auto takes the fastest that this model and device allow", "auto"
    )
    summary_attention: Literal["isolated", "causal"] = _flag(
        "whether a summary token attends earlier ones (causal) or not (the paper's)", "isolated"
    )
    disable_dropout: bool = _flag(
        "set all dropout of the base to 0, in what is exported too; a base with dropout is refused "
        "without it",
        False,
    )
    gradient_checkpointing: bool = _flag("recompute activations in the backward pass", True)
    checkpoint_every: int = _flag(
        "of so many layers one is recomputed, the others are kept", 1, whole(1)
    )
    keep_products: bool = _flag(
        "keep the results of matrix products and attention, and recompute the rest", False
    )
    offload_activations: bool = _flag(
        "what a recomputed layer keeps waits in the host's memory; needs a GPU", False
    )
    compile: bool = _flag(
        "norms and MLPs as kernels by torch.compile: faster on a GPU, after slower first steps",
        False,
    )
    liger: bool = _flag(
        "norms, rotary positions and MLPs as kernels of the package liger-kernel; needs a GPU",
        False,
    )

    adapter: Literal["none", "summary", "everywhere"] = _flag(
        "none trains all weights; else they are frozen and LoRA is trained, switched on at summary "
        "tokens alone (other tokens are computed as in the base) or everywhere",
        "none",
    )
    lora_rank: int = _flag("of the adapters", 16, whole(1, 10**5))
    lora_alpha: float = _flag("the adapters are scaled by lora_alpha / lora_rank", 32.0, ABOVE_0)

    save: bool = _flag(
        "write checkpoints; false keeps nothing of a run that only measures speed and memory", True
    )
    save_every: int = _flag(
        "steps between checkpoints; the last step is always saved", 500, whole(1)
    )
    save_minutes: float = _flag(
        "and whenever so many have passed since the last one began; 0 leaves it to --save-every",
        0.0,
        real(0, 1e6),
    )
    keep_last: int = _flag("newest checkpoints kept", 2, whole(1))
    keep_every: int = _flag("and those of every so many steps; 0 keeps no others", 0, whole(0))
    background_save: bool = _flag(
        "write checkpoints while training goes on, from a copy in the host's memory", True
    )
    resume: Literal["auto", "never"] = _flag(
        "auto continues from the run's latest checkpoint, where there is one, also on another "
        "number of processes or with another ZeRO stage",
        "never",
    )
    rehearse: bool = _flag(
        "compute the longest of the coming rows before the first step, to see that memory suffices",
        True,
    )
    max_skipped_steps: int = _flag(
        "stop after so many steps in a row without finite gradients", 5, whole(1)
    )
    timeout_minutes: float = _flag(
        "after which a run that does not move ends, and says which rank kept it", 10.0, ABOVE_0
    )
    stop_status: int = _flag(
        "exit status of a run that SIGTERM, SIGUSR1 or Ctrl-C stopped, with a checkpoint",
        STOPPED,
        whole(0, 255),
    )
    deterministic: bool = _flag(
        "only computations that give the same bits again; slower on a GPU", False
    )
    profile: int = _flag(
        "trace so many steps, from the third on, into profile/ of the run's folder (rank 0)",
        0,
        whole(0),
    )
    local_rank: int = _flag("set by the launcher", -1, whole(-1, 10**6))

    def check(self, world_size: int) -> None:
        """Raise `InputError` for values that contradict each other or leave their range."""
        check(self)
        if bool(self.model) == bool(self.config):
            raise InputError(
                "give either --model (a base to start from) or --config (from scratch)"
            )
        if self.kl_to_base and self.model is None:
            raise InputError(
                f"--kl-to-base {self.kl_to_base} holds a model to its base, and one from scratch "
                "(--config) has none; leave it out, or start from --model"
            )
        if self.adapter != "none" and self.model is None:
            raise InputError(f"--adapter {self.adapter} needs a trained base: give --model")
        if self.kl_to_base and self.adapter == "summary":
            raise InputError(
                "--kl-to-base with --adapter summary holds nothing: text is computed by the base "
                "as it was; leave it out"
            )
        if not self.least_temperature <= self.temperature <= self.most_temperature:
            raise InputError(
                f"--temperature {self.temperature} is out of range: --least-temperature is "
                f"{self.least_temperature} and --most-temperature {self.most_temperature}"
            )
        how = self.checkpoint_every > 1 or self.keep_products or self.offload_activations
        if how and not self.gradient_checkpointing:
            raise InputError(
                "--checkpoint-every, --keep-products and --offload-activations say how to "
                "recompute, and --gradient-checkpointing false recomputes nothing; leave it out"
            )
        if self.compile and (self.liger or self.keep_products):
            raise InputError(
                "--compile goes neither with --liger, which replaces the same, nor with "
                "--keep-products, which sees no product in a compiled MLP; choose one"
            )
        together = self.rows_per_micro_batch * world_size
        if self.rows_per_step % together:
            raise InputError(
                f"--rows-per-step {self.rows_per_step} is no multiple of {together} "
                f"(--rows-per-micro-batch {self.rows_per_micro_batch} on {world_size} ranks); "
                f"choose {-(-self.rows_per_step // together) * together}"
            )

        self.positive_kinds()
        self.crop_lengths()
        self.pair_lengths()
        self.dimensions()

    def rates(self, hidden_size: int) -> tuple[float, float]:
        """Peak learning rates of next-token prediction and of the contrastive loss.

        What is not given falls with the width, as a tuned rate does (muP, arXiv 2203.03466).
        """
        adapted = self.adapter != "none"
        ntp = self.learning_rate or (ADAPTER_RATE if adapted else FULL_RATE) / hidden_size
        return ntp, self.contrastive_learning_rate or ntp

    def positive_kinds(self, documents: Collection[str] = ()) -> tuple[Kind, ...]:
        """The positives, in the order of `model.positives.Kind`, for shards with these
        documents."""
        if self.positives == AUTO:
            return ("pair", "crops") if PAIR in documents else ("crops",)
        asked = [kind.strip() for kind in self.positives.split(",")]
        if set(asked) - set(get_args(Kind)) or len(set(asked)) < len(asked):
            raise InputError(
                f"--positives {self.positives}: give {AUTO}, or one or several of "
                f"{', '.join(get_args(Kind))}"
            )
        return tuple(kind for kind in get_args(Kind) if kind in asked)

    def crop_lengths(self) -> tuple[int, int]:
        """Least and most tokens of a crop."""
        return _lengths("--crop-tokens", self.crop_tokens)

    def pair_lengths(self) -> tuple[int, int]:
        """Least and most tokens that a side of a pair is cut to."""
        return _lengths("--pair-tokens", self.pair_tokens)

    def dimensions(self) -> tuple[int, ...]:
        """The Matryoshka dimensions, ascending."""
        parts = [part for part in self.matryoshka.split(",") if part.strip()]
        try:
            return tuple(sorted({int(whole(1)(part)) for part in parts}))
        except ArgumentTypeError:
            raise InputError(
                f"--matryoshka {self.matryoshka}: give sizes such as 64,128,256"
            ) from None

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a step."""
        return self.rows_per_step // (self.rows_per_micro_batch * world_size)


def _lengths(flag: str, text: str) -> tuple[int, int]:
    try:
        least, most = (int(whole(1)(part)) for part in text.split("-"))
    except (ValueError, ArgumentTypeError):
        least, most = 1, 0
    if least > most:
        raise InputError(f"{flag} {text}: give the least and most tokens, such as 16-64")
    return least, most
