"""The demo's measures, before and after, and how they are shown."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from gem_ds.corpus import tokenization
from gem_ds.evaluation import evaluate
from gem_ds.evaluation.evaluate import (
    baseline_embeddings,
    ndcg_at_10,
    nearest,
    perplexity,
    untrained,
)
from gem_ds.inference.encoder import Encoder, Vectors
from gem_ds.inference.generation import shown

MIN_GAIN, MAX_LOSS = 2.0, 1.05  # the goals: retrieval times two, perplexity at most 5 % up
N_MEASURED_TOKENS = 256


def measure(base: str, gem: Path, dev: list[dict[str, str]]) -> dict[str, Any]:
    """nDCG@10 x 100 of titles -> texts, and perplexity, of the base and of the trained model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    titles = [entry["title"] for entry in dev]
    texts = [entry["rest"] for entry in dev]

    def load(name: str | Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)

    vocab = tokenization.load(base)
    lm = load(base)
    before = {"perplexity": perplexity(lm, vocab, texts, N_MEASURED_TOKENS)}
    of_titles, of_texts = (
        baseline_embeddings(lm, vocab, side, N_MEASURED_TOKENS) for side in (titles, texts)
    )
    before |= {name: 100 * ndcg_at_10(of_titles[name], of_texts[name]) for name in of_titles}
    before["summary"] = 100 * ndcg_at_10(*embed(untrained(lm, vocab), titles, texts))
    lm = load(gem / "model")
    after = {
        "perplexity": perplexity(lm, tokenization.load(gem / "model"), texts, N_MEASURED_TOKENS)
    }
    encoder = Encoder.from_pretrained(gem, dtype=torch.float32)
    queries, documents = embed(encoder, titles, texts)
    after["summary"] = 100 * ndcg_at_10(queries, documents)
    return {
        "before": before,
        "after": after,
        "neighbours": neighbours(queries, documents, titles),
        "continuation": continuation(gem / "model", texts),
    }


def embed(encoder: Encoder, titles: list[str], texts: list[str]) -> tuple[Vectors, Vectors]:
    """Embeddings of both, cut as the baselines are, which needs no saying here."""
    with contextlib.redirect_stderr(io.StringIO()):
        queries = encoder.encode(titles, max_length=N_MEASURED_TOKENS)
        return queries, encoder.encode(texts, max_length=N_MEASURED_TOKENS)


def neighbours(queries: Vectors, documents: Vectors, titles: list[str]) -> list[dict[str, Any]]:
    """The three nearest held-out texts (by their own titles) of three titles, evenly picked."""
    picked = [len(titles) * i // 3 for i in range(3)]
    found = nearest(queries[picked], documents, 3)
    return [
        {
            "title": titles[i],
            "nearest": [titles[j] + ("  <- its own" if i == j else "") for j in row],
        }
        for i, row in zip(picked, found, strict=True)
    ]


def continuation(folder: Path, texts: list[str]) -> dict[str, str]:
    """What the model writes after the first words of a held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = " ".join(texts[0].split()[:12])
    set_seed(0)
    ids = tokenizer(prompt, return_tensors="pt")
    written = lm.generate(
        **ids, max_new_tokens=60, do_sample=True, temperature=0.7, top_p=0.9, pad_token_id=0
    )
    new = written[0, ids["input_ids"].shape[1] :]
    return {"prompt": prompt, "continuation": tokenizer.decode(new, skip_special_tokens=True)}


def report(results: dict[str, Any]) -> str:
    before, after = results["before"], results["after"]
    best = max(before["mean"], before["last"])
    rows = [
        ["nDCG@10 x 100, mean pooling", f"{before['mean']:.2f}", ""],
        ["nDCG@10 x 100, last token", f"{before['last']:.2f}", ""],
        ["nDCG@10 x 100, position-weighted mean", f"{before['weighted']:.2f}", ""],
        ["nDCG@10 x 100, summary token", f"{before['summary']:.2f}", f"{after['summary']:.2f}"],
        ["perplexity", f"{before['perplexity']:.2f}", f"{after['perplexity']:.2f}"],
    ]
    gain, loss = after["summary"] / best, after["perplexity"] / before["perplexity"]
    goals = [
        (f"retrieval at least {MIN_GAIN:g} x the best of mean and last", gain, gain >= MIN_GAIN),
        (f"perplexity at most {MAX_LOSS:g} x the base's", loss, loss <= MAX_LOSS),
    ]
    lines = [
        f"{results['held_out']} held-out texts: find each by its title; perplexity of the texts",
        "",
        evaluate.table(["", "before", "after"], rows),
        "",
        *(f"{'reached' if ok else 'MISSED '}  {name}: {got:.2f} x" for name, got, ok in goals),
        "",
        "Nearest held-out texts (shown by their own titles) of",
    ]
    for example in results["neighbours"]:
        lines += [f"  {example['title']}", *(f"    - {title}" for title in example["nearest"])]
    written = results["continuation"]
    lines += ["", "model/ continues a held-out text:", f"  {written['prompt']} ..."]
    lines += [f"    {line}" for line in shown(written["continuation"]).strip().splitlines()]
    return "\n".join(lines)
