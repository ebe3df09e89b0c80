"""A real server, asked by OpenAI's own client: the same embeddings and texts as offline, whoever
else asks; clear refusals of whatever is wrong. Starting and stopping: test_serve."""

import base64
import contextlib
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from malformed_requests import WAYS, malformed
from processes import until
from served import NAME, Served, served
from serving import POSITIONS, export_to_serve
from transformers import AutoTokenizer

from gem_ds.inference import GemModel

KEY = "a key for tests"
TEXTS = ["a short text", "<|bos|> spelled, and <|summary_0|>", "naïve 漢字 😀 " * 9, "x"]
PROMPTS = ["The string is", "def", "  a list of", "漢字"]


@pytest.fixture(scope="module")
def folder(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to_serve(tokenizer_dir, tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def offline(folder: Path) -> GemModel:
    return GemModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return official(server)


@pytest.fixture(scope="module")
def adapter_folder(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("adapter")
    return export_to_serve(tokenizer_dir, work, template=None, adapter=True)


@pytest.fixture(scope="module")
def strict(adapter_folder: Path) -> Iterator[Served]:
    """One with an adapter, without chats, with a key and small limits."""
    flags = ["--max-body-mb", "0.05", "--max-inputs", "4", "--max-queue", "3"]
    flags += ["--timeout-seconds", "60", "--max-new-tokens", "400", "--long-texts", "cut"]
    with served(adapter_folder, *flags, GEM_API_KEY=KEY) as running:
        yield running


def official(server: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False, timeout=60),
    )


def vectors(answer: Any) -> np.ndarray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    rows = [item.embedding for item in answer.data]
    if isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
    return np.array(rows)


def metric(server: Served, name: str) -> float:
    with server.client() as plain:
        lines = plain.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def post(server: Served, path: str, **body: Any) -> httpx.Response:
    with server.client() as plain:
        return plain.post(path, json={"model": NAME, **body})


def test_embeddings_are_those_of_encode(client: openai.OpenAI, offline: GemModel) -> None:
    expected = offline.encode(TEXTS)
    for form in ("float", "base64"):
        answer = client.embeddings.create(model=NAME, input=TEXTS, encoding_format=form)
        assert answer.model == NAME
        assert (vectors(answer) * expected).sum(1).min() > 0.9999
        assert answer.usage.prompt_tokens == sum(offline.count_tokens(TEXTS))
    one = client.embeddings.create(model=NAME, input=TEXTS[0])
    assert vectors(one)[0] @ expected[0] > 0.9999
    cut = vectors(client.embeddings.create(model=NAME, input=TEXTS, dimensions=8))
    assert cut.shape == (len(TEXTS), 8)
    assert (cut * offline.encode(TEXTS, truncate_dim=8)).sum(1).min() > 0.9999


def test_ids_are_embedded_as_their_text(client: openai.OpenAI, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [TEXTS[0], TEXTS[2]]
    expected = vectors(client.embeddings.create(model=NAME, input=texts))
    for bos in (True, False):  # it is put in front once, whoever does it
        ids = tokenizer(texts, add_special_tokens=bos)["input_ids"]
        assert np.allclose(vectors(client.embeddings.create(model=NAME, input=ids)), expected)
        one = client.embeddings.create(model=NAME, input=ids[0])
        assert np.allclose(vectors(one)[0], expected[0], atol=1e-5)


def test_an_export_with_an_adapter_embeds_and_writes(strict: Served, adapter_folder: Path) -> None:
    client = official(strict, KEY)
    offline = GemModel.from_pretrained(adapter_folder, device="cpu")
    found = vectors(client.embeddings.create(model=NAME, input=TEXTS))
    assert (found * offline.encode(TEXTS)).sum(1).min() > 0.9999
    answer = client.completions.create(model=NAME, prompt=PROMPTS[0], max_tokens=20, temperature=0)
    assert answer.choices[0].text == offline.generate(PROMPTS[0], max_new_tokens=20)


def test_completions_are_those_of_generate(client: openai.OpenAI, offline: GemModel) -> None:
    for more in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.8, "seed": 3}):
        answer = client.completions.create(model=NAME, prompt=PROMPTS, max_tokens=24, **more)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        for prompt, choice in zip(PROMPTS, answer.choices, strict=True):
            expected = offline.generate(prompt, max_new_tokens=24, **more)
            assert choice.text == expected
            assert choice.finish_reason in ("stop", "length")
        assert answer.usage.prompt_tokens == sum(offline.count_tokens(PROMPTS))
        assert 4 <= answer.usage.completion_tokens <= 4 * 24


def test_seeds_settings_and_stops(client: openai.OpenAI) -> None:
    def write(**more: Any) -> list[str]:
        more = {"max_tokens": 30, "temperature": 1.0, **more}
        answer = client.completions.create(model=NAME, prompt="The", **more)
        return [choice.text for choice in answer.choices]

    first = write(n=8, seed=1)
    assert len(set(first)) > 4
    assert write(n=8, seed=1) == first
    assert write(n=1, seed=1) == first[:1]
    assert write(n=1, seed=2)[0] == first[1]  # a choice's seed is the first one's plus its number
    assert write(temperature=0) == write(temperature=0, seed=9) != first[:1]
    whole = write(temperature=0)[0]
    stop = next(c for c in whole[3:] if c not in whole[:3] and c.isalpha())
    answer = client.completions.create(
        model=NAME, prompt="The", max_tokens=30, temperature=0, stop=[stop, "never"]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("more", [{}, {"n": 3, "temperature": 1.0, "seed": 5, "stop": ["e", "\n"]}])
def test_a_stream_is_what_is_not_streamed(client: openai.OpenAI, chat: bool, more: Any) -> None:
    call: Any = {"model": NAME, "max_tokens": 30, "temperature": 0, **more}
    if chat:
        create = client.chat.completions.create
        call["messages"] = [{"role": "user", "content": "What is a string?"}]
    else:
        create, call["prompt"] = client.completions.create, "The"
    whole = create(**call)
    n = call.get("n", 1)
    texts, reasons, pieces = (
        [""] * n,
        [None] * n,
        list(create(**call, stream=True, stream_options={"include_usage": True})),
    )
    for piece in pieces[:-1]:
        assert piece.usage is None
        (choice,) = piece.choices
        texts[choice.index] += choice.delta.content if chat else choice.text
        reasons[choice.index] = choice.finish_reason
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    assert texts == [c.message.content if chat else c.text for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    assert len(pieces) > n + 3
    assert len({piece.id for piece in pieces}) == 1


def test_chats_are_the_templates(client: openai.OpenAI, folder: Path, offline: GemModel) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "é?"}],
        },
        {"role": "assistant", "content": "A letter."},
        {"role": "user", "content": "And x?"},
    ]
    plain = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is é?"},
        *messages[2:],
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
    answer = client.chat.completions.create(
        model=NAME, messages=messages, max_completion_tokens=20, temperature=0
    )
    expected = offline.generate(np.array(ids, dtype=np.int32), max_new_tokens=20)
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].message.content or "") == expected
    assert answer.usage.prompt_tokens == len(ids)


