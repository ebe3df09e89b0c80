"""What the comparisons of evaluation run on: a small task of each type of mteb, one of lm-eval, and
tiny random exports."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_ds.corpus import tokenization, train_tokenizer
from gem_ds.export.export import SHARD_GB, export
from gem_ds.export.gem_config import GemConfig
from gem_ds.model import adapter_files, adapters

TOPICS = {
    "weather": ["rain", "snow", "wind", "storm", "cloud", "sun", "cold", "frost", "fog", "thunder"],
    "kitchen": [
        "bread",
        "salt",
        "oven",
        "knife",
        "soup",
        "onion",
        "butter",
        "plate",
        "spoon",
        "flour",
    ],
    "travel": [
        "train",
        "ticket",
        "airport",
        "luggage",
        "hotel",
        "map",
        "bridge",
        "ferry",
        "road",
        "border",
    ],
}


def sentence(rng: random.Random, topic: str, n: int = 7) -> str:
    """Words of a topic, and a few of no topic."""
    others = ["the", "a", "of", "and", "was", "by", "near"]
    return " ".join(rng.choice(TOPICS[topic] if i % 2 else others) for i in range(n))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def local_tasks(folder: Path, size: int = 40) -> list[str]:
    """Write a task of each of mteb's types into `folder`; returns their names."""
    rng = random.Random(0)
    topics = list(TOPICS)

    def some(n: int = size) -> list[tuple[int, str]]:
        return [(i % len(topics), sentence(rng, topics[i % len(topics)])) for i in range(n)]

    pairs = []
    for label, text in some():
        other = rng.randrange(len(topics))
        pairs.append((text, sentence(rng, topics[other]), label == other))
    sts = [
        {"sentence1": a, "sentence2": b, "score": 3 * same + rng.random() * 2}
        for a, b, same in pairs
    ]
    write_rows(_task(folder, "SmallSTS", "STS") / "test.jsonl", sts)
    same = [{"sentence1": a, "sentence2": b, "labels": int(same)} for a, b, same in pairs]
    write_rows(_task(folder, "SmallPairs", "PairClassification") / "test.jsonl", same)
    place = _task(folder, "SmallClassification", "Classification")
    for split in ("train", "test"):
        write_rows(place / f"{split}.jsonl", [{"text": t, "label": i} for i, t in some()])
    place = _task(folder, "SmallClustering", "Clustering", max_documents_per_cluster=30)
    write_rows(place / "test.jsonl", [{"sentences": t, "labels": topics[i]} for i, t in some()])
    summaries = []
    for label, text in some(8):
        made = [sentence(rng, topic) for topic in topics]
        people = [sentence(rng, topics[label]) for _ in range(2)]
        relevance = [5 * (i == label) + rng.random() for i in range(len(topics))]
        summaries.append(
            {
                "text": text,
                "human_summaries": people,
                "machine_summaries": made,
                "relevance": relevance,
            }
        )
    place = _task(folder, "SmallSummaries", "Summarization", max_score=6)
    write_rows(place / "test.jsonl", summaries)
    for name, kind in (("SmallRetrieval", "Retrieval"), ("SmallReranking", "Reranking")):
        place = _task(folder, name, kind)
        corpus, queries = some(), some(9)
        write_rows(
            place / "corpus.jsonl",
            [{"_id": f"d{i}", "title": "", "text": text} for i, (_, text) in enumerate(corpus)],
        )
        write_rows(
            place / "queries.jsonl",
            [{"_id": f"q{i}", "text": text} for i, (_, text) in enumerate(queries)],
        )
        relevant = [
            {"query-id": f"q{q}", "corpus-id": f"d{d}", "score": 1}
            for q, (topic, _) in enumerate(queries)
            for d, (other, _) in enumerate(corpus)
            if topic == other and rng.random() < 0.4
        ]
        write_rows(place / "qrels" / "test.jsonl", relevant)
        if kind == "Reranking":
            ranked = [
                {"query-id": f"q{q}", "corpus-ids": [f"d{d}" for d in rng.sample(range(size), 20)]}
                for q in range(len(queries))
            ]
            write_rows(place / "top_ranked" / "test.jsonl", ranked)
    return sorted(path.name for path in folder.iterdir())


def _task(folder: Path, name: str, kind: str, **more: Any) -> Path:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "task.json").write_text(json.dumps({"name": name, "type": kind, **more}))
    return place


def lm_task(folder: Path, size: int = 20) -> str:
    """Write a task of lm-eval, a YAML file and its data, into `folder`; returns its name."""
    rng = random.Random(1)
    for split in ("dev", "test"):
        rows = []
        for _ in range(size):
            topic = rng.choice(list(TOPICS))
            words = [rng.choice(TOPICS[topic]), *(rng.choice(w) for w in TOPICS.values())][:4]
            order = rng.sample(range(4), 4)
            rows.append(
                {
                    "question": sentence(rng, topic),
                    "choices": [words[i] for i in order],
                    "answer": order.index(0),
                }
            )
        write_rows(folder / f"{split}.jsonl", rows)
    files = "\n".join(f"    {split}: {folder / split}.jsonl" for split in ("dev", "test"))
    (folder / "small_choice.yaml").write_text(
        f"""\
task: small_choice
dataset_path: json
dataset_kwargs:
  data_files:
{files}
output_type: multiple_choice
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: 2
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
    )
    return "small_choice"


def tiny_export(
    folder: Path, k: int = 1, adapter: bool = False, seed: int = 0, shard_gb: float = SHARD_GB
) -> Path:
    """A random Llama of two layers with `k` summary tokens, exported as a run's end would be."""
    work = folder.parent / f"{folder.name}-work"
    rng = random.Random(2)
    texts = [sentence(rng, topic, 12) for topic in TOPICS for _ in range(60)]
    train_tokenizer.save(train_tokenizer.train(texts, 350), work / "base")
    vocab, summary = tokenization.add_summary_tokens(tokenization.load(work / "base"), k)
    tokenization.save(vocab, work / "tokenizer")
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab.size,
        max_position_embeddings=256,
        initializer_range=0.3,  # so that attention differs from an average
        bos_token_id=vocab.bos_token_id,
        eos_token_id=vocab.eos_token_id,
    )
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    gem = GemConfig(tuple(summary), "isolated", "tiny", 1, "0" * 64, adapter=adapter)
    weights, beside = dict(lm.state_dict()), None
    if adapter:
        adapters.inject(lm, "summary", rank=4, alpha=16.0, summary_tokens=summary, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in lm.named_parameters():
            if ".lora_B." in name:  # zero as training begins with it
                parameter.data.normal_(std=0.3, generator=generator)
        weights, lora = adapter_files.separated(dict(lm.state_dict()))
        beside = adapter_files.Adapter(lora, 16.0)
    about = (weights, config, work / "tokenizer", gem, folder, torch.float32)
    export(*about, adapter=beside, shard_gb=shard_gb)
    return folder
