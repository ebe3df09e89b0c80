"""What the laboratory measures of a model, on texts that no training saw.

STS Benchmark dev (Spearman x 100), retrieval of a section's text by its title (nDCG@10 x 100),
perplexity of plain text, the share of its tokens whose logits are the base's bit for bit, and the
share of tokens given back from the summary's keys and values alone. Everything is computed in
float32 and sees at most 512 tokens of a text.
"""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import torch
import zstandard
from transformers import AutoModelForCausalLM

from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.evaluation.evaluate import (
    baseline_embeddings,
    ndcg_at_10,
    perplexity,
    reconstruction,
    sts,
    untrained,
)
from gem_ds.export.gem_config import read_gem_config
from gem_ds.inference.encoder import Encoder, Vectors

FILES = STS, OPENSTAX, BOOKS = "stsb-en-dev.csv", "openstax-dev.jsonl.zst", "books-dev.jsonl.zst"
MAX_TOKENS = 512
LENGTHS = (10, 30, 100)  # of texts to give back
N_RECONSTRUCTED = 100
N_COMPARED = 50  # texts whose logits are compared with the base's
VERSION = 2  # of all that is here: one more, and every run is measured again

Figures = dict[str, float]


class Dev:
    """The held-out texts."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` for a file that is missing."""
        for name in FILES:
            if not (folder / name).is_file():
                raise InputError(f"{folder} has no {name}; give --dev a folder with {FILES}")
        with (folder / STS).open(encoding="utf-8", newline="") as stream:
            first, second, scores = zip(*csv.reader(stream), strict=True)
        self.pairs = list(first), list(second)
        self.scores = [float(score) for score in scores]
        sections = _read(folder / OPENSTAX)
        self.titles = [section["title"] for section in sections]
        self.texts = [section["text"] for section in sections]
        self.books = [paragraph["text"] for paragraph in _read(folder / BOOKS)]

    def sides(self) -> tuple[list[str], ...]:
        """All that is embedded: the sentences of the pairs, the titles, the texts."""
        return *self.pairs, self.titles, self.texts

    def scored(self, vectors: list[Vectors]) -> Figures:
        """The figures of embeddings of `sides`."""
        first, second, titles, texts = vectors
        return {
            "sts": sts(first, second, self.scores),
            "retrieval": 100 * ndcg_at_10(titles, texts),
        }

    def of_language(self, lm: Any, vocab: tokenization.Vocabulary) -> Figures:
        return {
            "perplexity openstax": perplexity(lm, vocab, self.texts, MAX_TOKENS),
            "perplexity books": perplexity(lm, vocab, self.books, MAX_TOKENS),
        }

    def of_summaries(self, lm: Any, encoder: Encoder) -> Figures:
        """What a model gives back of the first texts that are long enough for all lengths."""
        lengths = [len(ids) for ids in tokenization.encode(encoder.vocab, self.texts)]
        pairs = zip(self.texts, lengths, strict=True)
        texts = [text for text, n in pairs if n >= max(LENGTHS)][:N_RECONSTRUCTED]
        about = encoder.vocab, encoder.summary_tokens, texts
        return {
            f"given back {n}": reconstruction(lm, *about, n, encoder.summary_attention)
            for n in LENGTHS
        }


def baselines(base: str, dev: Dev) -> dict[str, Figures]:
    """Of a base model as it is, by how a text is embedded; perplexity under every name."""
    lm, vocab = load(base), tokenization.load(base)
    language = dev.of_language(lm, vocab)
    vectors = [baseline_embeddings(lm, vocab, side, MAX_TOKENS) for side in dev.sides()]
    found = {name: language | dev.scored([side[name] for side in vectors]) for name in vectors[0]}
    encoder = untrained(lm, vocab)
    summary = dev.scored(embed(encoder, dev)) | dev.of_summaries(lm, encoder)
    return found | {"summary token, untrained": language | summary}


def trained(folder: Path, base: str, dev: Dev) -> Figures:
    """Of a model exported after training from a base."""
    same = {"same logits": same_logits(load(folder / "model"), load(base), base, dev)}
    lm, vocab = load(folder / "model"), tokenization.load(folder / "model")
    language = dev.of_language(lm, vocab) | same
    if not read_gem_config(folder / "model").summary_tokens:
        return language
    encoder = Encoder.from_pretrained(folder, dtype=torch.float32)
    return language | dev.scored(embed(encoder, dev)) | dev.of_summaries(lm, encoder)


@torch.inference_mode()
def same_logits(lm: Any, base: Any, tokenizer: str, dev: Dev) -> float:
    """The share of plain texts' tokens at which two models of stock Transformers give the same
    logits, bit for bit, for the vocabulary of the second."""
    vocab = tokenization.load(tokenizer)
    same = total = 0
    for ids in filter(len, tokenization.encode(vocab, dev.texts[:N_COMPARED])):
        ids_1T = torch.from_numpy(ids[:MAX_TOKENS].astype("int64"))[None].to(base.device)
        expected = base(ids_1T).logits[0, :, : vocab.size]
        equal = lm(ids_1T).logits[0, :, : vocab.size] == expected
        same += int(equal.all(-1).sum())
        total += len(expected)
    return same / total


def load(folder: str | Path) -> Any:
    """A causal language model in float32, on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)


def embed(encoder: Encoder, dev: Dev) -> list[Vectors]:
    """Embeddings of `Dev.sides`, cut as the baselines are, which needs no saying here."""
    with contextlib.redirect_stderr(io.StringIO()):
        return [encoder.encode(side, max_length=MAX_TOKENS) for side in dev.sides()]


def _read(path: Path) -> list[dict[str, str]]:
    with zstandard.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
