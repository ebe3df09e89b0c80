"""What requests give, as ids: texts to embed, prompts and chats, and how much room they leave.

Text never becomes a control token; ids are taken as they are, as far as the vocabulary goes.
"""

import datetime
import logging
import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gem_ds import chat, long_texts, tokenization
from gem_ds.chat import Chat
from gem_ds.errors import InputError
from gem_ds.hf_config import longest_document
from gem_ds.inference import GemModel
from gem_ds.records import Skip
from gem_ds.serving_config import CUT, ServeConfig
from gem_ds.serving_schemas import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from gem_ds.tokenization import Ids

SHORT = 1 << 15  # characters: a longer text is read bit by bit, until there is no room
COMPLETION_TOKENS = 16  # OpenAI's, where a completion does not say how many
TOO_LONG = "context_length_exceeded"
REMIND_SECONDS = 600.0  # of what is said of token ids, at most once in so many
_log = logging.getLogger("uvicorn.error")  # the server's log


class Inputs:
    """Reads requests for one model."""

    def __init__(self, gem: GemModel, config: ServeConfig) -> None:
        self.vocab = gem.vocab
        self.head = long_texts.head(gem.vocab)
        self.summary = gem.encoder.summary_tokens
        self.room = gem.max_tokens  # of a text to embed
        self.limit = longest_document(gem.lm.config)  # of a prompt and what is written
        self.width = gem.encoder.width
        self.config = config
        self.can_chat = chat.stored_template(gem.vocab) is not None
        self._reminded = -math.inf
        self._chat_of = lru_cache(maxsize=1)(lambda day: Chat.of(gem.vocab, day))

    def documents(self, request: EmbeddingRequest) -> tuple[list[Ids], int]:
        """``bos text | summary`` of each text, and the tokens of all texts. Raises `ApiError`."""
        if request.dimensions is not None and request.dimensions > self.width:
            raise ApiError(
                400,
                f"dimensions is {request.dimensions}, and this model's embeddings have "
                f"{self.width}; ask for so many or fewer",
                "dimensions",
            )
        texts = self._ids(request.input, "input", self.room)
        for i, ids in enumerate(texts):
            if len(ids) > self.room and self.config.long_texts != CUT:
                raise ApiError(
                    400,
                    f"text {i} of input has more than {self.room} tokens, which is what this "
                    "model has room for; shorten or divide it",
                    "input",
                    TOO_LONG,
                )
        texts = [ids[: self.room] for ids in texts]
        documents = [np.concatenate([self.head, ids, self.summary]) for ids in texts]
        return documents, sum(map(len, texts))

    def prompts(self, request: CompletionRequest | ChatRequest) -> list[Ids]:
        """``bos prompt`` of each prompt, or the one that a chat's messages make by the model's
        template, with room for what is to be written. Raises `ApiError`."""
        if isinstance(request, ChatRequest):
            prompts = [self._chat(request)]
        else:
            given = self._ids(request.prompt, "prompt", self.limit)
            prompts = [np.concatenate([self.head, ids]) for ids in given]
        if len(prompts) * (request.n or 1) > self.config.max_inputs:
            raise ApiError(
                400,
                f"{len(prompts)} prompts times n = {request.n or 1} are more texts than the "
                f"{self.config.max_inputs} that this server writes for a request",
                "n",
            )
        for prompt in prompts:
            self.new_tokens(request, prompt)
        return prompts

    def _chat(self, request: ChatRequest) -> Ids:
        if not self.can_chat:
            raise ApiError(
                400,
                "this model's tokenizer has no chat template, so it cannot chat; "
                "send the content as a prompt to /v1/completions",
                "messages",
            )
        messages = [message.plain() for message in request.messages]
        if not messages[-1]["content"].strip():
            raise ApiError(400, "the last message is empty; say something in it", "messages")
        whole = "".join(message["content"] for message in messages)
        if len(whole) > SHORT and len(self._long(whole, self.limit)) > self.limit:
            raise ApiError(
                400,
                f"the messages have more than {self.limit} tokens, which is what this model has "
                "room for; shorten them",
                "messages",
                TOO_LONG,
            )
        try:
            return self._chat_of(datetime.date.today().isoformat()).prompt(messages)
        except Skip as reason:
            raise ApiError(400, f"these messages make no prompt: {reason}", "messages") from None
        except InputError as error:
            raise ApiError(400, f"this model cannot chat: {error}", "messages") from None

    def new_tokens(self, request: CompletionRequest | ChatRequest, prompt: Ids) -> int:
        """The most tokens to write behind a prompt. Raises `ApiError` where they have no room."""
        most, room = self.config.max_new_tokens, self.limit - len(prompt)
        if isinstance(request, ChatRequest):
            asked = request.max_completion_tokens or request.max_tokens
            n = asked or max(min(most, room), 1)
        else:
            n = asked = request.max_tokens or min(COMPLETION_TOKENS, most)
        if n > most:
            raise ApiError(
                400, f"max_tokens is {n}, and this server writes at most {most}", "max_tokens"
            )
        if n > room:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens or more and {n} are to be written, and this "
                f"model has room for {self.limit}; shorten the prompt or max_tokens",
                "messages" if isinstance(request, ChatRequest) else "prompt",
                TOO_LONG,
            )
        return n

    def _ids(self, value: Any, param: str, room: int) -> list[Ids]:
        """The ids of each text that a request gives, as text or as ids; of those that have more
        than `room`, some of the ids behind it may be missing."""
        given = _listed(value, param)
        if len(given) > self.config.max_inputs:
            raise ApiError(
                400,
                f"{param} has {len(given)} texts, and this server takes at most "
                f"{self.config.max_inputs} at once",
                param,
            )
        for i, one in enumerate(given):
            if isinstance(one, str) and not one.strip():
                raise ApiError(400, f"text {i} of {param} is empty; remove it", param)
        short = [i for i, one in enumerate(given) if isinstance(one, str) and len(one) <= SHORT]
        found = dict(
            zip(short, tokenization.encode(self.vocab, [given[i] for i in short]), strict=True)
        )
        if isinstance(given[0], list):
            self._remind()
        for i, one in enumerate(given):
            if i not in found:
                long = isinstance(one, str)
                found[i] = self._long(one, room) if long else self._own(one, f"text {i}", param)
        return [found[i] for i in range(len(given))]

    def _long(self, text: str, room: int) -> Ids:
        parts: list[Ids] = []
        for piece in tokenization.pieces(text):
            parts += tokenization.encode(self.vocab, [piece])
            if sum(map(len, parts)) > room:
                break
        return np.concatenate(parts)

    def _remind(self) -> None:
        """Say in the log that ids must be this model's: no vector or text shows that they are."""
        if time.monotonic() - self._reminded < REMIND_SECONDS:
            return
        self._reminded = time.monotonic()
        _log.warning(
            "a request has token ids instead of text. They must be of this model's tokenizer: "
            "those of another give wrong results without an error. Send text where you can "
            "(langchain-openai: check_embedding_ctx_length=False). This is said at most once in "
            f"{REMIND_SECONDS / 60:g} minutes"
        )

    def _own(self, ids: Sequence[int], text: str, param: str) -> Ids:
        """Ids that the client made, without the bos token in front, which is put there anyway."""
        wrong = next((i for i in ids if not 0 <= i < self.vocab.size), None)
        if wrong is not None:
            raise ApiError(
                400,
                f"{text} of {param} has the id {wrong}, and this vocabulary's are from 0 to "
                f"{self.vocab.size - 1}; give ids of this model's tokenizer, or text",
                param,
            )
        if not set(self.summary.tolist()).isdisjoint(ids):
            raise ApiError(
                400, f"{text} of {param} has a summary token, which is put there anyway", param
            )
        found = np.array(ids, dtype=np.int32)
        return found[len(self.head) :] if np.array_equal(found[:1], self.head) else found


def _listed(value: Any, param: str) -> list[Any]:
    """The texts of a request, each a string or a list of ids that has some."""
    given = [value] if isinstance(value, str) or _are(value, int) else value
    if not given or not (_are(given, str) or _are(given, list)):
        raise ApiError(
            400,
            f"{param} must be a text, token ids, or a list of either, and not an empty one",
            param,
        )
    if isinstance(given[0], list) and not all(ids and _are(ids, int) for ids in given):
        raise ApiError(400, f"{param} has a list that is empty or not of token ids", param)
    listed: list[Any] = given
    return listed


def _are(value: Any, kind: type) -> bool:
    """Whether a value is a list of such values, with something in it."""
    return isinstance(value, list) and bool(value) and all(type(one) is kind for one in value)
