"""What requests may say: OpenAI's interface, as far as this server has it.

A field that is null counts as left out. Fields that change no answer are ignored. An option that
this server does not have is refused with a message, unless its value turns it off
(``"echo": false``). JSON is read strictly: no number in quotes, no unknown option, no NaN, no half
of a surrogate pair. Lists and objects have a greatest length, checked before their content.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    model_validator,
)

MOST_CHOICES = 8
MOST_STOPS = 4
MOST_FIELDS = 200  # of a request
MOST_MESSAGES = 16_384
MOST_PARTS = 4096  # of a message
MOST_CALLS = 128  # of tools, in a message
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
        self.given = status, message, param, code, kind
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }

    def __reduce__(self) -> Any:
        """So that it passes from one process to another."""
        return type(self), self.given


# What requests may only leave out, or give with one of these values, which ask for nothing.
Without = Mapping[str, tuple[Any, ...]]
NOT_HAD = "this server does not have it; leave it out"
NOT_WRITING: Without = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "min_tokens"), (0,)),
    **dict.fromkeys(("best_of", "repetition_penalty", "length_penalty"), (1,)),
    **dict.fromkeys(("ignore_eos", "use_beam_search", "include_stop_str_in_output"), (False,)),
    "top_k": (0, -1),
    "logit_bias": ({},),
    "stop_token_ids": ([],),
    "skip_special_tokens": (True,),
}
# What changes no answer: for a provider's records, caches and queues.
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "parallel_tool_calls"),
        *("priority", "request_id", "cache_salt"),
    }
)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError("give a text, or a list of text parts")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return value


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    value = _without_nulls(value)
    return any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral)


Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=MOST_STOPS), BeforeValidator(_as_list)]


class _Object(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
    without: ClassVar[Without] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _what_counts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MOST_FIELDS:
            raise ApiError(400, f"an object has {len(given)} fields; send at most {MOST_FIELDS}")
        given = {
            name: value
            for name, value in given.items()
            if value is not None and name not in cls.ignored
        }
        for name in cls.without.keys() & given.keys():
            if not _asks_nothing(given.pop(name), cls.without[name]):
                raise ApiError(400, f"{name}: {NOT_HAD}", name)
        return given


class _Request(_Object):
    ignored = IGNORED
    model: str


class EmbeddingRequest(_Request):
    """Texts, or their tokens, to embed. `request_tokens` looks at what they are."""

    without = {"normalize": (True,), "add_special_tokens": (True,)}
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class StreamOptions(_Object):
    """What a stream has beside its texts."""

    without = dict.fromkeys(("include_obfuscation", "continuous_usage_stats"), (False,))
    include_usage: bool = False


class _Writing(_Request):
    without = NOT_WRITING
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Stops = []
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _agree(self) -> "_Writing":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true alone")
        if self.temperature and self.temperature < COLDEST:
            raise ValueError(f"temperature must be 0, or {COLDEST:g} or more")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Writing):
    """A prompt, or several, or their tokens, to go on with."""

    without = {
        **NOT_WRITING,
        "echo": (False,),
        "suffix": ("",),
        "add_special_tokens": (True,),
    }
    prompt: Any


class TextPart(_Object):
    """A piece of a message. What clients put beside its text is for other providers."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: str


class Function(_Object):
    """What an assistant called, and with what."""

    model_config = ConfigDict(extra="ignore")
    name: str
    arguments: Annotated[Json[dict[str, Any]], BeforeValidator(lambda given: given or "{}")] = {}


class ToolCall(_Object):
    """A call of a tool in an assistant's message."""

    model_config = ConfigDict(extra="ignore")
    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(_Object):
    """What somebody says in a chat. Clients keep records of their own in it, which are ignored."""

    model_config = ConfigDict(extra="ignore")
    without = {"audio": (), "refusal": ("",)}
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            list[TextPart],
            Field(max_length=MOST_PARTS, fail_fast=True),
            BeforeValidator(_as_parts),
        ]
        | None
    ) = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_CALLS, fail_fast=True)] = []
    function_call: Function | None = None  # the older form of a tool call

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing; only an assistant's message can be without")
        return self

    def plain(self) -> dict[str, Any]:
        """The message as chat templates know it: roles by their older or newer name, tools'
        arguments as objects."""
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        content = "".join(part.text for part in self.content or ())
        calls = self.tool_calls
        if self.function_call is not None:
            calls = [*calls, ToolCall(function=self.function_call)]
        more = {
            **self.model_dump(include={"name", "reasoning_content", "tool_call_id"}),
            "tool_calls": [call.model_dump(exclude_none=True) for call in calls],
        }
        return {"role": role, "content": content, **{n: x for n, x in more.items() if x}}


class ChatRequest(_Writing):
    """Messages to answer."""

    without = {
        **NOT_WRITING,
        **dict.fromkeys(("logprobs", "echo", "add_special_tokens"), (False,)),
        "top_logprobs": (0,),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "thinking": ({"type": "disabled"},),
        "chat_template_kwargs": ({},),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
    }
    messages: Annotated[
        list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _once(self) -> "ChatRequest":
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
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
