"""A trained model in use: one set of weights that embeds, compresses and writes texts.

Two Transformers models share the weights. One is as stock code reads it, and writes; the other has
this project's attention, and the adapter where the export has one, and reads texts with summary
tokens. So neither has to be switched, and what is written is the exported model's own.

Shapes: N texts, C hidden size, k summary tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from gem_ds.attention import forward
from gem_ds.attention.hf_config import longest_document
from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError
from gem_ds.export.gem_config import GemConfig, open_export
from gem_ds.inference import encoder, generation, long_texts, memories
from gem_ds.inference.encoder import Encoder
from gem_ds.inference.generation import Sampling, Written, pieces
from gem_ds.inference.long_texts import LongTexts
from gem_ds.inference.memory_files import Memory
from gem_ds.inference.quantization import Precision


class GemModel:
    """An exported model. See docs/using.md.

    `lm` is a stock Transformers causal language model and writes; `encoder` embeds, over the same
    weights. `folder` is the ``model/`` that it was read from.
    """

    def __init__(self, lm: Any, vocab: Vocabulary, gem: GemConfig, folder: Path) -> None:
        """`lm` is the model in `folder` as stock Transformers loads it."""
        self.lm = lm.requires_grad_(False).eval()
        self.vocab = vocab
        self.gem = gem
        self.folder = folder
        self._reader = sharing_weights(lm)
        if gem.adapter:
            encoder.put_on_adapter(self._reader, folder)
        self.encoder = Encoder.of_export(forward.body(self._reader), vocab, gem)
        self.max_tokens = self.encoder.max_tokens
        self.fingerprint = gem.fingerprint

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        verify: bool = False,
    ) -> "GemModel":
        """Load an export folder, the ``model/`` in it, or a hub repository of one.

        Without `device` the GPU is taken if there is one; without `dtype` a GPU computes in the
        weights' own and a CPU in float32. With `verify` all files are hashed, as at the first load
        on a machine. Raises `InputError` for what is no export, is not as it was exported, or was
        trained without summary tokens.
        """
        folder, gem = open_export(name, verify)
        lm = encoder.load(folder, device, dtype)
        return cls(lm, tokenization.load(folder), gem, folder)

    def encode(
        self,
        texts: str | Sequence[str],
        prompt: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        batch_tokens: int = 8192,
        max_length: int | None = None,
        long_texts: LongTexts = "cut",
    ) -> npt.NDArray[Any]:
        """(N, C) embeddings, or (C,) of a single text: `Encoder.encode`."""
        vectors_NC = self.encoder.encode(
            [texts] if isinstance(texts, str) else texts,
            batch_tokens,
            max_length,
            truncate_dim=truncate_dim,
            prompt=prompt,
            normalize=normalize,
            precision=precision,
            long_texts=long_texts,
        )
        return vectors_NC[0] if isinstance(texts, str) else vectors_NC

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without bos and summary tokens."""
        return [len(ids) for ids in long_texts.ids_of(self.vocab, texts)]

    def compress(
        self, texts: str | Sequence[str], batch_tokens: int = 8192
    ) -> Memory | list[Memory]:
        """The memory of a text, or of each of several: what its summary tokens hold.

        A text that is longer than the model is cut at its end, which is said on stderr. Raises
        `InputError` as `encode` does, and for a family whose layers do not all keep keys and
        values.
        """
        given = [texts] if isinstance(texts, str) else texts
        summary = self.encoder.summary_tokens
        limit = longest_document(self.lm.config)
        read = long_texts.read(self.vocab, given, summary, limit)
        if not read.documents:
            return []
        at_once = self.encoder.at_once(batch_tokens)
        kept = memories.compress(
            self._reader, read.documents, len(summary), self.gem.summary_attention, at_once
        )
        positions, next_tokens = kept.positions_D.tolist(), kept.next_tokens_D.tolist()
        found = [
            Memory(
                tuple(x[d].clone() for x in kept.keys),
                tuple(x[d].clone() for x in kept.values),
                int(read.lengths_N[d]),
                positions[d],
                next_tokens[d],
                self.fingerprint,
            )
            for d in range(len(given))
        ]
        return found[0] if isinstance(texts, str) else found

    def generate(
        self,
        prompt: str | Ids,
        memories: Sequence[Memory] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> str:
        """What the model writes behind a prompt: all pieces of `stream`."""
        options = (max_new_tokens, temperature, top_p, stop, seed)
        return "".join(self.stream(prompt, memories, *options))

    def stream(
        self,
        prompt: str | Ids,
        memories: Sequence[Memory] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The same piece by piece, each of whole characters.

        The prompt is text, in which control tokens are text, or ids that are taken as they are, of
        a chat template say. It has the bos token in front, or reads memories instead: then it
        attends these and itself, as a suffix does in training. Each memory's keys stay at the
        positions of their own text, and the prompt begins behind the longest of these; their order
        does not matter.

        It ends at an end token, a stop string, which is left out, `max_new_tokens`, or where the
        model has no more positions. Drawn is as `generation.Sampling` says. Raises `InputError` at
        once for a prompt without tokens or room, or a memory of another model.
        """
        sampling = Sampling(temperature, top_p, seed)
        stop = [stop] if isinstance(stop, str) else stop
        if not all(stop):
            raise InputError("a stop string is empty; leave it out")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
        ids = self._prompt(prompt, bos=not memories)
        cache, position = self._remembered(memories)
        limit = longest_document(self.lm.config)
        room = limit - position - len(ids)
        if room < 0:
            raise InputError(
                f"the prompt has {len(ids)} tokens, and the model has room for {limit - position}"
                f"{' behind these memories' if memories else ''}; shorten it"
            )
        n = min(max_new_tokens, room + 1)  # the last one is not read any more
        written = generation.tokens(self.lm, ids, cache, position, n, sampling)
        return self._text(ids, written, stop)

    def reconstruct(self, memory: Memory, max_new_tokens: int | None = None) -> str:
        """The text that a memory is of, as far as it can be written from it alone.

        Greedily, as many tokens as the text had (paper, Appendix B), or until it ends itself.
        """
        n = memory.n_tokens if max_new_tokens is None else max_new_tokens
        if n < 1:
            return ""
        cache, position = self._remembered([memory])
        first = np.array([memory.next_token], dtype=np.int32)
        more = generation.tokens(self.lm, first, cache, position, n - 1, Sampling())
        written = chain([memory.next_token], more)
        return "".join(self._text(np.array([], dtype=np.int32), written, ()))

    def _prompt(self, prompt: str | Ids, bos: bool) -> Ids:
        if isinstance(prompt, str):
            (ids,) = long_texts.ids_of(self.vocab, [prompt])
            if bos:
                ids = np.concatenate([long_texts.head(self.vocab), ids])
        else:
            ids = np.asarray(prompt, dtype=np.int32)
        if not len(ids):
            raise InputError(
                "the prompt is empty; give it a token, or have a memory written out by reconstruct"
            )
        return ids

    def _remembered(self, given: Sequence[Memory]) -> tuple[DynamicCache, int]:
        """A cache that holds the memories, and the position behind them."""
        if not given:
            return DynamicCache(config=self.lm.config), 0
        for memory in given:
            if memory.model != self.fingerprint:
                raise InputError(
                    f"this memory was made by another model ({memory.model[:12]}) than the one in "
                    f"{self.folder} ({self.fingerprint[:12]}); compress its text with this one"
                )
        layers = [
            tuple(torch.cat(x, 1)[None].to(self.lm.device, self.lm.dtype) for x in layer)
            for layer in zip(
                zip(*(m.keys for m in given), strict=True),
                zip(*(m.values for m in given), strict=True),
                strict=True,
            )
        ]
        # Without the config: what a window hides is the masks' business.
        return DynamicCache(layers), max(m.position for m in given)

    def _text(self, before: Ids, tokens: Iterator[int], stop: Sequence[str]) -> Iterator[str]:
        ends = generation.end_tokens(self.lm, self.vocab)
        return pieces(Written(self.vocab, before, stop), tokens, ends)


def sharing_weights(lm: Any) -> Any:
    """Another model like this one, of the same tensors."""
    memo = {id(x): x for x in (*lm.parameters(), *lm.buffers())}
    return copy.deepcopy(lm, memo)
