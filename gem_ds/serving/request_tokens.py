"""What requests give, as ids: texts to embed, prompts and chats, and how much room they leave.

Text never becomes a control token; ids are taken as they are, as far as the vocabulary goes. What
costs is behind a check of its size. Nothing here needs the model itself or torch, since
`reader_processes` does it in processes of their own.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gem_ds.corpus import chat_template, tokenization
from gem_ds.corpus.chat_template import Chat
from gem_ds.corpus.records import Skip
from gem_ds.corpus.tokenization import Ids
from gem_ds.errors import InputError
from gem_ds.inference import long_texts
from gem_ds.serving.config import CUT, ServeConfig
from gem_ds.serving.schemas import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse,
)

SHORT = 1 << 15  # characters: a longer text is read bit by bit, until there is no room
COMPLETION_TOKENS = 16  # OpenAI's, where a completion does not say how many
TOO_LONG = "context_length_exceeded"
Call = EmbeddingRequest | CompletionRequest | ChatRequest


@dataclass(frozen=True)
class ModelSizes:
    """What reading requests for a model takes: its tokenizer's folder and its limits, in tokens."""

    folder: Path
    summary_tokens: Ids
    room: int  # of a text to embed
    limit: int  # of a prompt and what is written
    width: int  # dimensions of an embedding


class Asked(NamedTuple):
    """A request that has been read."""

    call: Any  # the `Call` asked for, without its texts
    documents: list[Ids]  # to embed, or prompts
    n_new: list[int]  # the most tokens to write behind each prompt
    n_tokens: int  # that the client gave
    gave_ids: bool


