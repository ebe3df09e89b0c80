"""mteb's tasks by name, on data from the hub or from a folder, and tasks of the user's own.

A task of one's own is a folder with ``task.json`` and the data as mteb's datasets have it; which
files and columns those are stands in `FORMS`. Running tasks is in `mteb_runner`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import mteb
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
    AbsTaskSummarization,
)
from mteb.abstasks.task_metadata import TaskMetadata
from pydantic import ValidationError

from gem_ds.errors import InputError
from gem_ds.evaluation.task_data import Needed, check_hub, local, table

TASK = "task.json"
# The paper's, in the version that it could have meant: English, as in mteb's first benchmark.
GEM16 = [
    *("ArguAna", "ClimateFEVER", "NFCorpus", "SciFact"),
    *("StackOverflowDupQuestions", "SciDocsRR"),
    *("BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering"),
    "SprintDuplicateQuestions",
    *("Banking77Classification", "EmotionClassification", "MassiveIntentClassification"),
    *("STS17", "SICK-R", "STSBenchmark"),
]
SETS = {"gem16": ("MTEB(eng, v1)", GEM16), "eng-v2": ("MTEB(eng, v2)", None)}


@dataclass(frozen=True)
class Form:
    """What a task of some type is made of."""

    base: type[Any]
    main_score: str
    columns: tuple[str, ...]  # of each split's file
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of the task, with their defaults
    train: bool = False  # whether a split `train` is needed beside those that are scored


FORMS = {
    "STS": Form(
        AbsTaskSTS,
        "cosine_spearman",
        ("sentence1", "sentence2", "score"),
        {"min_score": 0, "max_score": 5},
    ),
    "Retrieval": Form(AbsTaskRetrieval, "ndcg_at_10", ()),
    "Reranking": Form(AbsTaskRetrieval, "map_at_1000", ()),
    "Clustering": Form(
        AbsTaskClustering,
        "v_measure",
        ("sentences", "labels"),
        {"max_fraction_of_documents_to_embed": None, "max_documents_per_cluster": 16384},
    ),
    "Classification": Form(
        AbsTaskClassification,
        "accuracy",
        ("text", "label"),
        {"samples_per_label": 8, "n_experiments": 10},
        train=True,
    ),
    "PairClassification": Form(
        AbsTaskPairClassification, "max_ap", ("sentence1", "sentence2", "labels")
    ),
    "Summarization": Form(
        AbsTaskSummarization,
        "cosine_spearman",
        ("text", "human_summaries", "machine_summaries", "relevance"),
        {"min_score": 0, "max_score": 5},
    ),
}
QRELS = ("query-id", "corpus-id", "score")
COPY = "copy the whole dataset as the hub has it, README.md included"
KEYS = {"name", "type", "languages", "main_score", "splits", "description", "prompt"}


def select(names: Sequence[str], data: Path | None) -> list[Any]:
    """The tasks of names, of mteb's or the user's own, or of a set such as ``gem16``.

    A task whose folder is in `data` is read from there; it is the user's own if it has a
    ``task.json``, else the whole dataset as the hub has it. Raises `InputError` for a name that is
    unknown, a folder that is no task, and data that cannot be had.
    """
    found: list[Any] = []
    for name in names:
        found += _set(name) if name in SETS else [_one(name, data)]
    repeated = {name for name in map(_name, found) if list(map(_name, found)).count(name) > 1}
    if repeated:
        raise InputError(f"--tasks names {', '.join(sorted(repeated))} twice; name each task once")
    tasks: list[Any] = []
    needed: list[Needed] = []
    for task in found:
        metadata = task.metadata
        if hasattr(task, "tasks"):
            parts = ", ".join(map(_name, task.tasks))
            raise InputError(f"{metadata.name} is the average of other tasks; name those: {parts}")
        if metadata.modalities != ["text"]:
            raise InputError(f"{metadata.name} is not a task of text alone; leave it out")
        if isinstance(task, _Own):
            task.load_data()  # to see now what is wrong with it; tables stay on the disk
            task.unload_data()
        elif data and (data / metadata.name).is_dir():
            task = _reading_from(task, data / metadata.name)
        else:
            at = metadata.dataset
            needed.append(Needed(metadata.name, at["path"], at.get("revision"), metadata.name))
        tasks.append(task)
    check_hub(needed, data)
    return tasks


def _name(task: Any) -> str:
    return str(task.metadata.name)


def _set(name: str) -> list[Any]:
    benchmark, chosen = SETS[name]
    tasks = {_name(task): task for task in mteb.get_benchmark(benchmark).tasks}
    # New ones: a benchmark's are shared, and these may get other data.
    return [
        mteb.get_task(n, hf_subsets=tasks[n].hf_subsets, eval_splits=tasks[n].eval_splits)
        for n in chosen or tasks
    ]


def _one(name: str, data: Path | None) -> Any:
    if data and (data / name / TASK).is_file():
        return own_task(data / name)
    try:
        return mteb.get_task(name)
    except KeyError as error:
        own = f", and {data / name / TASK} is not there" if data else ""
        raise InputError(
            f"mteb {mteb.__version__} has no task {name!r}{own}; "
            f"its names are those of mteb.get_tasks(), sets are {', '.join(SETS)}"
        ) from error


def _reading_from(task: Any, folder: Path) -> Any:
    """One of mteb's tasks, which reads its dataset from a folder by its own way of reading."""
    try:
        parts = datasets.get_dataset_config_names(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no dataset ({error}); {COPY}") from error
    if isinstance(task, AbsTaskRetrieval) and not any("corpus" in part for part in parts):
        raise InputError(f"{folder} has {', '.join(parts)}, but no part corpus; {COPY}")
    here = local(folder)
    dataset = {**task.metadata.dataset, "path": here.path, "revision": here.revision}
    metadata = task.metadata.model_copy(update={"dataset": dataset})
    # A class of its own: what mteb unloads goes back to its class's metadata.
    moved = type(type(task).__name__, (type(task),), {"metadata": metadata})()
    moved.filter_languages(languages=None, hf_subsets=task.hf_subsets)
    moved.filter_eval_splits(task.eval_splits)
    return moved


class _Own(AbsTask):  # type: ignore[misc]
    """Reads the data of tasks of the user's own; stands before mteb's class in their bases."""

    data_loaded: bool = False
    folder: Path
    columns: tuple[str, ...]
    train: bool

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Fill `dataset` from the folder. Raises `InputError` for what is missing in it."""
        if self.data_loaded:
            return
        splits = [*self.eval_splits, *(["train"] if self.train else [])]
        if self.columns:
            self.dataset = datasets.DatasetDict(
                {split: table(self.folder / split, self.columns) for split in splits}
            )
        else:
            self.dataset = {"default": {split: self._retrieval(split) for split in splits}}
        self.data_loaded = True

    def _retrieval(self, split: str) -> dict[str, Any]:
        relevant: dict[str, dict[str, int]] = {}
        qrels = table(self.folder / "qrels" / split, QRELS)
        for row in qrels:
            query, text, score = (row[name] for name in QRELS)
            if not isinstance(score, int | float) or not float(score).is_integer():
                where = self.folder / "qrels" / split
                raise InputError(f"{where} has the score {score!r}; give whole numbers")
            relevant.setdefault(str(query), {})[str(text)] = int(score)
        top_ranked = None
        if self.metadata.type == "Reranking":
            rows = table(self.folder / "top_ranked" / split, ("query-id", "corpus-ids"))
            top_ranked = {str(r["query-id"]): [str(i) for i in r["corpus-ids"]] for r in rows}
        corpus, queries = (_with_ids(self.folder / name) for name in ("corpus", "queries"))
        unknown = relevant.keys() - set(queries["id"])
        unknown |= {i for row in relevant.values() for i in row} - set(corpus["id"])
        if unknown:
            raise InputError(
                f"{self.folder / 'qrels' / split} names {sorted(unknown)[0]!r} "
                f"({len(unknown)} such ids), which is not among corpus and queries; correct it"
            )
        return {
            "corpus": corpus,
            "queries": queries,
            "relevant_docs": relevant,
            "top_ranked": top_ranked,
        }


def _with_ids(path: Path) -> Any:
    texts = table(path, ("text",))
    if "_id" in texts.column_names:
        texts = texts.rename_column("_id", "id")
    if "id" not in texts.column_names:
        raise InputError(f"{path} has no column _id; give each text one")
    if texts.features["id"].dtype == "string":
        return texts
    return texts.cast_column("id", datasets.Value("string"))


def own_task(folder: Path) -> Any:
    """The task that a folder with ``task.json`` is; its data is read when it runs.

    Raises `InputError` for what `TASK` lacks, or has and is not known.
    """
    path = folder / TASK
    try:
        told = json.loads(path.read_text())
        form = FORMS[told["type"]]
        name = told["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no task ({error!r}); it needs a name and a type, one of {', '.join(FORMS)}"
        ) from error
    unknown = told.keys() - KEYS - form.attributes.keys()
    if unknown:
        raise InputError(f"{path} has {sorted(unknown)}, which a {told['type']} task has not")
    if name != folder.name:
        raise InputError(f"{path} names the task {name!r}; call its folder so, too")
    try:
        metadata = TaskMetadata(
            name=name,
            type=told["type"],
            description=told.get("description", f"{told['type']} from {folder.name}"),
            dataset={"path": str(folder), "revision": local(folder).revision},
            eval_splits=told.get("splits", ["test"]),
            eval_langs=told.get("languages", ["eng-Latn"]),
            main_score=told.get("main_score", form.main_score),
            prompt=told.get("prompt"),
            category="t2t",
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no task ({what}: {first['msg']}); correct it") from error
    given = {key: told.get(key, default) for key, default in form.attributes.items()}
    about = {"folder": folder, "columns": form.columns, "train": form.train}
    made = type(name, (_Own, form.base), {"metadata": metadata, **given, **about})
    return made()
