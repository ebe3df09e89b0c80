"""A Transformers causal language model with summary tokens: building it, and its forward.

The language model stays as it is: attention reaches it through `attention.registry.attach`, and
everything here is beside it. Losses are formed in the forward, so that ZeRO-3's hooks see every use
of a parameter.

Shapes: T tokens in the stream, N targets, A anchors, k summary tokens, C hidden size, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from gem_ds.attention import forward, registry
from gem_ds.attention.two_pass import FirstPass, SecondPass
from gem_ds.corpus.mixture import folded
from gem_ds.errors import InputError, reason
from gem_ds.model import base_model
from gem_ds.model.batch import Batch
from gem_ds.model.contrastive import ContrastiveOptions, aggregate, info_nce
from gem_ds.model.cross_entropy import NextTokenLoss
from gem_ds.model.kl_reference import Base, Reference, kl_to_base
from gem_ds.model.layer_options import Recompute

VOCABULARY_MULTIPLE = 64  # rows of the embedding, for the matrix units
NOISE = 0.02  # of the new rows, relative to the spread of the trained ones


class Sums(NamedTuple):
    """What one micro-batch of one rank adds to the losses and metrics of its step."""

    ntp: Tensor
    kl: Tensor
    contrastive: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor
    scale: Tensor  # no sum: the temperature's present value


def hidden_states(lm: Any, stream: Batch | Reference, rows: "SummaryRows | None" = None) -> Tensor:
    """(T, C) last hidden states of a language model at the tokens of a stream.

    With `rows` these are the summary tokens' embeddings. In a stream of two passes the states of
    the first are not given back: zeros stand for them.
    """
    plan = stream.plan
    split = stream.split if isinstance(stream, Batch) else None
    if split is None or rows is None:
        inputs = {"input_ids": stream.input_ids}
        if rows is not None:
            embedding = lm.get_input_embeddings()
            inputs = {"inputs_embeds": rows(embedding, stream.input_ids, plan.summary_index)}
        return forward.hidden_states(lm, stream.position_ids, plan, **inputs)
    with torch.no_grad():
        first = FirstPass(split, plan)
        places = stream.position_ids[:, split.first]
        forward.hidden_states(lm, places, first, input_ids=stream.input_ids[:, split.first])
    embedded = rows(lm.get_input_embeddings(), stream.input_ids[:, split.rest], split.rest_summary)
    second = SecondPass(split, plan, first.kept)
    places = stream.position_ids[:, split.rest]
    rest_RC = forward.hidden_states(lm, places, second, inputs_embeds=embedded)
    whole_TC = rest_RC.new_zeros(plan.length, rest_RC.shape[1])
    return whole_TC.index_copy(0, split.rest, rest_RC)


class SummaryRows(nn.Embedding):
    """The summary tokens' rows (k, C) of an input embedding that is itself frozen."""

    def forward(self, embedding: Any, input_ids: Tensor, summary_Gk: Tensor) -> Tensor:  # type: ignore[override]
        """(1, T, C) the embedding of `input_ids`, with these rows at the summary tokens."""
        hidden_1TC: Tensor = embedding(input_ids)
        rows_NC = self.weight.expand(len(summary_Gk), -1, -1).flatten(0, 1)
        if hasattr(embedding, "embed_scale"):  # Gemma's
            rows_NC = rows_NC * embedding.embed_scale.to(rows_NC.dtype)
        return hidden_1TC.index_copy(1, summary_Gk.flatten(), rows_NC[None])


