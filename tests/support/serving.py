"""Tiny exports to serve, a server asked by OpenAI's own client, and work for its model's thread."""

import asyncio
import base64
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
from exports import SIZES, gem_config, run_tokenizer
from served import Served
from transformers import LlamaConfig, LlamaForCausalLM

from gem_ds.export.export import export
from gem_ds.inference.gem_model import GemModel
from gem_ds.inference.generation import Sampling
from gem_ds.model import adapter_files, adapters
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.jobs import Piece, Ticket, ToWrite
from gem_ds.serving.request_tokens import Inputs, ModelSizes
from gem_ds.serving.scheduler import Worker
from gem_ds.serving.schemas import EmbeddingRequest

POSITIONS = 512
KEY = "a key for tests"
TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System comes first') }}{% endif %}"
    "{{ '[' + message['role'] + '] ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def export_to_serve(
    base_tokenizer: Path, work: Path, template: str | None = TEMPLATE, adapter: bool = False
) -> Path:
    """The folder of an export whose model has `POSITIONS` positions."""
    base = shutil.copytree(base_tokenizer, work / "base")
    if template is not None:
        (base / "chat_template.jinja").write_text(template)
    vocab, summary_tokens = run_tokenizer(base, work / "tokenizer")
    sizes = {**SIZES, "max_position_embeddings": POSITIONS, "vocab_size": vocab.size + 5}
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    trained = None
    weights = dict(lm.state_dict())
    gem = gem_config(summary_tokens, "isolated")
    if adapter:
        adapters.inject(lm, "summary", 4, 8.0, summary_tokens, 0)
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.1)
        weights, lora = adapter_files.separated(lm.state_dict())
        trained = adapter_files.Adapter(lora, 8.0)
        gem = type(gem)(**{**vars(gem), "adapter": True})
    output = work / "export"
    export(weights, lm.config, work / "tokenizer", gem, output, torch.float32, None, trained)
    return output


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


def documents(gem: GemModel, texts: Sequence[str]) -> list[np.ndarray]:
    sizes = ModelSizes(gem.folder, gem.encoder.summary_tokens, gem.max_tokens, 512, 32)
    inputs = Inputs(sizes, ServeConfig(model="x"))
    return inputs.documents(EmbeddingRequest(model="x", input=list(texts)))[0]


def prompt(gem: GemModel, text: str) -> np.ndarray:
    return documents(gem, [text])[0][:-1]


def to_write(gem: GemModel, text: str, n: int, ticket: Ticket, **how: Any) -> ToWrite:
    return ToWrite(prompt(gem, text), n, Sampling(**how), (), 0, ticket)


async def whole(ticket: Ticket) -> tuple[str, str, int]:
    text = ""
    while True:
        piece: Piece = await ticket.next()
        text += piece.text
        if piece.reason:
            return text, piece.reason, piece.tokens


def counts(worker: Worker, kind: str) -> float:
    found = worker.metrics.registry.get_sample_value("gem_batch_texts_count", {"kind": kind})
    return found or 0.0


def go(do: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        return await asyncio.wait_for(do(), 60)

    return asyncio.run(within())
