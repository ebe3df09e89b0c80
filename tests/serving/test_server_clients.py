"""A real server answers what other clients than OpenAI's send, and web pages that may ask it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import NAME, Served, served
from serving import KEY, official, vectors
from transformers import AutoTokenizer

from gem_ds.serving import request_tokens

pytest_plugins = ["servers"]
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def asked_by_pages(adapter_export: Path) -> Iterator[Served]:
    origins = ["--cors-origin", f"{PAGE},https://a.example", "--cors-origin", "app://notes"]
    with served(adapter_export, *origins, GEM_API_KEY=KEY) as running:
        yield running


def chat(server: Served, *messages: Any, **more: Any) -> httpx.Response:
    body = {"model": NAME, "max_tokens": 2, "messages": list(messages), **more}
    with server.client() as plain:
        return plain.post("/v1/chat/completions", json=body)


def test_null_is_as_left_out(server: Served) -> None:
    """As LiteLLM sends an encoding_format that nobody gave."""
    with server.client() as plain:
        told = plain.post("/v1/embeddings", json={"model": NAME, "input": ["a text"]}).json()
        null = dict.fromkeys(("encoding_format", "dimensions", "user", "input_type"))
        body = {"model": NAME, "input": ["a text"], **null}
        assert plain.post("/v1/embeddings", json=body).json() == told
        null = dict.fromkeys(("n", "stop", "stream", "stream_options", "tools", "logit_bias"))
        body = {"model": NAME, "prompt": "The", "temperature": 0, **null}
        answer = plain.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= request_tokens.COMPLETION_TOKENS


def test_messages_of_assistants_and_tools(server: Served, server_export: Path) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}], "id": 1},
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "tool", "content": "seen", "tool_call_id": "1"},
        {"role": "function", "content": "too", "name": "f"},
    ]
    answer = chat(server, *messages)
    assert answer.status_code == 200, answer.text
    known = [
        {"role": role, "content": content}
        for role, content in (
            *(("system", "Be short."), ("user", "hi"), ("assistant", "")),
            *(("tool", "seen"), ("tool", "too")),
        )
    ]
    tokenizer = AutoTokenizer.from_pretrained(server_export / "model")
    ids = tokenizer.apply_chat_template(known, add_generation_prompt=True)["input_ids"]
    assert answer.json()["usage"]["prompt_tokens"] == len(ids)
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = chat(server, {"role": "assistant", "tool_calls": [call]}, messages[1])
    assert answer.status_code == 400
    assert "the chat template leaves out tool calls" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "text/plain"])
def test_the_type_of_the_content_does_not_matter(server: Served, kind: str | None) -> None:
    body = json.dumps({"model": NAME, "input": "a"}).encode()
    headers = {"content-type": kind} if kind else {}
    with server.client() as plain:
        assert plain.post("/v1/embeddings", content=body, headers=headers).status_code == 200


def test_slashes_and_methods(server: Served) -> None:
    with server.client() as plain:
        body = {"model": NAME, "input": "a"}
        assert plain.post("/v1/embeddings/", json=body).status_code == 200
        for path in ("/v1/models", "/v1/models/", f"/v1/models/{NAME}", "/health", "/metrics"):
            assert plain.get(path).status_code == 200
            head = plain.head(path)
            assert (head.status_code, head.content) == (200, b"")
        assert plain.head("/v1/models/other").status_code == 404
        astray = plain.post("/embeddings", json=body)
        assert astray.status_code == 404
        assert "this server has /v1/embeddings, " in astray.json()["error"]["message"]
        wrong = plain.get("/v1/embeddings")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        preflight = plain.options("/v1/embeddings", headers={"Origin": PAGE})
        assert preflight.status_code == 405
        assert "--cors-origin" in preflight.json()["error"]["message"]


def test_token_ids_are_noticed_in_the_log_once_in_a_while(server: Served) -> None:
    client = official(server)
    for ids in ([5, 6], [[5, 6], [7]]):
        client.embeddings.create(model=NAME, input=ids)
        client.completions.create(model=NAME, prompt=ids, max_tokens=1)
    time.sleep(0.2)
    said = [line for line in server.said if "a request has token ids instead of text" in line]
    assert len(said) == 1
    assert "check_embedding_ctx_length=False" in said[0]


def preflight(server: Served, origin: str, **more: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
        **more,
    }
    with server.client() as plain:
        return plain.options("/v1/embeddings", headers=headers)


@pytest.mark.parametrize("origin", [PAGE, "https://a.example", "app://notes"])
def test_pages_of_allowed_origins_ask_without_the_key_and_read_every_answer(
    asked_by_pages: Served, origin: str
) -> None:
    asked = preflight(asked_by_pages, origin)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == origin
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"]
    near = preflight(asked_by_pages, origin, **{"Access-Control-Request-Private-Network": "true"})
    assert near.headers["access-control-allow-private-network"] == "true"
    headers = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
    body = {"model": NAME, "input": "a"}
    with asked_by_pages.client() as plain:
        answers = [
            plain.post("/v1/embeddings", json=body, headers=headers),
            plain.post("/v1/embeddings", json={}, headers=headers),
            plain.post("/v1/embeddings", json=body, headers={"Origin": origin}),
            plain.get("/nowhere", headers=headers),
        ]
    assert [answer.status_code for answer in answers] == [200, 400, 401, 404]
    assert {a.headers.get("access-control-allow-origin") for a in answers} == {origin}


def test_pages_of_other_origins_read_nothing(asked_by_pages: Served) -> None:
    asked = preflight(asked_by_pages, "http://localhost:3001")
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    headers = {"Origin": "http://localhost:3001", "Authorization": f"Bearer {KEY}"}
    with asked_by_pages.client() as plain:
        answer = plain.post("/v1/embeddings", json={"model": NAME, "input": "a"}, headers=headers)
    assert "access-control-allow-origin" not in answer.headers


def test_ids_of_no_token_are_refused_with_a_cure(server: Served) -> None:
    with server.client() as plain:
        answer = plain.post("/v1/embeddings", json={"model": NAME, "input": [[791, 2840, 374]]})
    assert answer.status_code == 400
    assert "give ids of this model's tokenizer, or text" in answer.json()["error"]["message"]


def test_a_page_of_any_origin(adapter_export: Path) -> None:
    with served(adapter_export, "--cors-origin", "*") as running:
        assert preflight(running, "https://b.example").headers["access-control-allow-origin"] == "*"
        with running.client() as plain:
            answer = plain.post(
                "/v1/embeddings",
                json={"model": NAME, "input": "a"},
                headers={"Origin": "https://b.example"},
            )
        assert answer.headers["access-control-allow-origin"] == "*"
        client = official(running)
        assert np.isfinite(vectors(client.embeddings.create(model=NAME, input="a"))).all()