def test_control_tokens_that_texts_spell_stay_text(
    client: openai.OpenAI, offline: GemModel
) -> None:
    def n_chat(content: str) -> int:
        message: Any = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=NAME, messages=message, max_tokens=1)
        return answer.usage.prompt_tokens

    spelled = offline.count_tokens(["<|eos|>"])[0]
    assert spelled > 3
    assert n_chat("a<|eos|>b") == n_chat("a") + offline.count_tokens(["<|eos|>b"])[0]
    answer = client.completions.create(model=NAME, prompt="<|eos|>", max_tokens=1)
    assert answer.usage.prompt_tokens == spelled


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI, server: Served) -> None:
    def one(number: int) -> Any:
        if number % 2:
            text = " ".join(["word", "list", "é"][: 1 + number % 3]) + f" {number}"
            return vectors(client.embeddings.create(model=NAME, input=[text, "x"]))
        answer = client.completions.create(
            model=NAME, prompt=f"Text {number}", max_tokens=20, temperature=0.7, seed=number
        )
        return answer.choices[0].text

    alone = [one(number) for number in range(24)]
    before = metric(server, 'gem_batch_texts_count{kind="write"}')
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(one, range(24)))
    for a, b in zip(alone, together, strict=True):
        assert (a == b) if isinstance(a, str) else np.allclose(a, b, atol=1e-5)
    steps = metric(server, 'gem_batch_texts_count{kind="write"}') - before
    assert steps < 12 * 19 * 0.7  # they were written together


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here; this server"):
        client.models.retrieve("other")


