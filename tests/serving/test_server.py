"""A real server, asked by OpenAI's own client: the same embeddings and texts as offline, whoever
else asks. Refusals: test_server_refusals. Starting and stopping: test_serve."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from served import NAME, Served
from serving import KEY, metric, official, vectors
from transformers import AutoTokenizer

from gem_ds.inference.gem_model import GemModel

pytest_plugins = ["servers"]
TEXTS = ["a short text", "<|bos|> spelled, and <|summary_0|>", "naïve 漢字 😀 " * 9, "x"]
PROMPTS = ["The string is", "def", "  a list of", "漢字"]


@pytest.fixture(scope="module")
def offline(server_export: Path) -> GemModel:
    return GemModel.from_pretrained(server_export, device="cpu")


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return official(server)


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


def test_ids_are_embedded_as_their_text(client: openai.OpenAI, server_export: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server_export / "model")
    texts = [TEXTS[0], TEXTS[2]]
    expected = vectors(client.embeddings.create(model=NAME, input=texts))
    for bos in (True, False):  # it is put in front once, whoever does it
        ids = tokenizer(texts, add_special_tokens=bos)["input_ids"]
        assert np.allclose(vectors(client.embeddings.create(model=NAME, input=ids)), expected)
        one = client.embeddings.create(model=NAME, input=ids[0])
        assert np.allclose(vectors(one)[0], expected[0], atol=1e-5)


def test_an_export_with_an_adapter_embeds_and_writes(
    strict_server: Served, adapter_export: Path
) -> None:
    client = official(strict_server, KEY)
    offline = GemModel.from_pretrained(adapter_export, device="cpu")
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


def test_chats_are_the_templates(
    client: openai.OpenAI, server_export: Path, offline: GemModel
) -> None:
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
    tokenizer = AutoTokenizer.from_pretrained(server_export / "model")
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
