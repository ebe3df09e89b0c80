"""Small datasets laid out as the hub has those of the paper's tasks and of MMLU."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from encode_evaluate_data import TOPICS, sentence, write_rows

SUBJECTS = ("anatomy", "astronomy")


def readme(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The README.md that names a dataset's configurations: by name, files by split."""
    lines = ["---", "configs:"]
    for name, files in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in files.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def gem16(folder: Path) -> None:
    """A copy, a dozen texts each, of all datasets of ``gem16``."""
    rng = random.Random(0)
    texts = [(i % 3, sentence(rng, list(TOPICS)[i % 3])) for i in range(12)]
    _retrieval(folder / "ArguAna", texts, query="d")  # whose queries are documents as well
    for name in ("ClimateFEVER", "NFCorpus", "SciFact"):
        _retrieval(folder / name, texts)
    for name in ("StackOverflowDupQuestions", "SciDocsRR"):
        _retrieval(folder / name, texts, ranked=True)
    for name in ("BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering"):
        columns = {"sentences": [t for _, t in texts], "labels": [str(i) for i, _ in texts]}
        write_rows(folder / name / "test.jsonl", [columns, columns])
    pairs = [(a, b, i, j) for (i, a), (j, b) in zip(texts, texts[::-1], strict=True)]
    columns = {
        "sent1": [a for a, _, _, _ in pairs],
        "sent2": [b for _, b, _, _ in pairs],
        "labels": [int(i == j or n < 3) for n, (_, _, i, j) in enumerate(pairs)],
    }
    write_rows(folder / "SprintDuplicateQuestions" / "test.jsonl", [columns])
    for name in ("Banking77Classification", "EmotionClassification", "MassiveIntentClassification"):
        for split in ("train", "test"):
            rows = [{"text": t, "label": i, "lang": "en"} for i, t in texts]
            write_rows(folder / name / f"{split}.jsonl", rows)
    scored = [
        {"sentence1": a, "sentence2": b, "score": n * 5 % 6 + 0.1 * n}
        for n, (a, b, _, _) in enumerate(pairs)
    ]
    for name in ("SICK-R", "STSBenchmark"):
        write_rows(folder / name / "test.jsonl", scored)
    languages = [{**row, "lang": lang} for lang in ("en-en", "ar-ar") for row in scored]
    write_rows(folder / "STS17" / "test.jsonl", languages)


def _retrieval(
    folder: Path, texts: list[tuple[int, str]], ranked: bool = False, query: str = "q"
) -> None:
    documents = [{"_id": f"d{i}", "title": "", "text": t} for i, (_, t) in enumerate(texts)]
    queries = [{"_id": f"{query}{i}", "text": t} for i, (_, t) in enumerate(texts[:4])]
    relevant = [
        {"query-id": f"{query}{q}", "corpus-id": f"d{d}", "score": 1}
        for q in range(4)
        for d in (q + 4, q + 7)
    ]
    write_rows(folder / "corpus.jsonl", documents)
    write_rows(folder / "queries.jsonl", queries)
    write_rows(folder / "qrels" / "test.jsonl", relevant)
    configs = {
        "default": {"test": "qrels/test.jsonl"},
        "corpus": {"corpus": "corpus.jsonl"},
        "queries": {"queries": "queries.jsonl"},
    }
    if ranked:
        rows = [
            {"query-id": f"q{q}", "corpus-ids": [f"d{d}" for d in range(2, 12)]} for q in range(4)
        ]
        write_rows(folder / "top_ranked.jsonl", rows)
        configs["top_ranked"] = {"test": "top_ranked.jsonl"}
    readme(folder, configs)


def mmlu(folder: Path) -> None:
    """A copy of ``cais/mmlu`` with two of its subjects, of unequal size."""
    rng = random.Random(1)
    place = folder / "cais" / "mmlu"
    configs = {}
    for n, subject in enumerate(SUBJECTS):
        files = {}
        for split, size in (("dev", 5), ("test", 6 + 5 * n)):
            rows = [
                {
                    "question": sentence(rng, "weather"),
                    "subject": subject,
                    "choices": [sentence(rng, topic, 2) for topic in (*TOPICS, "weather")],
                    "answer": rng.randrange(4),
                }
                for _ in range(size)
            ]
            files[split] = f"{subject}/{split}-00000-of-00001.parquet"
            (place / subject).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), place / files[split])
        configs[subject] = files
    readme(place, configs)