class TrainingModel(nn.Module):
    """The language model `lm` and the contrastive loss's learnable temperature.

    `base` is what `lm` is held to, if anything; its parameters are none of this module's. Where the
    language model is frozen, `summary_rows` take the place of its summary tokens' rows.
    """

    def __init__(
        self,
        lm: Any,
        options: ContrastiveOptions | None = None,
        base: Base | None = None,
        summary_rows: SummaryRows | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.options = options or ContrastiveOptions()
        self.base = base
        self.summary_rows = summary_rows
        head = lm.get_output_embeddings()
        self.next_token_loss = NextTokenLoss(head, forward.shaping(lm))
        for parameter in head.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(self.next_token_loss, parameter)
        start = torch.tensor([math.log(self.options.temperature)])
        rounded = start.to(lm.dtype)
        self.log_scale = nn.Parameter(rounded, requires_grad=self.options.learn_temperature)
        self._lost_in_rounding = (start - rounded.float()).item()
        self._master: Tensor | None = None

    def read_temperature(self) -> None:
        """Take the optimizer's fp32 copy of the temperature; all ranks call it before a step."""
        self._master = safe_get_full_fp32_param(self.log_scale)

    def exact_log_scale(self) -> Tensor:
        """(1,) the logarithm of the temperature in fp32, with the gradient of `log_scale`."""
        here = self.log_scale.float()
        master = here.detach() if self._master is None else self._master.float()
        return master + self._lost_in_rounding + (here - here.detach())

    def embed(self, hidden_TC: Tensor, summary_Ak: Tensor) -> Tensor:
        """(A, C) of the last hidden states at each document's summary tokens."""
        flat = hidden_TC.index_select(0, summary_Ak.flatten())
        return aggregate(flat.view(*summary_Ak.shape, flat.shape[-1]), self.options.aggregation)

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """(N, V) next-token logits of hidden states."""
        return forward.logits(self.lm, hidden_NC)

    def kl(self, hidden_TC: Tensor, batch: Batch) -> Tensor:
        """Sum of the KL divergence from the base, 0 without one."""
        if self.base is None or batch.reference is None:
            return torch.zeros((), device=hidden_TC.device)
        hidden_NC = hidden_TC.index_select(0, batch.reference.index)
        return kl_to_base(hidden_NC, batch.reference, self.base, self.logits)

    def save_config(self, folder: Path) -> None:
        """Write the language model's configuration, and how it generates, without weights."""
        self.lm.config.save_pretrained(folder)
        # Not by save_pretrained, which refuses what some published models have here.
        text = self.lm.generation_config.to_json_string(use_diff=True)
        (folder / "generation_config.json").write_text(text)

    def forward(self, batch: Batch) -> Sums:
        """All losses from one pass over the stream.

        Every module runs on every rank in every step, on zero rows where a loss has none: ranks
        that took different paths would wait for each other's parameters for ever, and a parameter
        without a gradient would keep the last one.
        """
        hidden_TC = hidden_states(self.lm, batch, self.summary_rows)
        predicting_NC = hidden_TC.index_select(0, batch.target_index)
        ntp = self.next_token_loss(predicting_NC, batch.targets)
        contrastive = info_nce(
            self.embed(hidden_TC, batch.anchors),
            self.embed(hidden_TC, batch.views),
            batch.names,
            batch.anchors_of_ranks,
            self.exact_log_scale(),
            self.options,
        )
        return Sums(ntp, self.kl(hidden_TC, batch), *contrastive)


def load(
    base: str | Path | None,
    config: Any,
    vocab_size: int,
    new_tokens: Sequence[int],
    recompute: Recompute | None,
    seed: int,
    dtype: torch.dtype,
) -> Any:
    """The base model with rows for the new summary tokens and this project's attention.

    `base` is a hub name or folder, None for a model from scratch; `config` is of
    `base_model.read_config`, for a base after `base_model.check_files`. Under ZeRO-3 (a live
    ``HfDeepSpeedConfig``) no rank ever holds the whole model. `vocab_size` counts the tokenizer's
    tokens, the new ones included. Raises `InputError` for what cannot be loaded or is computed
    otherwise than training takes it (`attention.compatibility`).
    """
    set_seed(folded(seed, 32))  # NumPy's has no more
    if base is None:
        config.vocab_size = _padded(vocab_size)
        lm = _from_scratch(config, dtype)
    else:
        lm = base_model.load(base, dtype, config)
    registry.attach(lm)
    if new_tokens and base is not None:
        try:
            add_rows(lm, vocab_size, min(new_tokens))
        except (NotImplementedError, AttributeError, TypeError) as error:
            raise InputError(
                f"model family {lm.config.model_type!r} takes no new tokens ({reason(error)}); "
                "choose another base"
            ) from error
    if recompute:
        recompute.apply(lm)
    return lm


def _from_scratch(config: Any, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # sizes that do not fit, a family without a head: of any kind
        raise InputError(
            f"no model can be made of this {config.model_type} configuration: {reason(error)}"
        ) from error


def add_rows(lm: Any, vocab_size: int, n_trained: int) -> None:
    """Give the tokens from id `n_trained` on rows in the input and output embeddings.

    The rows are the mean of the trained rows plus a little noise, the same on all ranks: a random
    row among trained ones often never trains. An embedding that already has room (a padded one)
    keeps its size; its untrained rows are written too.
    """
    rows, stated = (
        _size(lm.get_input_embeddings().weight)[0],
        lm.config.get_text_config().vocab_size,
    )
    if rows < vocab_size:
        if rows != stated:
            raise InputError(
                f"model family {lm.config.model_type!r} has {rows} rows in its embedding for a "
                f"vocabulary of {stated}, so there is no adding to it; choose another base"
            )
        lm.resize_token_embeddings(_padded(vocab_size), mean_resizing=False)
    tied = lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    layers = [lm.get_input_embeddings()] + ([] if tied else [lm.get_output_embeddings()])
    for layer in layers:
        with gathered(layer.weight):
            weight_VC = layer.weight.data
            trained = weight_VC[:n_trained].float()
            noise = torch.randn(
                len(weight_VC) - n_trained,
                weight_VC.shape[1],
                generator=torch.Generator().manual_seed(n_trained),
            )
            rows = trained.mean(0) + NOISE * trained.std(0) * noise.to(weight_VC.device)
            if not bool(rows.isfinite().all()):
                raise InputError(
                    "the base's embedding or head has values that are not finite; its files are "
                    "damaged"
                )
            if not bool((rows.norm(dim=1) > 0).all()):
                raise InputError("the base's embedding rows are all zero; its files are damaged")
            weight_VC[n_trained:] = rows.to(weight_VC.dtype)


def summary_rows(lm: Any, summary_tokens: Sequence[int]) -> SummaryRows:
    """The summary tokens' rows as they are in the language model, to be trained beside it."""
    weight = lm.get_input_embeddings().weight
    rows = SummaryRows(len(summary_tokens), _size(weight)[1], device=weight.device, dtype=lm.dtype)
    with gathered(weight), torch.no_grad():
        rows.weight.copy_(weight[list(summary_tokens)])
    return rows


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of what is trained, for AdamW: matrices decay; norms, biases, embeddings and the
    temperature do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        matrix = len(_size(parameter)) > 1 and id(parameter) not in embeddings
        (decayed if matrix else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


@contextmanager
def gathered(*parameters: nn.Parameter) -> Iterator[None]:
    """Within it the parameters are whole on every rank; what rank 0 wrote is kept."""
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def _size(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole parameter's shape, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _padded(vocab_size: int) -> int:
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
