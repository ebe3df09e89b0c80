"""What must come of a case of `fuzz_bases`, checked with plain Transformers.

Shapes: T tokens of a text, V vocabulary.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bases_cases import N_TOKENS, Case
from bases_causes import Base
from torch import Tensor
from transformers import AutoModelForCausalLM

from gem_ds import layout
from gem_ds.attention import forward, registry
from gem_ds.checkpoints import checkpoint
from gem_ds.inference.gem_model import GemModel
from gem_ds.model import kl_reference, language_model
from gem_ds.shards.dataset import Shards

TEXTS = [list(range(3, 30)), [0, *range(389, 250, -3)], [0, 17, 300, 17, 300, 5]]
WORDS = [
    "A short text.",
    "x",
    "The words of this text are many; they go on and on, and so it is a longer one by far.",
]
NTP = {False: 1e-3, True: 5e-2}  # how far a loss may be off, in fp32 and in bf16
COSINE = 0.99999
MOVED = 0.03  # by two steps, with the rounding of bf16
LONGEST_MESSAGE = 900


class Fault(AssertionError):  # noqa: N818
    """What a case shows to be wrong."""


def message_of(log: str) -> str:
    """The one line that says what is wrong."""
    lines = [line for line in log.splitlines() if line.startswith("error")]
    if "Traceback (most recent call last)" in log:
        last = [line for line in log.splitlines() if line.strip()][-1]
        raise Fault(f"traceback: {last[:200]}")
    if len(lines) != 1:
        raise Fault(f"{len(lines)} lines begin with error; the last line: {log.strip()[-200:]!r}")
    if len(lines[0]) > LONGEST_MESSAGE:
        raise Fault(f"an error of {len(lines[0])} characters: {lines[0][:200]}")
    return lines[0]


def check_refusal(message: str, base: Base) -> str:
    """The cause that a refusal names. Raises `Fault` where it names none that is there."""
    for cause in reversed(base.causes):
        if any(word.lower() in message.lower() for word in cause.words):
            return cause.what
    if base.causes:
        names = ", ".join(cause.what for cause in base.causes)
        raise Fault(f"refused for another reason than {names}: {message}")
    raise Fault(f"refused though nothing is wrong: {message}")


def check_trained(case: Case, base: Base, run: Path, export: Path, shards: Path) -> None:
    """Raises `Fault` where what was trained and exported is not what stock Transformers has."""
    must = [cause.what for cause in base.causes if cause.must]
    if must:
        raise Fault(f"trained in spite of: {', '.join(must)}")
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    stock, missing = _stock(base.folder, dtype)
    if missing:
        raise Fault(f"trained from a base that lacks {missing[:3]}")
    exported, missing = _stock(export / "model", dtype)
    if missing:
        raise Fault(f"the export lacks {missing[:3]}")
    # Rows behind the tokenizer's tokens only fill up, and summary tokens may take their place.
    n = min(N_TOKENS, stock.get_output_embeddings().weight.shape[0])
    _check_logits(case, stock, exported, n)
    if case.recipe != "lossless":
        _check_own_forward(case, run, export, n)
        if not (case.mixed or case.moves):
            _check_loss(case, exported, run, shards)
    _check_vectors(case, export)


def _stock(folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A model as `AutoModelForCausalLM` loads it, and what its files lack."""
    try:
        lm, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0][:150]
        raise Fault(
            f"stock Transformers does not load {folder.name}: {type(error).__name__}: {first}"
        ) from error
    for parameter in lm.parameters():  # where a file is mapped decides which kernels are taken
        parameter.data = parameter.data.clone()
    return lm.eval(), sorted(told["missing_keys"])


@torch.no_grad()
def _logits(lm: Any, n: int) -> list[Tensor]:
    return [lm(input_ids=torch.tensor([text]), use_cache=False).logits[0, :, :n] for text in TEXTS]


