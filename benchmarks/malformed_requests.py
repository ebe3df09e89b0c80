"""Requests that a server must refuse, made at random: each has something wrong with it, whatever
else it says. (What spells a control token is not wrong: it is text.)"""

import json
import random
from typing import Any, NamedTuple

EMBEDDINGS, COMPLETIONS, CHAT = ROUTES = (
    "/v1/embeddings",
    "/v1/completions",
    "/v1/chat/completions",
)
GIVES = {EMBEDDINGS: "input", COMPLETIONS: "prompt", CHAT: "messages"}
WRONG = {"nan": float("nan"), "inf": float("inf"), "big": 10**400, "deep": [[[[[[[[1]]]]]]]]}


class Malformed(NamedTuple):
    """One such request, and what is wrong with it."""

    what: str
    method: str
    path: str
    body: bytes


def malformed(rng: random.Random, model: str, n_ids: int, most_chars: int = 1_000_000) -> Malformed:
    """The next one, for a model of this name with so many ids, that fewer characters than
    `most_chars` are too long for."""
    route = rng.choice(ROUTES)
    what = rng.choice(list(WAYS))
    method, path, body = WAYS[what](rng, route, _good(route, model), n_ids, most_chars)
    return Malformed(f"{what} {path}", method, path, body)


def _good(route: str, model: str) -> dict[str, Any]:
    text: Any = [{"role": "user", "content": "a word"}] if route == CHAT else "a word"
    more = {} if route == EMBEDDINGS else {"max_tokens": 1, "temperature": 0.5, "seed": 1}
    return {"model": model, GIVES[route]: text, **more}


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _changed(route: str, good: dict[str, Any], **changes: Any) -> tuple[str, str, bytes]:
    return "POST", route, _dumped({**good, **changes})


def _noise(rng: random.Random, route: str, *_: Any) -> tuple[str, str, bytes]:
    return "POST", route, b"\xfe" + rng.randbytes(rng.randint(0, 500))


