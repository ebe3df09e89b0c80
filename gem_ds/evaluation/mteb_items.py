"""Scores of single pairs and queries of an mteb task, from the predictions that mteb writes.

What cannot be told apart exactly, so that it gives the task's own score again, is left out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytrec_eval
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS

from gem_ds.evaluation.evaluate import spearman

TOLERANCE = 1e-4  # mteb rounds means of queries to 5 digits
MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}  # by trec's


def of_task(task: Any, scores: Mapping[str, Any], predictions: Path) -> dict[str, Any]:
    """By ``SPLIT/SUBSET``: the items of each subset that has any.

    An STS task's are ``pairs``, the model's and people's scores, a retrieval task's ``values`` by
    query; `scores` are those of mteb's result.
    """
    path = predictions / task.prediction_file_name
    told = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {}
    for split, entries in scores.items():
        for entry in entries:
            subset = entry["hf_subset"]
            if split not in told.get(subset, {}):
                continue
            items = _items(task, _rows(task, subset, split), told[subset][split])
            if items and math.isclose(mean(items), entry["main_score"], abs_tol=TOLERANCE):
                found[f"{split}/{subset}"] = items
    return found


def mean(items: Mapping[str, Any]) -> float:
    """The score that items make together, as a share of 1."""
    if "pairs" in items:
        model, people = zip(*items["pairs"], strict=True)
        return spearman(model, people)
    return float(sum(items["values"].values()) / len(items["values"]))


def _rows(task: Any, subset: str, split: str) -> Any:
    return task.dataset[subset][split] if subset in task.dataset else task.dataset[split]


def _items(task: Any, rows: Any, told: Any) -> dict[str, Any] | None:
    measure = task.metadata.main_score
    if isinstance(task, AbsTaskSTS) and measure in ("cosine_spearman", "spearman"):
        model = told["cosine_scores" if measure == "cosine_spearman" else "similarity_scores"]
        return {"pairs": [list(pair) for pair in zip(model, rows["score"], strict=True)]}
    if isinstance(task, AbsTaskRetrieval):
        name, _, cut = measure.partition("_at_")
        if name in MEASURES and cut.isdigit():
            return {"values": _by_query(task, rows["relevant_docs"], told, MEASURES[name], cut)}
    return None


def _by_query(
    task: Any, relevant: Mapping[str, Any], told: Mapping[str, Any], measure: str, cut: str
) -> dict[str, float]:
    if task.ignore_identical_ids:
        told = {q: {d: s for d, s in found.items() if d != q} for q, found in told.items()}
    judge = pytrec_eval.RelevanceEvaluator(relevant, {f"{measure}.{cut}"})
    each = judge.evaluate(told)
    return {query: scores[f"{measure}_{cut}"] for query, scores in sorted(each.items())}