def _check_logits(case: Case, stock: Any, exported: Any, n: int) -> None:
    expected, got = _logits(stock, n), _logits(exported, n)
    far = _difference(expected, got)
    if case.recipe == "lossless" or not case.moves:
        if far != 0:
            raise Fault(f"the export's logits are {far:.2g} from the base's, and none moved")
        return
    if far == 0:
        raise Fault("a rate that moves weights moved no logit")
    weights = exported.state_dict()
    for name, tensor in stock.state_dict().items():
        moved = (
            (tensor[:n] - weights[name][: min(n, len(tensor))]).abs().max() if tensor.ndim else 0
        )
        if not moved <= MOVED:
            raise Fault(f"{name} was moved by {float(moved):.2g}, more than the rate can")


def _difference(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference, NaN where there is one."""
    return max(
        float((a.float() - b.float()).abs().max()) for a, b in zip(some, others, strict=True)
    )


@torch.no_grad()
def _check_own_forward(case: Case, run: Path, export: Path, n: int) -> None:
    """The checkpoint's weights in the forward that trains, against the export in stock."""
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    newest = checkpoint.find(run)
    weights = {
        name: tensor.to(dtype).float() for name, tensor in checkpoint.load_weights(newest).items()
    }
    exported, _ = _stock(export / "model", torch.float32)
    expected = _logits(exported, n)
    lm = AutoModelForCausalLM.from_config(exported.config, dtype=torch.float32).eval()
    wrong = lm.load_state_dict(weights, strict=False)
    if wrong.unexpected_keys:
        raise Fault(f"the checkpoint has weights of no model: {wrong.unexpected_keys[:3]}")
    lm.tie_weights()
    registry.attach(lm)
    got = [_own_logits(lm, text)[:, :n] for text in TEXTS]
    far = _difference(expected, got)
    spread = max(float(x.abs().max()) for x in expected)
    if not far <= 1e-4 * max(1.0, spread):
        raise Fault(f"the export's logits are {far:.2g} from those of the weights as trained")


def _own_logits(lm: Any, text: list[int]) -> Tensor:
    bounds_D4 = np.array([layout.plain(0, len(text))], dtype=np.int32)
    ids_T = np.array(text, dtype=np.int32)
    plain = kl_reference.make_reference(ids_T, bounds_D4, "dense", capacity=len(text))
    return forward.logits(lm, language_model.hidden_states(lm, plain)[: len(text)])


@torch.no_grad()
def _check_loss(case: Case, lm: Any, run: Path, shards: Path) -> None:
    """The first step's loss against the cross-entropy of the row's documents one by one.

    `lm` is what was exported where no weight moved: it has rows of the summary tokens, as the run.
    """
    rows = Shards(shards)
    assert len(rows) == 1, "its order would matter"
    row = rows.read(0)
    total, n = 0.0, 0
    for start, *_, end in row.bounds.tolist():
        text = torch.from_numpy(row.input_ids[start:end].astype(np.int64))[None]
        logits_TV = lm(input_ids=text, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits_TV, text[0, 1:], reduction="sum"))
        n += len(logits_TV)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    if first["data/targets"] != n:
        raise Fault(f"the first step had {first['data/targets']} targets, the row has {n}")
    if not abs(first["loss/ntp"] - total / n) < NTP[case.bf16]:
        raise Fault(f"ntp of step 0 is {first['loss/ntp']:.4f}, stock's {total / n:.4f}")


@torch.no_grad()
def _check_vectors(case: Case, export: Path) -> None:
    """A vector is the same alone and beside others, and what stock has at the summary token."""
    gem = GemModel.from_pretrained(export, device="cpu", dtype=torch.float32)
    together = gem.encode(WORDS)
    for i, text in enumerate(WORDS):
        alone = gem.encode(text)
        if not float(alone @ together[i]) > COSINE:
            raise Fault(
                f"a vector has a cosine of {alone @ together[i]:.5f} to itself, beside others"
            )
    if case.recipe == "lossless" or case.k > 1:
        return
    stock, _ = _stock(export / "model", torch.float32)
    ids = [*gem.vocab.backend.encode(WORDS[0]).ids, *gem.gem.summary_tokens]
    state = stock.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0][0, -1]
    cosine = float(F.normalize(state, dim=0).numpy() @ together[0])
    if not cosine > COSINE:
        raise Fault(f"a vector has a cosine of {cosine:.5f} to the state that stock has for it")


def shortened(text: str) -> str:
    """A message without folders."""
    return re.sub(r"/\S*/", "", text)
