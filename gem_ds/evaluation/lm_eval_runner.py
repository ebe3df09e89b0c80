"""A model's scores on tasks of lm-eval, by lm-eval itself; MMLU as the field reports it.

The model is the ``model/`` of an export. Each task asked for, a group being one, is a file of
results, with the score of every question.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.tasks import TaskManager

from gem_ds.errors import InputError
from gem_ds.evaluation import task_data
from gem_ds.evaluation.result_files import Candidate, run_each, write_json
from gem_ds.evaluation.task_data import Local, Needed, check_hub
from gem_ds.files import sha256

BUILDERS = {"json", "csv", "parquet", "text", "arrow"}  # of local files, which `datasets` knows
MMLU = "mmlu"
SHOTS = 5


@dataclass(frozen=True)
class Unit:
    """A task, or a group of tasks that are scored together, and how lm-eval is to load it.

    `source` is a digest of what the tasks are and of their data, as far as it lies here.
    """

    name: str
    spec: Any
    source: str


@dataclass(frozen=True)
class Settings:
    """What scores depend on beside task and model; None is the task's own, or lm-eval's."""

    num_fewshot: int | None = None
    limit: int | None = None
    dtype: str | None = None
    batch_size: int = 8


def manager(include_path: Path | None) -> Any:
    """lm-eval's tasks, and those of YAML files in a folder. Raises `InputError` if it is none."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include_path and not include_path.is_dir():
        raise InputError(f"--include-path {include_path} is no folder; name one with YAML tasks")
    return TaskManager(include_path=str(include_path) if include_path else None)


def select(tasks: Any, names: Sequence[str], data: Path | None) -> list[Unit]:
    """The units of names of the manager `tasks`: a tag gives its tasks, a group stays one.

    A dataset is read from the folder in `data` of its name on the hub, such as ``DATA/cais/mmlu``,
    if there is one. Raises `InputError` for unknown names, and for data that cannot be had.
    """
    index = tasks.task_index
    units: list[Unit] = []
    needed: list[Needed] = []
    for name in names:
        if name not in index:
            raise InputError(
                f"lm-eval {version('lm_eval')} has no task {name!r}; `lm-eval ls tasks` lists its "
                "own, and --include-path names a folder with YAML files of others"
            )
        members = sorted(index[name].tags) if name in tasks.all_tags else [name]
        for member in members:
            leaves = sorted(set(_leaves(index, member)))
            paths = {path for leaf in leaves if (path := _dataset(index, leaf))}
            here = {
                path: task_data.local(data / path)
                for path in paths
                if data and (data / path).is_dir()
            }
            needed += [Needed(member, path, None, path) for path in sorted(paths - here.keys())]
            if here and len(paths) > 1:
                raise InputError(
                    f"{member} reads {', '.join(sorted(paths))}; name its tasks one by one to read "
                    f"them from {data}"
                )
            source = _source([index[leaf].cfg or {} for leaf in leaves], here)
            units.append(Unit(member, _spec(tasks, member, here), source))
    check_hub(needed, data)
    return units


def _spec(tasks: Any, name: str, here: dict[str, Local]) -> Any:
    if not here:
        return name
    kind = "group" if name in tasks.all_groups else "task"
    (dataset,) = here.values()
    # A group of one: only members of a group can differ from what is registered.
    return {"group": f"{name} here", "task": [{kind: name, "dataset_path": dataset.path}]}


def _source(configs: Sequence[Any], here: dict[str, Local]) -> str:
    whole = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    for dataset in here.values():
        whole.update(dataset.revision.encode())
    for config in configs:
        files = (config.get("dataset_kwargs") or {}).get("data_files") or {}
        for path in sorted(map(str, files.values() if isinstance(files, dict) else [files])):
            if Path(path).is_file():
                whole.update(sha256(Path(path)).encode())
    return whole.hexdigest()[:20]


def _leaves(index: Any, name: str) -> Iterator[str]:
    """The tasks that a task, tag or group of lm-eval's consists of."""
    entry = index.get(name)
    if entry is None:
        return
    parts = (entry.cfg or {}).get("task") if entry.cfg else None
    if entry.kind.name == "TAG":
        parts = sorted(entry.tags)
    if not isinstance(parts, list):
        yield name
        return
    for part in parts:
        inner = part if isinstance(part, str) else part.get("task", part.get("group"))
        if isinstance(inner, str):
            yield from _leaves(index, inner)


def _dataset(index: Any, name: str) -> str | None:
    """The name on the hub of a task's dataset, None where it is files or code."""
    path = (index[name].cfg or {}).get("dataset_path")
    if not path or path in BUILDERS or Path(path).exists():
        return None
    return str(path)