class Inputs:
    """Reads requests for one model."""

    def __init__(self, sizes: ModelSizes, config: ServeConfig) -> None:
        self.vocab = vocab = tokenization.load(sizes.folder)
        self.head = long_texts.head(vocab)
        self.summary = sizes.summary_tokens
        self.room, self.limit, self.width = sizes.room, sizes.limit, sizes.width
        self.config = config
        self.can_chat = chat_template.stored_template(vocab) is not None
        self._chat_of = lru_cache(maxsize=1)(lambda day: Chat.of(vocab, day))

    def read(self, kind: type[Call], body: bytes) -> Asked:
        """The request that a body holds. Raises `ApiError`."""
        call = parse(kind, body)
        check_name(call.model, self.config.served_name)
        if isinstance(call, EmbeddingRequest):
            documents, n_tokens = self.documents(call)
            gave_ids, call.input = _gives_ids(call.input), None
            return Asked(call, documents, [], n_tokens, gave_ids)
        prompts = self.prompts(call)
        n_new = [self._new_tokens(call, prompt) for prompt in prompts]
        n_tokens = sum(map(len, prompts))
        if isinstance(call, ChatRequest):
            call.messages = []
            return Asked(call, prompts, n_new, n_tokens, False)
        gave_ids, call.prompt = _gives_ids(call.prompt), None
        return Asked(call, prompts, n_new, n_tokens - len(self.head) * len(prompts), gave_ids)

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
        template. Raises `ApiError`."""
        if isinstance(request, ChatRequest):
            return [self._chat(request)]
        given = self._ids(request.prompt, "prompt", self.limit, request.n or 1)
        return [np.concatenate([self.head, ids]) for ids in given]

    def _chat(self, request: ChatRequest) -> Ids:
        if not self.can_chat:
            raise ApiError(
                400,
                "this model's tokenizer has no chat template, so it cannot chat; "
                "send the content as a prompt to /v1/completions",
                "messages",
            )
        if len(request.messages) > self.limit:  # each has a token at least
            raise self._too_long()
        messages = [message.plain() for message in request.messages]
        if not messages[-1]["content"]:
            raise ApiError(400, "the last message is empty; say something in it", "messages")
        whole = "".join(message["content"] for message in messages)
        if len(whole) > SHORT and len(self._long(whole, self.limit)) > self.limit:
            raise self._too_long()
        try:
            return self._chat_of(datetime.date.today().isoformat()).prompt(messages)
        except Skip as reason:
            raise ApiError(400, f"these messages make no prompt: {reason}", "messages") from None
        except InputError as error:
            raise ApiError(400, f"this model cannot chat: {error}", "messages") from None

    def _too_long(self) -> ApiError:
        return ApiError(
            400,
            f"the messages have more than {self.limit} tokens, which is what this model has "
            "room for; shorten them",
            "messages",
            TOO_LONG,
        )

    def _new_tokens(self, request: CompletionRequest | ChatRequest, prompt: Ids) -> int:
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

    def _ids(self, value: Any, param: str, room: int, n: int = 1) -> list[Ids]:
        """The ids of each text that a request gives, as text or as ids; of those that have more
        than `room`, some of the ids behind it may be missing."""
        given = [value] if isinstance(value, str) or _are_ids(value) else value
        if not given or not isinstance(given, list):
            raise _no_texts(param)
        if len(given) * n > self.config.max_inputs:
            times = f" times n = {n}" if n > 1 else ""
            raise ApiError(
                400,
                f"{param} has {len(given)} texts{times}, and this server takes at most "
                f"{self.config.max_inputs} at once",
                "n" if n > 1 else param,
            )
        if isinstance(given[0], list):
            most = room + len(self.head) + 1
            found = [self._own(ids[:most], i, param) for i, ids in enumerate(_lists(given, param))]
        else:
            found = self._encoded(_strings(given, param), room)
        empty = next((i for i, ids in enumerate(found) if not len(self.head) + len(ids)), None)
        if empty is not None:
            raise ApiError(400, f"text {empty} of {param} has no tokens; remove it", param)
        return found

    def _encoded(self, texts: Sequence[str], room: int) -> list[Ids]:
        short = [i for i, text in enumerate(texts) if len(text) <= SHORT]
        found = dict(
            zip(short, tokenization.encode(self.vocab, [texts[i] for i in short]), strict=True)
        )
        return [found[i] if i in found else self._long(text, room) for i, text in enumerate(texts)]

    def _long(self, text: str, room: int) -> Ids:
        parts: list[Ids] = []
        for piece in tokenization.pieces(text):
            parts += tokenization.encode(self.vocab, [piece])
            if sum(map(len, parts)) > room:
                break
        return np.concatenate(parts)

    def _own(self, ids: Sequence[Any], i: int, param: str) -> Ids:
        """Ids that the client made, without the bos token in front, which is put there anyway."""
        if not all(type(one) is int for one in ids):
            raise _no_texts(param)
        text = f"text {i} of {param}"
        wrong = next((one for one in ids if not 0 <= one < self.vocab.size), None)
        if wrong is not None:
            raise ApiError(
                400,
                f"{text} has the id {wrong}, and this vocabulary's are from 0 to "
                f"{self.vocab.size - 1}; give ids of this model's tokenizer, or text",
                param,
            )
        if not set(self.summary.tolist()).isdisjoint(ids):
            raise ApiError(400, f"{text} has a summary token, which is put there anyway", param)
        found = np.array(ids, dtype=np.int32)
        return found[len(self.head) :] if np.array_equal(found[:1], self.head) else found


def check_name(name: str, served_name: str) -> None:
    """Raise `ApiError` where a request names another model."""
    if name != served_name:
        raise ApiError(
            404,
            f"there is no model {name[:100]!r} here; this server has {served_name!r}",
            "model",
            "model_not_found",
        )


def _gives_ids(value: Any) -> bool:
    return _are_ids(value) or (isinstance(value, list) and isinstance(value[0], list))


def _are_ids(value: Any) -> bool:
    """Whether a value is one text's ids, as far as the first one says."""
    return isinstance(value, list) and bool(value) and type(value[0]) is int


def _strings(given: Sequence[Any], param: str) -> Sequence[str]:
    """The texts of a request, all of them strings that have some characters."""
    if not all(isinstance(text, str) for text in given):
        raise _no_texts(param)
    if "" in given:
        raise ApiError(400, f"text {given.index('')} of {param} is empty; remove it", param)
    return given


def _lists(given: Sequence[Any], param: str) -> Sequence[Any]:
    """The texts of a request, all of them lists of ids that have some."""
    if not all(isinstance(ids, list) for ids in given):
        raise _no_texts(param)
    if not all(given):
        raise ApiError(400, f"{param} has a list that is empty; remove it", param)
    return given


def _no_texts(param: str) -> ApiError:
    return ApiError(
        400, f"{param} must be a text, token ids, or a list of either, and not an empty one", param
    )
