"""A server under load, beside the same model offline, all on this machine's loopback.

    python benchmarks/encode_server.py --json out.json [--model exports/gem] [--only load ...]

Many clients at once for a while; embeddings through the server against offline; malformed requests;
whether both agree. Exit status 1 where anything is not as it should be. `throughput` and the times
of `load` are times: measure them on a machine that does nothing else. Linux only.
"""

import argparse
import asyncio
import functools
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encode_model
import httpx
import numpy as np
import torch
from malformed_requests import malformed as malformed_request
from rows import Result, measure
from served import NAME, Served, served

from gem_ds.errors import run
from gem_ds.flags import SEEDS, Parser, real, whole
from gem_ds.inference.gem_model import GemModel

WORDS = ("string", "list", "returns", "every", "part", "that", "is", "split", "by", "words")
PER_REQUEST = 32  # texts
WARM = 500  # requests before memory counts


def texts(n: int, seed: int, words: tuple[int, int] = (5, 80)) -> list[str]:
    """Texts of random words, of lengths evenly in this range."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(*words))) for _ in range(n)]


def load(model: Path, seconds: float, clients: int) -> Result:
    """Clients that ask one thing after another, at random texts to embed or one to write."""
    with served(model) as server:
        began = time.monotonic()
        found = asyncio.run(_ask_for(server, seconds, clients))
        took = time.monotonic() - began
        status = server.stop()
    errors = [error for _, _, error in found if error]
    result: Result = {
        "clients": clients,
        "requests": len(found),
        "requests_a_second": len(found) / took,
        "errors": Counter(errors).most_common(5),
        "exit_status": status,
    }
    for kind in ("embed", "write"):
        times = [took for one, took, error in found if one == kind and not error]
        for share in (50, 99):
            result[f"{kind}_p{share}_seconds"] = float(np.percentile(times, share))
    return {**result, "good": not errors and status == 0}


async def _ask_for(server: Served, seconds: float, clients: int) -> list[tuple[str, float, str]]:
    """(kind, seconds, error) of each request."""
    found: list[tuple[str, float, str]] = []
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients)
    options: Any = {"base_url": server.url, "limits": limits, "timeout": 300, "trust_env": False}
    async with httpx.AsyncClient(**options) as client:

        async def one(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                kind = rng.choice(("embed", "write"))
                some = texts(rng.randint(1, 8), rng.randrange(10**9))
                body: Any = {"input": some}
                path = "embeddings"
                if kind == "write":
                    path, body = "completions", {"prompt": some[0], "max_tokens": 32}
                began = time.monotonic()
                try:
                    answer = await client.post(f"/v1/{path}", json={"model": NAME, **body})
                    error = "" if answer.status_code == 200 else answer.text[:200]
                except httpx.HTTPError as failed:
                    error = repr(failed)
                found.append((kind, time.monotonic() - began, error))

        await asyncio.gather(*(one(number) for number in range(clients)))
    return found


def throughput(model: Path, n: int, rounds: int) -> Result:
    """The same texts through the server and offline, in turns; of each the best round."""
    some = texts(n, seed=0)
    gem = GemModel.from_pretrained(model)
    times: dict[str, list[float]] = {"offline": [], "server": []}
    work: dict[str, list[float]] = {"offline": [], "server": []}  # seconds of processors
    with served(model) as server:
        for _ in range(rounds + 1):
            began, worked = time.perf_counter(), time.process_time()
            offline = gem.encode(some)
            times["offline"].append(time.perf_counter() - began)
            work["offline"].append(time.process_time() - worked)
            began, worked = time.perf_counter(), server.processor_seconds()
            online = asyncio.run(_embed(server, some))
            times["server"].append(time.perf_counter() - began)
            work["server"].append(server.processor_seconds() - worked)
    work_share = min(work["offline"][1:]) / min(work["server"][1:])
    speeds = {name: n / min(each[1:]) for name, each in times.items()}  # the first warms up
    share = speeds["server"] / speeds["offline"]
    same = float((offline * online).sum(1).min())
    return {
        **{f"{name}_texts_a_second": speed for name, speed in speeds.items()},
        "texts": n,
        "threads": torch.get_num_threads(),
        "share": share,
        "share_by_processor_time": work_share,  # says more on a machine that others use too
        "least_cosine": same,
        "good": share >= 0.9 and same > 0.9999,
    }


async def _embed(server: Served, some: list[str]) -> np.ndarray:
    """Embeddings by a few requests at once."""
    import base64

    gate = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, trust_env=False) as client:

        async def part(at: int) -> np.ndarray:
            body = {
                "model": NAME,
                "input": some[at : at + PER_REQUEST],
                "encoding_format": "base64",
            }
            async with gate:
                answer = await client.post("/v1/embeddings", json=body)
            rows = [base64.b64decode(one["embedding"]) for one in answer.json()["data"]]
            return np.stack([np.frombuffer(row, dtype="<f4") for row in rows])

        parts = await asyncio.gather(*(part(at) for at in range(0, len(some), PER_REQUEST)))
    return np.concatenate(parts)


def malformed(model: Path, n: int, seed: int) -> Result:
    """Requests that are all wrong: each is refused with a reason, and memory does not grow."""
    rng = random.Random(seed)
    n_ids = GemModel.from_pretrained(model).vocab.size
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    memory: list[float] = []
    with served(model) as server, server.client() as client:
        for number in range(n):
            case = malformed_request(rng, NAME, n_ids)
            answer = client.request(case.method, case.path, content=case.body)
            statuses[answer.status_code] += 1
            try:
                told = answer.json()["error"]["message"]
            except (ValueError, KeyError, TypeError):
                told = ""
            if not (400 <= answer.status_code < 500 and told):
                wrong.append(f"{case.what}: {case.body[:100]!r}: {answer.text[:200]}")
            if number >= WARM and number % 100 == 0:
                memory.append(server.megabytes())
        status = server.stop()
    third = max(len(memory) // 3, 1)
    growth = float(np.median(memory[-third:]) - np.median(memory[:third])) if memory else 0.0
    return {
        "requests": n,
        "statuses": dict(statuses),
        "not_refused": wrong[:5],
        "n_not_refused": len(wrong),
        "megabytes": memory[-1] if memory else None,
        "megabytes_grown": growth,
        "exit_status": status,
        "good": not wrong and growth < 20 and status == 0,
    }


def agreement(model: Path, n: int) -> Result:
    """Embeddings and texts of the server are those that the model gives offline."""
    some = texts(n, seed=1)
    gem = GemModel.from_pretrained(model)
    expected = gem.encode(some)
    prompts = some[:8]
    greedy = [gem.generate(prompt, max_new_tokens=24) for prompt in prompts]
    with served(model) as server, server.client() as client:
        online = asyncio.run(_embed(server, some))
        body = {"model": NAME, "prompt": prompts, "max_tokens": 24, "temperature": 0}
        choices = client.post("/v1/completions", json=body).json()["choices"]
        streamed = [""] * len(prompts)
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                    streamed[choice["index"]] += choice["text"]
    written = [choice["text"] for choice in choices]
    same = float((expected * online).sum(1).min())
    equal = sum(a == b for a, b in zip(greedy, written, strict=True))
    return {
        "least_cosine": same,
        "texts_equal": equal,
        "of": len(prompts),
        "stream_equal": streamed == written,
        # Where two tokens are as likely to the last bit, a batch may choose the other.
        "good": same > 0.9999 and equal >= len(prompts) - 1 and streamed == written,
    }


ROWS: dict[str, Callable[[Path, argparse.Namespace], Result]] = {
    "agreement": lambda model, args: agreement(model, args.texts),
    "throughput": lambda model, args: throughput(model, args.texts, args.rounds),
    "load": lambda model, args: load(model, args.seconds, args.clients),
    "malformed": lambda model, args: malformed(model, args.requests, args.seed),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="file for the result; what is in it stays")
    parser.add_argument("--model", type=Path, help="an export; default: a random model")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seconds", type=real(0, 1e6, above=True), default=60.0, help="of load")
    parser.add_argument("--clients", type=whole(1), default=64, help="at once")
    parser.add_argument("--texts", type=whole(1, 10**6), default=1024, help="to embed")
    parser.add_argument("--rounds", type=whole(1), default=3, help="of every measurement")
    parser.add_argument("--requests", type=whole(1), default=10_000, help="malformed ones")
    parser.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of what is random")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="server-") as temporary:
        model = args.model or encode_model.make(Path(temporary))
        rows = {name: functools.partial(ROWS[name], model, args) for name in args.only}
        measure(rows, args.json, {})


if __name__ == "__main__":
    run(main)
