"""Measures of a model: perplexity of plain text, and retrieval with its embeddings.

Texts run as flat streams of plain documents (`encode.stream`), so no figure depends on padding.

Shapes: T tokens in the stream, Q queries, N documents, C hidden size.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from gem_ds import attention, layout, tokenization
from gem_ds.encode import Vectors, batches, longest_document, stream
from gem_ds.errors import InputError
from gem_ds.layout import END, NO_TARGET, START, Bounds
from gem_ds.tokenization import Ids, Vocabulary

Pooling = Literal["mean", "weighted", "last"]


def _plain_documents(lm: Any, vocab: Vocabulary, texts: Sequence[str], limit: int) -> list[Ids]:
    """``bos text`` of each text, cut to `limit` tokens."""
    limit = min(limit, longest_document(lm.config))
    bos = [] if vocab.bos_token_id is None else [vocab.bos_token_id]
    head = np.array(bos, dtype=np.int32)
    encoded = tokenization.encode(vocab, texts)
    return [np.concatenate([head, ids])[:limit].astype(np.int32) for ids in encoded]


def _run(
    module: Any, documents: Sequence[Ids], batch_tokens: int
) -> Iterator[tuple[list[int], Any, Ids, Bounds]]:
    """(which documents, the module's output, tokens (T,), layout) of one stream after another."""
    attention.attach(module)
    backend = attention.choose("auto", module, module.device, module.dtype)
    module.eval()
    lengths = [len(document) for document in documents]
    for batch in batches(lengths, batch_tokens):
        arguments, bounds_D4 = stream(
            [documents[i] for i in batch], device=module.device, backend=backend
        )
        yield batch, module(**arguments), np.concatenate([documents[i] for i in batch]), bounds_D4


@torch.inference_mode()
def perplexity(
    lm: Any,
    vocab: Vocabulary,
    texts: Sequence[str],
    max_tokens: int = 512,
    batch_tokens: int = 2048,
) -> float:
    """exp of the mean negative log-likelihood over all predicted tokens of all texts.

    Each text is ``bos text`` without summary tokens, cut to its first `max_tokens` tokens; the
    first token is never predicted. `lm` is a Transformers causal language model. Raises
    `InputError` if no text has a token to predict.
    """
    documents = [d for d in _plain_documents(lm, vocab, texts, max_tokens) if len(d) > 1]
    if not documents:
        raise InputError("no text has two tokens or more; perplexity needs longer texts")
    total, count = 0.0, 0
    for _, output, ids_T, bounds_D4 in _run(lm, documents, batch_tokens):
        targets_T = torch.from_numpy(layout.targets(ids_T, bounds_D4)).to(lm.device)
        loss = F.cross_entropy(
            output.logits[0].float(), targets_T, ignore_index=NO_TARGET, reduction="sum"
        )
        total += loss.item()
        count += layout.n_targets(bounds_D4)
    return math.exp(total / count)


@torch.inference_mode()
def baseline_embeddings(
    lm: Any,
    vocab: Vocabulary,
    texts: Sequence[str],
    max_tokens: int = 512,
    batch_tokens: int = 8192,
) -> dict[Pooling, Vectors]:
    """By pooling, (N, C) float32 unit vectors without training: what any language model gives.

    Pools the last hidden states of ``bos text``, cut to `max_tokens` tokens: their mean, their mean
    weighted by position 1, 2, 3 … (SGPT, arXiv 2202.08904), or the last. Raises `InputError` for a
    text of no tokens.
    """
    documents = _plain_documents(lm, vocab, texts, max_tokens)
    for i, document in enumerate(documents, start=1):
        if not len(document):
            raise InputError(f"text {i} is empty and the model has no bos token; remove it")
    shape = len(texts), lm.config.get_text_config().hidden_size
    vectors: dict[Pooling, Vectors] = {
        name: np.empty(shape, dtype=np.float32) for name in get_args(Pooling)
    }
    for batch, output, _, bounds_D4 in _run(lm.base_model, documents, batch_tokens):
        hidden_TC = output.last_hidden_state[0].float()
        for i, (start, end) in zip(batch, bounds_D4[:, [START, END]].tolist(), strict=True):
            hidden = hidden_TC[start:end]
            place = torch.arange(1.0, len(hidden) + 1, device=hidden.device)
            pooled = {"mean": hidden.mean(0), "weighted": place @ hidden, "last": hidden[-1]}
            for name, vectors_NC in vectors.items():
                vectors_NC[i] = F.normalize(pooled[name], dim=-1).cpu().numpy()
    return vectors


def ndcg_at_10(queries_QC: Vectors, documents_QC: Vectors) -> float:
    """Mean nDCG@10 by cosine, where document i is the one that answers query i.

    With one relevant document the ideal gain is 1, so a query scores 1 / log2(1 + rank), or 0
    beyond rank 10. Documents of equal similarity share the mean score of their ranks, as in
    scikit-learn's `ndcg_score`.
    """
    scores_QN = _unit(queries_QC) @ _unit(documents_QC).T
    own_Q1 = np.diagonal(scores_QN)[:, None]
    first_Q = (scores_QN > own_Q1).sum(1)  # the best rank, from 0, among those that tie
    n_tied_Q = (scores_QN == own_Q1).sum(1)
    gain_of_rank = np.zeros(len(documents_QC) + 1)
    gain_of_rank[1:11] = 1 / np.log2(np.arange(2, 12))[: len(documents_QC)]
    up_to = np.cumsum(gain_of_rank)
    return float(((up_to[first_Q + n_tied_Q] - up_to[first_Q]) / n_tied_Q).mean())


def nearest(queries_QC: Vectors, documents_NC: Vectors, n: int) -> npt.NDArray[np.int64]:
    """(Q, n) indices of the documents of highest cosine, best first; equal ones in their order."""
    scores_QN = _unit(queries_QC) @ _unit(documents_NC).T
    return np.argsort(-scores_QN, axis=1, kind="stable")[:, :n]


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal that is also Markdown: the first column left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = " | ".join(
        "-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])
