"""A real server sends away what is wrong, too much or too late, says why, and goes on."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from malformed_requests import WAYS, malformed
from processes import until
from served import NAME, Served, served
from serving import KEY, POSITIONS, metric, official, vectors

from gem_ds.serving.server import FULL_SECONDS

pytest_plugins = ["servers"]


def post(server: Served, path: str, **body: Any) -> httpx.Response:
    with server.client() as plain:
        return plain.post(path, json={"model": NAME, **body})


def test_no_malformed_request_is_answered_or_breaks_anything(server: Served) -> None:
    rng, seen = random.Random(0), set()
    with server.client() as plain:
        for _ in range(300):
            case = malformed(rng, NAME, 401, most_chars=20_000)
            answer = plain.request(case.method, case.path, content=case.body)
            where = f"{case.what}: {case.body[:200]!r} -> {answer.status_code} {answer.text[:200]}"
            assert 400 <= answer.status_code < 500, where
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, where
            assert len(error["message"]) > 10, where
            seen.add(case.what.split(" /")[0])
    assert seen == set(WAYS)
    assert metric(server, "gem_open_requests") == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": ""}, "text 0 of input is empty"),
        ({"input": ["a", ""]}, "text 1 of input is empty"),
        ({"input": "word " * 200_000}, f"text 0 of input has more than {POSITIONS - 2} tokens"),
        ({"input": [[1, -1]]}, r"has the id -1, and this vocabulary's are from 0 to 400"),
        ({"input": [401]}, "has the id 401"),
        ({"input": [5, 400]}, "has a summary token, which is put there anyway"),
        ({"input": [1, True]}, "must be a text, token ids, or a list of either"),
        ({"input": "a", "dimensions": 33}, "embeddings have 32; ask for so many or fewer"),
        ({"input": "a", "model": "x"}, "there is no model 'x' here; this server has 'served'"),
        ({"prompt": "a", "logprobs": 1}, "logprobs: this server does not have it; leave it out"),
        ({"prompt": "a", "echo": True}, "echo: this server does not have it"),
        ({"prompt": "a", "temperature": 1e-30}, "temperature must be 0, or 0.001 or more"),
        ({"prompt": "a", "max_tokens": 2000}, "this server writes at most 1024"),
        ({"prompt": "a", "max_tokens": 512}, f"this model has room for {POSITIONS}"),
        ({"prompt": "a", "n": 9}, "n: Input should be less than or equal to 8"),
        ({"messages": [{"role": "user", "content": ""}]}, "the last message is empty"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools: this server"),
    ],
)
def test_refusals_say_what_is_wrong(server: Served, body: Any, said: str) -> None:
    kind = next(iter(body))
    path = {"input": "embeddings", "prompt": "completions", "messages": "chat/completions"}[kind]
    answer = post(server, f"/v1/{path}", **body)
    assert answer.status_code == (404 if "model" in body else 400)
    assert said in answer.json()["error"]["message"]


def test_what_the_template_refuses_is_refused(server: Served) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    answer = post(server, "/v1/chat/completions", messages=messages)
    assert answer.status_code == 400
    assert "refused by the chat template" in answer.json()["error"]["message"]


def test_limits(strict_server: Served) -> None:
    client = official(strict_server, KEY)
    with pytest.raises(openai.APIStatusError, match=r"more than 0.05 MB") as error:
        client.embeddings.create(model=NAME, input="x" * 60_000)
    assert error.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="5 texts, and this server takes at most 4"):
        client.embeddings.create(model=NAME, input=["a"] * 5)
    with pytest.raises(
        openai.BadRequestError, match="1 texts times n = 5, and this server takes at most 4"
    ):
        client.completions.create(model=NAME, prompt="a", n=5)
    with pytest.raises(openai.BadRequestError, match="has no chat template, so it cannot chat"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a"}])
    # --long-texts cut
    long = vectors(client.embeddings.create(model=NAME, input=["word " * 600, "word " * 800]))
    assert long[0] @ long[1] > 0.9999


def test_keys(strict_server: Served) -> None:
    for key in ("wrong", KEY + "x", "é"):
        with strict_server.client() as plain:
            headers = {"Authorization": f"Bearer {key}".encode()}
            answer = plain.post("/v1/embeddings", json={"model": NAME}, headers=headers)
            assert answer.status_code == 401
            assert "the API key is missing or wrong" in answer.json()["error"]["message"]
    for kind in ("bearer", "BEARER", "Bearer "):
        with strict_server.client() as plain:
            headers = {"Authorization": f"{kind} {KEY}"}
            assert plain.get("/v1/models", headers=headers).status_code == 200
    with strict_server.client() as plain:
        assert plain.get("/v1/models", headers={"Authorization": KEY}).status_code == 401
        assert plain.get("/v1/models").status_code == 401
        assert plain.get("/health").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        official(strict_server, "wrong").models.list()


def long_text(client: openai.OpenAI, **more: Any) -> Any:
    more = {"max_tokens": 400, "temperature": 1.0, "seed": 0, **more}
    return client.completions.create(model=NAME, prompt="The", **more)


def test_a_request_that_takes_too_long_ends(adapter_export: Path) -> None:
    with served(adapter_export, "--timeout-seconds", "0.1", "--max-new-tokens", "400") as hurried:
        client = official(hurried)
        with pytest.raises(openai.InternalServerError, match=r"longer than 0.1 seconds") as error:
            long_text(client, n=8)
        assert error.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"longer than 0.1 seconds"):
            list(long_text(client, n=8, stream=True))
        assert until(lambda: metric(hurried, "gem_open_requests") == 0, 5)
        written = metric(hurried, 'gem_tokens_total{kind="write"}')
        time.sleep(0.3)
        assert metric(hurried, 'gem_tokens_total{kind="write"}') == written, "nobody goes on"


def test_more_requests_than_the_queue_holds_are_sent_away(strict_server: Served) -> None:
    client = official(strict_server, KEY)

    waits = []  # until a request is refused

    def ask(_: int) -> str:
        began = time.monotonic()
        try:
            return "written" if long_text(client, max_tokens=60) else ""
        except openai.APIStatusError as error:
            waits.append(time.monotonic() - began)
            return f"{error.status_code} {error.message}"

    with ThreadPoolExecutor(12) as pool:
        asked = pool.map(ask, range(12))
        with strict_server.client() as plain:
            until(lambda: metric(strict_server, "gem_open_requests") >= 3, 2)
            assert plain.get("/health").status_code == 200
            assert plain.get("/metrics").status_code == 200
        with _elsewhere(strict_server) as other:
            body = {"model": NAME, "input": "a"}
            assert other.post("/v1/embeddings", json=body).status_code == 200
        answers = list(asked)
    refused = [answer for answer in answers if answer.startswith("429")]
    assert len(refused) >= 3
    assert all("try again in a while" in answer for answer in refused)
    assert answers.count("written") >= 1
    assert min(waits) >= FULL_SECONDS, "who asks again and again is slowed down"


def _elsewhere(server: Served) -> httpx.Client:
    """A client that has another address."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.Client(base_url=server.url, transport=transport, headers=headers, timeout=60)