def subjects(tasks: Any, chosen: Sequence[str] | None = None) -> list[str]:
    """The tasks of MMLU's 57 subjects, or of some. Raises `InputError` for one it has not."""
    found = sorted(set(_leaves(tasks.task_index, MMLU)))
    if chosen is None:
        return found
    names = [f"{MMLU}_{name}" for name in chosen]
    if unknown := sorted(set(names) - set(found)):
        short = ", ".join(name.removeprefix(f"{MMLU}_") for name in found)
        raise InputError(f"{unknown[0]} is no subject of MMLU; these are: {short}")
    return names


class Scorer:
    """lm-eval on one model, which is loaded when it is first needed."""

    def __init__(self, model: Candidate, tasks: Any, settings: Settings) -> None:
        """Raises `InputError` for a model that cannot generate."""
        if not model.is_export:
            raise InputError(
                f"{model.folder} only embeds; lm-eval needs an export with a folder model/"
            )
        self.tested, self.tasks, self.settings = model, tasks, settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _lm(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=str(self.tested.folder / "model"),
            dtype=self.settings.dtype or ("float32" if self.device == "cpu" else "auto"),
            device=self.device,
            batch_size=self.settings.batch_size,
        )

    def score(self, unit: Unit) -> dict[str, Any]:
        """What is kept of a unit: of each task its scores, version, shots, and items."""
        told = lm_eval.simple_evaluate(
            model=self._lm,
            tasks=[unit.spec],
            num_fewshot=self.settings.num_fewshot,
            limit=self.settings.limit,
            task_manager=self.tasks,
            log_samples=True,
            bootstrap_iters=0,
        )
        names = [name for name in told["results"] if name in told["configs"]]
        groups = {n: _metrics(told["results"][n]) for n in told["results"] if n not in names}
        groups.pop(f"{unit.name} here", None)
        return {
            "model": {"name": self.tested.name, "revision": self.tested.revision},
            "settings": _kept(self.settings, unit),
            "tasks": {name: _task(told, name) for name in names},
            "groups": groups,
        }


def _kept(settings: Settings, unit: Unit) -> dict[str, Any]:
    told = {name: value for name, value in vars(settings).items() if name != "batch_size"}
    return {"lm-eval": version("lm_eval"), "task and data": unit.source, **told}


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """Without standard errors, names and counts: ``acc,none`` and the like."""
    return {
        key: float(value)
        for key, value in result.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }


def _task(told: Any, name: str) -> dict[str, Any]:
    metrics = _metrics(told["results"][name])
    items: dict[str, dict[str, float]] = {key: {} for key in metrics}
    for sample in told["samples"][name]:
        for key in metrics:
            metric, _, way = key.partition(",")
            value = sample.get(metric)
            if sample["filter"] == way and isinstance(value, int | float):
                items[key][str(sample["doc_id"])] = float(value)
    return {
        "metrics": metrics,
        "higher_is_better": told["higher_is_better"].get(name, {}),
        "version": told["versions"].get(name),
        "shots": told["n-shot"].get(name),
        "split": told["configs"][name].get("test_split")
        or told["configs"][name].get("validation_split"),
        "n": told["n-samples"][name]["effective"],
        "prompts": _prompts(told["samples"][name]),
        "items": {key: values for key, values in items.items() if _is_mean(values, metrics[key])},
    }


def _prompts(samples: Sequence[Any]) -> str:
    """A digest of all that the model was asked, few shots included."""
    hashes = sorted(f"{s['doc_id']} {s['prompt_hash']} {s['target_hash']}" for s in samples)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:20]


def _is_mean(items: dict[str, float], score: float) -> bool:
    """Whether the score is these items' mean, so that resampling them says something of it."""
    return bool(items) and abs(sum(items.values()) / len(items) - score) < 1e-6


def run(scorer: Scorer, units: Sequence[Unit], output: Path) -> list[Path]:
    """Score units and keep the results in `output`; those that are there stay. Their files.

    Raises `InputError` for results with other settings, and at the end for units that failed.
    """
    folder = output / "lm" / scorer.tested.place
    paths = {unit.name: folder / f"{unit.name}.json" for unit in units}

    def score(unit: Unit) -> str:
        path = paths[unit.name]
        if path.exists():
            kept = json.loads(path.read_text())
            _check_same(path, kept["settings"], _kept(scorer.settings, unit))
        else:
            kept = scorer.score(unit)
            write_json(path, kept)
        return "  ".join(
            f"{key.partition(',')[0]} {value:.4f}"
            for about in kept["tasks"].values()
            for key, value in about["metrics"].items()
        )

    run_each(units, lambda unit: unit.name, score)
    return list(paths.values())


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differ = [f"{n} {found.get(n)} instead of {v}" for n, v in wanted.items() if found.get(n) != v]
    if differ:
        raise InputError(
            f"{path} was made with {', '.join(differ)}; name another --output, or remove it"
        )


def macro_average(paths: Sequence[Path]) -> float:
    """Of the accuracies of all tasks in files, each weighing the same."""
    kept = [task for path in paths for task in json.loads(path.read_text())["tasks"].values()]
    return float(sum(task["metrics"]["acc,none"] for task in kept) / len(kept))