def _cut(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    body = _dumped(good)
    return "POST", route, body[: rng.randrange(len(body))]


def _not_utf8(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    bad = rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"])
    return "POST", route, _dumped(good).replace(b"a word", b"a " + bad + b" word")


def _surrogate(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    half = rng.choice([b"\\ud800", b"\\udfff", b"\\ud83d\\ud83d", b"\\ud800x"])
    return "POST", route, _dumped(good).replace(b"a word", half)


def _deep(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    depth = rng.choice([200, 5_000, 100_000])
    nested = rng.choice([b"[", b'{"a":']) * depth
    return "POST", route, nested if rng.random() < 0.5 else b'{"model":' + nested


def _not_object(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    return "POST", route, _dumped(rng.choice([None, 1, "text", [good], [], True, 1.5]))


def _other_model(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    names = ["gpt-4", "", "x" * 10_000, None, 1, ["a"], "../../etc/passwd", "\x00"]
    return _changed(route, good, model=rng.choice(names))


def _missing(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    gone = rng.choice(["model", GIVES[route]])
    return "POST", route, _dumped({k: x for k, x in good.items() if k != gone})


def _unknown(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    return _changed(route, good, **{rng.choice(["frobnicate", "Input", "model ", "__class__"]): 1})


def _empty(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    value: Any = [{"role": "user", "content": ""}] if route == CHAT else ""
    if route != CHAT and rng.random() < 0.3:
        value = ["fine", ""]
    return _changed(route, good, **{GIVES[route]: value})


def _long(
    rng: random.Random, route: str, good: Any, _: int, most_chars: int
) -> tuple[str, str, bytes]:
    unit = rng.choice(["x ", "word ", "é", "漢", "<|bos|>", "\n a", "😀"])
    text = unit * (rng.randint(most_chars // 2, most_chars) // len(unit))
    value: Any = [{"role": "user", "content": text}] if route == CHAT else text
    return _changed(route, good, **{GIVES[route]: value})


def _wrong_text(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    values: list[Any] = [None, 1, 1.5, True, {}, [], [None], [{}], [[]], [["a"]], ["a", 1]]
    values += [[1, "a"], [[1], 2], [1.5], [True], *WRONG.values()]
    return _changed(route, good, **{GIVES[route]: rng.choice(values)})


def _wrong_ids(
    rng: random.Random, route: str, good: Any, n_ids: int, _: int
) -> tuple[str, str, bytes]:
    route = route if route != CHAT else COMPLETIONS
    good = _good(route, good["model"])
    bad = rng.choice([-1, n_ids, 2**31, 2**63, 2**64, -(10**30), 1.0, "1", None, True])
    ids: Any = [1, 2, bad, 3] if bad != "1" else [[1, 2], ["1"]]
    return _changed(route, good, **{GIVES[route]: rng.choice([ids, [[1, 2], ids]])})


def _wrong_message(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    message: dict[str, Any] = {"role": "user", "content": "a word"}
    changes: list[dict[str, Any]] = [
        {"role": "robot"},
        {"role": None},
        {"content": None},
        {"content": 1},
        {"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]},
        {"content": [{"type": "text"}]},
        {"tool_calls": [1]},
        {"name": 1},
        {"role": "assistant", "audio": {"id": "1"}},
    ]
    wrong = {**message, **rng.choice(changes)}
    return _changed(CHAT, _good(CHAT, good["model"]), messages=[message, wrong])


def _wrong_option(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    embedding: dict[str, list[Any]] = {
        "dimensions": [0, -1, 10**6, 1.5, "8", True, [8], float("nan")],
        "encoding_format": ["hex", 1, []],
    }
    writing: dict[str, list[Any]] = {
        "temperature": [float("nan"), float("inf"), -0.1, 2.1, "1", [], True, 10**400],
        "top_p": [0, -1, 1.1, float("nan"), "1", {}],
        "n": [0, -1, 9, 1.5, "1", True, 10**30],
        "max_tokens": [0, -1, 1.5, "1", True, 10**9, 10**30],
        "stop": ["", [""], ["a"] * 5, 1, [1], [None], "x" * 1000],
        "seed": [1.5, "1", 2**63, -(2**64), True, []],
        "stream": ["yes", 1, []],
        "stream_options": [1, {"include_usage": True}, {"frobnicate": 1}],
        "presence_penalty": [0.5, "0", float("nan")],
        "frequency_penalty": [-1, []],
        "logit_bias": [{"1": 5}, [], 1],
        "logprobs": [1, 5, True, "1"],
    }
    completion = {"echo": [True, 1, "yes"], "suffix": ["x", 1], "best_of": [2, "1"]}
    chat = {"tools": [[1], {}], "response_format": [{"type": "json_object"}, 1], "functions": [[1]]}
    options = embedding if route == EMBEDDINGS else writing
    options = options | {COMPLETIONS: completion, CHAT: chat}.get(route, {})
    name = rng.choice(list(options))
    return _changed(route, good, **{name: rng.choice(options[name])})


def _wrong_place(rng: random.Random, route: str, good: Any, *_: Any) -> tuple[str, str, bytes]:
    places = ["/", "/v1", "/v1/embedding", "/v2/embeddings", "/v1/models/other", "/docs", "/v1//"]
    method = rng.choice(["GET", "PUT", "DELETE", "PATCH"])
    return rng.choice([("GET", rng.choice(places), b""), (method, route, _dumped(good))])


WAYS = {
    "noise": _noise,
    "cut JSON": _cut,
    "not UTF-8": _not_utf8,
    "lone surrogate": _surrogate,
    "deep JSON": _deep,
    "not an object": _not_object,
    "other model": _other_model,
    "missing": _missing,
    "unknown field": _unknown,
    "empty": _empty,
    "long": _long,
    "wrong text": _wrong_text,
    "wrong ids": _wrong_ids,
    "wrong message": _wrong_message,
    "wrong option": _wrong_option,
    "wrong place": _wrong_place,
}