def test_health_and_metrics(server: Served, client: openai.OpenAI) -> None:
    with server.client() as plain:
        assert plain.get("/health").json() == {"status": "ok"}
    client.embeddings.create(model=NAME, input="a")
    route = 'gem_requests_total{route="/v1/embeddings",status="200"}'
    before = metric(server, route), metric(server, 'gem_tokens_total{kind="embed"}')
    client.embeddings.create(model=NAME, input=[[5, 6, 7]])
    assert metric(server, route) == before[0] + 1
    assert metric(server, 'gem_tokens_total{kind="embed"}') == before[1] + 5  # bos and summary too
    assert metric(server, 'gem_request_seconds_count{route="/v1/embeddings"}') > 0


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
        ({"input": ["a", " \n"]}, "text 1 of input is empty"),
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
        ({"messages": [{"role": "user", "content": " "}]}, "the last message is empty"),
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


def test_limits(strict: Served) -> None:
    client = official(strict, KEY)
    with pytest.raises(openai.APIStatusError, match=r"more than 0.05 MB") as error:
        client.embeddings.create(model=NAME, input="x" * 60_000)
    assert error.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="5 texts, and this server takes at most 4"):
        client.embeddings.create(model=NAME, input=["a"] * 5)
    with pytest.raises(openai.BadRequestError, match="more texts than the 4"):
        client.completions.create(model=NAME, prompt="a", n=5)
    with pytest.raises(openai.BadRequestError, match="has no chat template, so it cannot chat"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a"}])
    # --long-texts cut
    long = vectors(client.embeddings.create(model=NAME, input=["word " * 600, "word " * 800]))
    assert long[0] @ long[1] > 0.9999


def test_a_body_of_unknown_length_is_read_up_to_the_limit(strict: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(5_000):
            sent += 10_000
            yield b" " * 10_000

    headers = {"Authorization": f"Bearer {KEY}"}
    with strict.client() as plain:
        status = None
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server may hang up
            status = plain.post("/v1/embeddings", content=endless(), headers=headers).status_code
    assert status in (413, None)
    assert sent < 20e6
    assert official(strict, KEY).models.list()


def test_keys(strict: Served) -> None:
    for key in ("wrong", KEY + "x", "é"):
        with strict.client() as plain:
            headers = {"Authorization": f"Bearer {key}".encode()}
            answer = plain.post("/v1/embeddings", json={"model": NAME}, headers=headers)
            assert answer.status_code == 401
            assert "the API key is missing or wrong" in answer.json()["error"]["message"]
    with strict.client() as plain:
        assert plain.get("/v1/models").status_code == 401
        assert plain.get("/health").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        official(strict, "wrong").models.list()


def long_text(client: openai.OpenAI, **more: Any) -> Any:
    more = {"max_tokens": 400, "temperature": 1.0, "seed": 0, **more}
    return client.completions.create(model=NAME, prompt="The", **more)


def test_a_request_that_takes_too_long_ends(adapter_folder: Path) -> None:
    with served(adapter_folder, "--timeout-seconds", "0.1", "--max-new-tokens", "400") as hurried:
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


def test_more_requests_than_the_queue_holds_are_sent_away(strict: Served) -> None:
    client = official(strict, KEY)

    def ask(_: int) -> str:
        try:
            return "written" if long_text(client, max_tokens=60) else ""
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.message}"

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    refused = [answer for answer in answers if answer.startswith("429")]
    assert len(refused) >= 3
    assert all("try again in a while" in answer for answer in refused)
    assert answers.count("written") >= 1


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
