"""What requests may say, and what answers look like: OpenAI's, as far as this server has it.

What it does not have is refused in words, except at the value that asks for nothing. JSON is read
strictly: no number in quotes, nothing unknown, no NaN, no half of a surrogate pair.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MOST_CHOICES = 8
MOST_STOPS = 4
COLDEST = 0.001  # colder, logits divided by it may be no numbers
INT64 = 2**63


class ApiError(Exception):
    """A request that is not answered as asked. What the client is told, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


# What requests may only leave out, or give with one of these values, which ask for nothing.
Without = Mapping[str, tuple[Any, ...]]
NOT_HAD = "this server does not have it; leave it out"
NOT_WRITING: Without = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
}

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Object(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
    without: ClassVar[Without] = {}

    @model_validator(mode="before")
    @classmethod
    def _without(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, neutral in cls.without.items():
            value = given.get(name)
            if not any(type(value) is type(one) and value == one for one in (None, *neutral)):
                raise ApiError(400, f"{name}: {NOT_HAD}", name)
        return {name: value for name, value in given.items() if name not in cls.without}


class _Request(_Object):
    model: str
    user: str | None = None  # for the provider's records with others; here it changes nothing


class EmbeddingRequest(_Request):
    """Texts, or their tokens, to embed. `inputs` looks at what they are."""

    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class StreamOptions(_Object):
    """What a stream has beside its texts."""

    without = {"include_obfuscation": (False,)}
    include_usage: bool = False


class _Writing(_Request):
    without = NOT_WRITING
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: str | list[Stop] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _agree(self) -> "_Writing":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true alone")
        if self.temperature and self.temperature < COLDEST:
            raise ValueError(f"temperature must be 0, or {COLDEST:g} or more")
        if isinstance(self.stop, str) and not 0 < len(self.stop) <= 256:
            raise ValueError("stop must have 1 to 256 characters")
        if isinstance(self.stop, list) and len(self.stop) > MOST_STOPS:
            raise ValueError(f"stop can be {MOST_STOPS} words, not {len(self.stop)}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The words that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Writing):
    """A prompt, or several, or their tokens, to go on with."""

    without = {
        **NOT_WRITING,
        "echo": (False,),
        "logprobs": (),
        "suffix": ("",),
        "best_of": (1,),
    }
    prompt: Any


class TextPart(_Object):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Object):
    """What somebody says in a chat."""

    without = {
        **dict.fromkeys(("name", "function_call", "refusal", "audio"), ()),
        **dict.fromkeys(("tool_calls", "annotations"), ([],)),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and content as chat templates know them."""
        whole = self.content if isinstance(self.content, str) else ""
        parts = self.content if isinstance(self.content, list) else []
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": whole + "".join(part.text for part in parts)}


class ChatRequest(_Writing):
    """Messages to answer."""

    without = {
        **NOT_WRITING,
        **dict.fromkeys(("top_logprobs", "audio", "prediction", "reasoning_effort"), ()),
        "logprobs": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none",),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "store": (False,),
    }
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _once(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same; give one")
        return self


Asked = TypeVar("Asked", bound=_Request)


def parse(kind: type[Asked], body: bytes) -> Asked:
    """The request that a body holds; raises `ApiError` with the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:100]
    message = first["msg"].removeprefix("Value error, ")[:300]
    if first["type"] == "extra_forbidden":
        message = NOT_HAD
    raise ApiError(400, f"{place}: {message}" if place else message, param=place or None)


def usage(prompt: int, completion: int | None = None) -> dict[str, int]:
    """What a request used, in tokens."""
    if completion is None:
        return {"prompt_tokens": prompt, "total_tokens": prompt}
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


class Form:
    """How texts are answered: completions and chats differ in names alone."""

    def __init__(self, chat: bool, answer_id: str, model: str) -> None:
        self.chat = chat
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self.kinds = {False: kind, True: "chat.completion.chunk" if chat else kind}
        self.shared = {"id": f"{prefix}-{answer_id}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[tuple[str, str]], used: dict[str, int]) -> dict[str, Any]:
        """The answer, of each choice its text and why it ended."""
        shown = []
        for index, (text, reason) in enumerate(choices):
            message = {"message": {"role": "assistant", "content": text, "refusal": None}}
            content = message if self.chat else {"text": text}
            shown.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
        return {**self.shared, "object": self.kinds[False], "choices": shown, "usage": used}

    def piece(
        self, index: int, text: str, reason: str | None, first: bool = False
    ) -> dict[str, Any]:
        """A piece of a choice's text as a stream has it."""
        role = {"role": "assistant"} if first else {}
        content = {"delta": {**role, "content": text}} if self.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return {**self.shared, "object": self.kinds[True], "choices": [choice]}

    def last(self, used: dict[str, int]) -> dict[str, Any]:
        """The piece of a stream that has its usage."""
        return {**self.shared, "object": self.kinds[True], "choices": [], "usage": used}