def test_large_requests_are_refused_before_they_cost_anything(server: Served) -> None:
    many = ([5] * 100_000, [[5] * 600] * 2048, [[5]] * 100_000, ["a"] * 100_000, "a" * 5_000_000)
    for given in many:
        for path, field in (("embeddings", "input"), ("completions", "prompt")):
            began = time.monotonic()
            assert post(server, f"/v1/{path}", **{field: given}).status_code == 400
            assert time.monotonic() - began < 2
    for messages in ([{"role": "user", "content": "a"}] * 50_000, [{}] * 100_000):
        began = time.monotonic()
        assert post(server, "/v1/chat/completions", messages=messages).status_code == 400
        assert time.monotonic() - began < 2


def test_a_thousand_ids_cost_no_more_than_their_text(server: Served) -> None:
    began = time.monotonic()
    assert post(server, "/v1/embeddings", input=[[5] * 500] * 4).status_code == 200
    assert time.monotonic() - began < 2


def test_white_space_is_text(server: Served) -> None:
    for text in (" ", "\n\t  ", "\u2003", [" ", "a"]):
        assert post(server, "/v1/embeddings", input=text).status_code == 200
        answer = post(server, "/v1/completions", prompt=text, max_tokens=1)
        assert answer.status_code == 200
    messages = [{"role": "user", "content": " "}]
    answer = post(server, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_text(server: Served, stream: bool) -> None:
    body = {"model": NAME, "prompt": "The", "max_tokens": 500, "n": 8, "stream": stream, "seed": 4}
    before = metric(server, 'gem_tokens_total{kind="write"}')
    with server.client(timeout=0.5 if not stream else 30) as plain:
        if stream:
            with plain.stream("POST", "/v1/completions", json=body) as answer:
                first = next(answer.iter_lines())
                assert json.loads(first.removeprefix("data: "))["choices"]
        else:
            with pytest.raises(httpx.ReadTimeout):
                plain.post("/v1/completions", json=body)
    assert until(lambda: metric(server, "gem_open_requests") == 0, 10)
    time.sleep(0.2)
    after = metric(server, 'gem_tokens_total{kind="write"}')
    assert after - before < 8 * 499 * 0.8
    time.sleep(0.3)
    assert metric(server, 'gem_tokens_total{kind="write"}') == after
