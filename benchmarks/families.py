"""Every causal language model family of the installed Transformers against the GEM attention.

    python benchmarks/families.py
    python benchmarks/families.py lfm2 qwen3_5_text

A family is built as a tiny random model without dropout; what begins as zeros or ones is random
too. It is ``refused`` in a sentence, or ``ok``: packed documents have the logits that stock
Transformers gives one of them by itself, with eager attention, and a changed token of one document
moves nothing of another. WRONG and CRASH are what must not be, and the exit status is 1 then;
``not tried`` has no tiny model here.

Shapes: T tokens in the stream, D documents, V vocabulary.
"""

import signal
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from tiny_families import randomize, silence, tiny_config, tiny_model
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from gem_ds import layout
from gem_ds.attention import forward, registry
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser
from gem_ds.layout import END, START
from gem_ds.model import language_model
from gem_ds.model.kl_reference import Reference

BOUNDS_D4 = np.array(
    [[0, 7, 8, 14], [14, 23, 23, 23], [23, 27, 28, 28], [28, 29, 30, 35]], dtype=np.int32
)
START_OF, END_OF = BOUNDS_D4[1, START], BOUNDS_D4[1, END]  # the plain document
SECONDS = 60
FAR, LEAK = 1e-4, 1e-6  # most of the largest logit that a plain document and another may differ


class TooLongError(Exception):
    """A family took more than its time."""


def _stop(*_: Any) -> None:
    raise TooLongError


def stock_logits(lm: Any, ids: Tensor) -> Tensor:
    """(T, V) logits of one text as stock Transformers computes them."""
    if getattr(lm, "_supports_attention_backend", False):
        lm.set_attn_implementation("eager")
    logits: Tensor = lm(input_ids=ids[None], use_cache=False).logits[0]
    return logits


def own_logits(lm: Any, ids: Tensor) -> Tensor:
    """(T, V) logits of the stream of documents in the forward that trains."""
    stream = Reference(
        input_ids=ids[None],
        position_ids=torch.from_numpy(layout.positions(BOUNDS_D4))[None],
        plan=registry.make_plan(BOUNDS_D4, "dense"),
        index=torch.arange(len(ids)),
        n_chunks=1,
    )
    return forward.logits(lm, language_model.hidden_states(lm, stream))


@torch.no_grad()
def verdict(family: str) -> str:
    """What the GEM attention makes of a family, and how far it is off."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (int(BOUNDS_D4[-1, END]),), generator=generator)
    try:
        config = tiny_config(family)
        silence(config.get_text_config())
        lm = tiny_model(config)
        randomize(lm)
        expected = stock_logits(lm, ids[START_OF:END_OF])
    except TooLongError:
        raise
    except Exception as error:
        return f"not tried: {_said(error)}"
    try:
        registry.attach(lm)
        got = own_logits(lm, ids)
        leaks = []
        for place, others in ((0, slice(START_OF, None)), (-1, slice(0, BOUNDS_D4[-1, START]))):
            changed = ids.clone()
            changed[place] = 61
            leaks.append((own_logits(lm, changed)[others] - got[others]).abs().max())
    except TooLongError:
        raise
    except InputError as error:
        return f"refused: {str(error)[:150]}"
    except Exception as error:
        return f"CRASH: {_said(error)}"
    largest = max(1.0, float(expected.abs().max()))
    far = float((got[START_OF:END_OF] - expected).abs().max()) / largest
    leak = float(max(leaks)) / largest
    word = "ok" if far < FAR and leak < LEAK else "WRONG"
    return f"{word}: {far:.1e} from stock, {leak:.1e} moved in other documents"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _stop)
    results = {}
    for family in args.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        signal.alarm(SECONDS)
        try:
            results[family] = verdict(family)
        except TooLongError:
            results[family] = f"not tried: took over {SECONDS} s"
        finally:
            signal.alarm(0)
        print(f"{family:28} {results[family]}", flush=True)
    words = {family: result.split(":")[0] for family, result in results.items()}
    print(", ".join(f"{n} {word}" for word, n in Counter(words.values()).most_common()))
    bad = [family for family, word in words.items() if word in ("WRONG", "CRASH")]
    if bad:
        sys.exit(f"error: WRONG or CRASH: {', '.join(bad)}")


if __name__ == "__main__":
    run(main)
