"""What clients send beside the text: null is as left out, what changes no answer is ignored, and
what would change one is refused. Requests are only read here; test_server answers them."""

import json
from typing import Any

import pytest

from gem_ds.serving.schemas import (
    IGNORED,
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse,
)

KINDS: list[Any] = [EmbeddingRequest, CompletionRequest, ChatRequest]
LEAST: dict[Any, dict[str, Any]] = {
    EmbeddingRequest: {"model": "gem", "input": "a"},
    CompletionRequest: {"model": "gem", "prompt": "a"},
    ChatRequest: {"model": "gem", "messages": [{"role": "user", "content": "a"}]},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def read(kind: Any, **more: Any) -> Any:
    return parse(kind, json.dumps({**LEAST[kind], **more}).encode())


def chat(*messages: Any) -> list[dict[str, Any]]:
    return [message.plain() for message in read(ChatRequest, messages=list(messages)).messages]


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_as_left_out(kind: Any) -> None:
    least = read(kind)
    optional = {*kind.model_fields, *kind.without, *IGNORED, "not_known"} - {*LEAST[kind]}
    assert len(optional) > 10
    assert read(kind, **dict.fromkeys(optional)) == least
    for name in LEAST[kind]:
        with pytest.raises(ApiError, match=f"{name}: Field required"):
            read(kind, **{name: None})


def test_null_within_a_field_is_as_left_out() -> None:
    asked = read(
        ChatRequest,
        stream=True,
        stream_options={"include_usage": None, "include_obfuscation": None},
        response_format={"type": "text", "json_schema": None},
        thinking={"type": "disabled", "budget_tokens": None},
        chat_template_kwargs={"enable_thinking": None},
    )
    assert not asked.wants_usage
    none = (
        "name",
        "tool_calls",
        "function_call",
        "refusal",
        "annotations",
        "audio",
        "tool_call_id",
    )
    said = {"role": "assistant", "content": None, **dict.fromkeys(none)}
    part = {"type": "text", "text": "b", "cache_control": None}
    assert chat(said, {"role": "user", "content": [part]}) == [
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ]
    call = {**CALL, "index": None, "id": None, "function": {"name": "f", "arguments": None}}
    (called,) = chat({"role": "assistant", "tool_calls": [call]})
    assert called["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {}}}
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["x", 1, True, {"a": [1]}, ["a"]])
def test_what_changes_no_answer_is_ignored(kind: Any, value: Any) -> None:
    assert read(kind, **dict.fromkeys(IGNORED, value)) == read(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_is_refused_but_at_the_value_that_asks_for_nothing(kind: Any) -> None:
    assert kind.without
    for name, neutral in kind.without.items():
        for value in neutral:
            assert read(kind, **{name: value}) == read(kind)
        one = neutral[0]  # and what Python takes for equal
        for value in (0.5, "x", [1], {"1": 2}, int(one) if type(one) is bool else bool(one)):
            with pytest.raises(ApiError, match=f"{name}: this server does not have it") as error:
                read(kind, **{name: value})
            assert error.value.body["error"]["param"] == name
    with pytest.raises(ApiError, match="guided_json: this server does not have it"):
        read(kind, guided_json={})


def test_messages_of_all_roles_are_those_that_templates_know() -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    called = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "annotations": []}]
    assert chat(
        {"role": "developer", "content": parts},
        {"role": "user", "content": "hi", "name": "ann", "id": 7, "opts": {"visible": True}},
        {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "so"},
        {"role": "tool", "content": "seen", "tool_call_id": "1"},
        {"role": "assistant", "content": "", "function_call": function},
        {"role": "function", "content": parts, "name": "f"},
    ) == [
        {"role": "system", "content": "ab"},
        {"role": "user", "content": "hi", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "so",
            "tool_calls": [{"id": "1", **called}],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "1"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "ab", "name": "f"},
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user"}, "messages.0: content is missing; only an assistant's message"),
        ({"role": "tool", "content": None}, "messages.0: content is missing"),
        (
            {"role": "user", "content": 1},
            "messages.0.content: give a text, or a list of text parts",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.type: "),
        ({"role": "assistant", "refusal": "no"}, "refusal: this server does not have it"),
        ({"role": "assistant", "audio": {"id": "1"}}, "audio: this server does not have it"),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{"}},
            "messages.0.function_call.arguments: Invalid JSON",
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "[" * 100_000}},
            "messages.0.function_call.arguments: Invalid JSON",
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "[1]"}},
            "messages.0.function_call.arguments: Input should be",
        ),
    ],
)
def test_messages_that_cannot_be_read_are_refused(message: Any, said: str) -> None:
    with pytest.raises(ApiError) as error:
        chat(message)
    assert str(error.value).startswith(said)


def test_stops_and_limits_are_read_in_either_form() -> None:
    assert read(CompletionRequest, stop="x").stop == ["x"]
    assert read(CompletionRequest, stop=["x", "y"]).stop == ["x", "y"]
    assert read(ChatRequest, stop=[]).stop == []
    for wrong, said in (
        ("", "stop.0: String"),
        ([None], "stop.0: Input"),
        (["a"] * 5, "stop: List"),
    ):
        with pytest.raises(ApiError, match=said):
            read(CompletionRequest, stop=wrong)
    same = read(ChatRequest, max_tokens=3, max_completion_tokens=3)
    assert same.max_completion_tokens == 3
    with pytest.raises(ApiError, match="max_tokens and max_completion_tokens are the same; give"):
        read(ChatRequest, max_tokens=3, max_completion_tokens=4)
