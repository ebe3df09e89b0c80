"""Writing text token by token with a Transformers causal language model.

A loop of our own, since what is read may be memories, whose tokens stand at other positions than
their places in the cache, and since a stream of text must be free to wait between two tokens.
Which tokens may be written, and how they are drawn, is Transformers' own. `Written` makes text of
tokens that come one by one: whole characters, and an end at given words.

Shapes: T tokens of a prompt, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest at `temperature` 0, else drawn.

    Drawn is from the likeliest tokens that together have the probability `top_p`; the same `seed`
    on the same machine gives the same text. Raises `InputError` for what cannot be.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature is {self.temperature}, it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, it must be above 0 and at most 1")

    def processors(self, lm: Any) -> LogitsProcessorList:
        """What is done to logits before a token is chosen."""
        found = LogitsProcessorList()
        if suppressed := lm.generation_config.suppress_tokens:
            found.append(SuppressTokensLogitsProcessor(suppressed, device=lm.device))
        if self.temperature:
            found.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_p < 1:
                found.append(TopPLogitsWarper(self.top_p))
        return found


class Chooser:
    """What chooses one text's tokens, one after another, by `choose`."""

    def __init__(self, lm: Any, sampling: Sampling) -> None:
        self.settings = sampling.temperature, sampling.top_p
        self.processors = sampling.processors(lm)
        self.draws = sampling.temperature > 0
        self.generator = torch.Generator(lm.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)


def choose(choosers: Sequence[Chooser], logits_BV: Tensor) -> list[int]:
    """The next token of each of B texts.

    Texts of the same settings have their logits prepared at once, which gives the same; each draws
    from its own generator, so its tokens do not depend on the others.
    """
    tokens = [0] * len(choosers)
    alike: dict[tuple[float, float], list[int]] = {}
    for i, chooser in enumerate(choosers):
        alike.setdefault(chooser.settings, []).append(i)
    none = torch.empty(1, 0, dtype=torch.long)  # no processor looks at what there is already
    for rows in alike.values():
        scores_SV = choosers[rows[0]].processors(none, logits_BV[rows].float())
        if not choosers[rows[0]].draws:
            drawn = scores_SV.argmax(-1).tolist()
        else:
            drawn = [
                int(torch.multinomial(weights_V, 1, generator=choosers[i].generator))
                for i, weights_V in zip(rows, scores_SV.softmax(-1), strict=True)
            ]
        for i, token in zip(rows, drawn, strict=True):
            tokens[i] = token
    return tokens


def end_tokens(lm: Any, vocab: Vocabulary) -> set[int]:
    """What ends a text: the tokenizer's eos token, and those that the model's generation config
    names."""
    named = lm.generation_config.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), vocab.eos_token_id}
    return {int(token) for token in ends if token is not None}


@torch.inference_mode()
def tokens(
    lm: Any, prompt: Ids, cache: Any, position: int, n: int, sampling: Sampling
) -> Iterator[int]:
    """At most `n` tokens that follow the prompt (T,), whose first token stands at `position`.

    `cache` holds what the prompt attends beside itself, and is written in. An end token is
    yielded like any other.
    """
    chooser = Chooser(lm, sampling)
    ids_1T = torch.from_numpy(prompt).long().to(lm.device)[None]
    for _ in range(n):
        places = torch.arange(position, position + ids_1T.shape[1], device=lm.device)[None]
        reading = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        logits_1V = lm(input_ids=ids_1T, position_ids=places, **reading).logits[:, -1]
        (token,) = choose([chooser], logits_1V)
        position += ids_1T.shape[1]
        ids_1T = torch.tensor([[token]], device=lm.device)
        yield token


class Written:
    """What has been written behind a prompt, handed out as soon as it is certain.

    A character is handed out when its last byte has come, and what may be the beginning of a stop
    word when it turns out to be none. Control tokens are no text. Tokens are pushed, since many
    texts may be written at once.
    """

    def __init__(self, vocab: Vocabulary, prompt: Ids, stop: Sequence[str] = ()) -> None:
        self.backend = vocab.backend
        # The prompt is there so that a word after one keeps its space.
        self.stream = DecodeStream(ids=prompt.tolist(), skip_special_tokens=True)
        self.stop = stop
        self.held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What is certain now, with one token more; all before the first stop word, if it came."""
        self.held += self.stream.step(self.backend, token) or ""
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            taken, self.held = self.held[: min(found)], ""
            return taken
        certain = len(self.held) - max((_overlap(self.held, word) for word in self.stop), default=0)
        taken, self.held = self.held[:certain], self.held[certain:]
        return taken

    def end(self) -> str:
        """What may have begun a stop word, when no token comes any more. A character that has only
        begun is left out."""
        taken, self.held = self.held, ""
        return taken


def pieces(written: Written, tokens: Iterable[int], ends: set[int]) -> Iterator[str]:
    """The text of tokens, as soon as it is certain. A token of `ends` ends it, as a stop word does,
    and is not shown."""
    for token in tokens:
        if token in ends:
            break
        if piece := written.add(token):
            yield piece
        if written.stopped:
            return
    if piece := written.end():
        yield piece


def shown(text: str) -> str:
    """A text as a command shows it, which says so where there is nothing to see."""
    return text if text.strip() else "(an empty answer)"


def _overlap(text: str, word: str) -> int:
    """How many of the last characters of a text may be the first of a word."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
