"""Measures of a model: perplexity, similarity, retrieval, and what its summary tokens hold.

Texts run as flat streams (`inference.encoder.stream`), so no figure depends on padding.

Shapes: T tokens in the stream, Q queries, N documents, C hidden size.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from gem_ds import layout
from gem_ds.attention import forward, registry
from gem_ds.attention.hf_config import longest_document
from gem_ds.attention.segments import SummaryAttention
from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError
from gem_ds.inference.encoder import Encoder, Vectors, batches, stream
from gem_ds.inference.memories import compress, continue_greedily
from gem_ds.layout import END, NO_TARGET, START, Bounds

Pooling = Literal["mean", "weighted", "last", "echo"]


def _head(vocab: Vocabulary) -> Ids:
    """The bos token, where there is one."""
    return np.array([] if vocab.bos_token_id is None else [vocab.bos_token_id], dtype=np.int32)


def _plain_documents(lm: Any, vocab: Vocabulary, texts: Sequence[str], limit: int) -> list[Ids]:
    """``bos text`` of each text, cut to `limit` tokens."""
    limit = min(limit, longest_document(lm.config))
    encoded = tokenization.encode(vocab, texts)
    return [np.concatenate([_head(vocab), ids])[:limit].astype(np.int32) for ids in encoded]


def _run(
    module: Any, documents: Sequence[Ids], batch_tokens: int
) -> Iterator[tuple[list[int], Any, Ids, Bounds]]:
    """(which documents, the module's output, tokens (T,), layout) of one stream after another."""
    registry.attach(module)
    backend = registry.choose("auto", module, module.device, module.dtype)
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
    weighted by position 1, 2, 3 … (SGPT, arXiv 2202.08904), or the last; and of ``bos text text``,
    the same text twice and no instruction around it, the mean over the second (echo embeddings,
    arXiv 2402.15449). A text of which the model has no room for two is cut for `echo` to what it
    has. Raises `InputError` for a text of no tokens.
    """
    documents = _plain_documents(lm, vocab, texts, max_tokens)
    for i, document in enumerate(documents, start=1):
        if not len(document):
            raise InputError(f"text {i} is empty and the model has no bos token; remove it")
    shape = len(texts), lm.config.get_text_config().hidden_size
    vectors: dict[Pooling, Vectors] = {
        name: np.empty(shape, dtype=np.float32) for name in get_args(Pooling)
    }
    for i, hidden in _states(lm, documents, batch_tokens):
        place = torch.arange(1.0, len(hidden) + 1, device=hidden.device)
        vectors["mean"][i] = _unit_of(hidden.mean(0))
        vectors["weighted"][i] = _unit_of(place @ hidden)
        vectors["last"][i] = _unit_of(hidden[-1])
    n_head = len(_head(vocab))
    room = (longest_document(lm.config) - n_head) // 2
    twice = [np.concatenate([d[: n_head + room], d[n_head:][:room]]) for d in documents]
    for i, hidden in _states(lm, twice, batch_tokens):
        once = len(hidden) - (len(hidden) - n_head) // 2
        vectors["echo"][i] = _unit_of(hidden[min(once, len(hidden) - 1) :].mean(0))
    return vectors


def _states(lm: Any, documents: Sequence[Ids], batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """(which document, its last hidden states (its tokens, C) in float32), in any order."""
    for batch, output, _, bounds_D4 in _run(forward.body(lm), documents, batch_tokens):
        hidden_TC = output.last_hidden_state[0].float()
        for i, (start, end) in zip(batch, bounds_D4[:, [START, END]].tolist(), strict=True):
            yield i, hidden_TC[start:end]


def _unit_of(vector_C: Tensor) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = F.normalize(vector_C, dim=-1).cpu().numpy()
    return unit


def untrained(lm: Any, vocab: Vocabulary, k: int = 1) -> Encoder:
    """An encoder of a base model with summary tokens as training begins with them; changes `lm`."""
    from gem_ds.model import (
        language_model,  # loads DeepSpeed, which takes seconds and wants its accelerator named
    )

    with_summary, summary = tokenization.add_summary_tokens(vocab, k)
    language_model.add_rows(lm, with_summary.size, min(summary))
    return Encoder(forward.body(lm), with_summary, summary)


def reconstruction(
    lm: Any,
    vocab: Vocabulary,
    summary_tokens: Sequence[int],
    texts: Sequence[str],
    n_tokens: int,
    summary_attention: SummaryAttention = "isolated",
) -> float:
    """The share of tokens that the model gives back of texts of exactly `n_tokens` tokens.

    Of ``bos text | summary`` only the summary tokens' keys and values are kept, and the model
    writes `n_tokens` tokens greedily from those (paper, Appendix B); counted are the places that
    hold the text's own token. Longer texts are cut. Raises `InputError` for a shorter one.
    """
    about = (vocab, summary_tokens, texts, n_tokens, summary_attention)
    own_NT, written_NT = written_back(lm, lm, *about)
    return float((written_NT == own_NT).mean())


def written_back(
    reader: Any,
    writer: Any,
    vocab: Vocabulary,
    summary_tokens: Sequence[int],
    texts: Sequence[str],
    n_tokens: int,
    summary_attention: SummaryAttention = "isolated",
) -> tuple[Ids, Ids]:
    """(N, n_tokens) the tokens of texts, and what `reconstruction` compares with them.

    `reader` computes the summary tokens and has the adapter of a model that was trained with one;
    `writer` is the same model without it. They can be one if there is none.
    """
    encoded = tokenization.encode(vocab, texts)
    for i, ids in enumerate(encoded, start=1):
        if len(ids) < n_tokens:
            raise InputError(f"text {i} has {len(ids)} tokens instead of {n_tokens}; leave it out")
    summary = np.asarray(summary_tokens, dtype=np.int32)
    cut = [ids[:n_tokens] for ids in encoded]
    documents = [np.concatenate([_head(vocab), ids, summary]) for ids in cut]
    memories = compress(reader, documents, len(summary), summary_attention)
    return np.stack(cut), continue_greedily(writer, memories, n_tokens)


def spearman(a_N: npt.ArrayLike, b_N: npt.ArrayLike) -> float:
    """Spearman's rank correlation, equal values sharing the mean of their ranks.

    Raises `InputError` where it is undefined: fewer than two values, or all of them equal.
    """
    a_N, b_N = np.asarray(a_N), np.asarray(b_N)
    if min(len(np.unique(a_N)), len(np.unique(b_N))) < 2:
        raise InputError("the values are all the same, so nothing can correlate with them")
    return float(stats.spearmanr(a_N, b_N).statistic)


def sts(first_NC: Vectors, second_NC: Vectors, gold_N: npt.ArrayLike) -> float:
    """Semantic textual similarity: `spearman` x 100 of the cosines of pairs with people's scores.

    As the STS tasks of MTEB score it (arXiv 2210.07316).
    """
    cosine_N = (_unit(first_NC) * _unit(second_NC)).sum(1)
    return 100 * spearman(cosine_N, gold_N)


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
