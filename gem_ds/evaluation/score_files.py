"""Reading folders of results: which models are there, and each one's scores.

`mteb_runner`, `lm_eval_runner` and `reconstruction` write them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gem_ds.errors import InputError

Group = Literal["mteb", "MMLU", "lm-eval", "reconstruction"]
SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em", "mcc"}


@dataclass(frozen=True)
class Score:
    """One number of one task.

    `about` is what must be the same where scores are compared. `items` are scores of single pairs,
    queries or questions, as in `mteb_items`, where the score is a function of those.
    """

    group: Group
    task: str
    measure: str
    value: float
    about: Mapping[str, Any]
    items: Mapping[str, Any] | None = None
    scale: float = 1.0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.group, self.task, self.measure


@dataclass(frozen=True)
class Place:
    """Where one model's results lie; folders that may not be there."""

    mteb: Path
    items: Path
    others: Path | None = (
        None  # with lm/ and reconstruct/, below which `model.language_model` leads to files
    )
    model: Path = field(default_factory=Path)


def find(text: str) -> tuple[str, Place]:
    """(label, place) of ``FOLDER`` or ``FOLDER:MODEL``.

    MODEL is a model's name, or ``NAME@REVISION`` where several have the name, and ``+SETTINGS``
    behind it where texts were embedded with other settings. Raises `InputError` if there is none,
    or more than one.
    """
    folder, wanted = Path(text), ""
    if not folder.is_dir():
        before, _, wanted = text.rpartition(":")
        folder = Path(before)
    if not str(folder) or not folder.is_dir():
        raise InputError(f"{text} is no folder; name the --output of the other commands")
    places = dict(_places(folder))
    by_name: dict[str, list[str]] = {}
    for label in places:
        name, _, rest = label.partition("@")
        _, plus, settings = rest.partition("+")
        by_name.setdefault(name + plus + settings, []).append(label)
    # A name that only one has stands for it.
    named = {
        short if len(full) == 1 else one: one for short, full in by_name.items() for one in full
    }
    if wanted:
        found = [label for short, label in named.items() if wanted in (short, label)]
        found = found or [label for label in places if "@" in wanted and label.startswith(wanted)]
    else:
        found = list(places)
    if len(found) != 1:
        there = ", ".join(f"{folder}:{short}" for short in sorted(named))
        what = f"{len(found)} models match {text}" if places else f"{folder} holds no results"
        raise InputError(f"{what}; name one: {there}" if places else what)
    (label,) = found
    short = next(short for short, full in named.items() if full == label)
    return short, places[label]


def _places(folder: Path) -> Iterator[tuple[str, Place]]:
    """(``NAME@REVISION``, place) of all models in a folder of results."""
    kinds = ("results", "lm", "reconstruct")
    models = {
        path.relative_to(folder / kind)
        for kind in kinds
        for path in (folder / kind).glob("*/*")
        if path.is_dir()
    }
    for model in sorted(models):
        mteb, items = folder / "results" / model, folder / "items" / model
        label = f"{model.parts[0].removeprefix('local__')}@{model.parts[1]}"
        others = [folder / kind / model for kind in kinds[1:]]
        if any(path.glob("*.json") for path in others if path.is_dir()) or _tasks(mteb):
            yield label, Place(mteb, items, folder, model)
        for path in sorted((mteb / "experiments").glob("*")):
            yield f"{label}+{path.name}", Place(path, items / "experiments" / path.name)


def _tasks(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.json") if p.name != "model_meta.json")


def read(place: Place) -> dict[tuple[str, str, str], Score]:
    """All scores of a model, by `Score.key`. Raises `InputError` for a file that is damaged."""
    scores: list[Score] = []
    for path in _tasks(place.mteb):
        scores.append(_mteb(_load(path), _load(place.items / path.name)))
    if place.others:
        for path in sorted((place.others / "lm" / place.model).glob("*.json")):
            scores += _lm(_load(path))
        for path in sorted((place.others / "reconstruct" / place.model).glob("*.json")):
            scores += _reconstruct(path.stem, _load(path))
    return {score.key: score for score in scores}


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it and score that again") from error


def _mteb(told: Any, items: Any) -> Score:
    scores = told["scores"]
    values = [entry["main_score"] for entries in scores.values() for entry in entries]
    subsets = {s: sorted(entry["hf_subset"] for entry in scores[s]) for s in sorted(scores)}
    about = {
        "splits": subsets,
        "data": told["dataset_revision"],
        "mteb version": told["mteb_version"],
    }
    only = next(iter(items.values())) if len(values) == len(items) == 1 else None
    mean = sum(values) / len(values)
    return Score("mteb", told["task_name"], "main score", mean, about, only, 100.0)


def _lm(told: Any) -> Iterator[Score]:
    for name, task in told["tasks"].items():
        group: Group = "MMLU" if name.startswith("mmlu_") and task["shots"] == 5 else "lm-eval"
        about = {
            "split": task["split"],
            "version": task["version"],
            "shots": task["shots"],
            "questions": task["n"],
            "prompts": task["prompts"],
            "lm-eval version": told["settings"]["lm-eval"],
        }
        for key, value in task["metrics"].items():
            measure = key.removesuffix(",none")
            items = {"values": task["items"][key]} if key in task["items"] else None
            scale = 100.0 if measure.partition(",")[0] in SHARES else 1.0
            yield Score(group, name, measure, value, about, items, scale)


def _reconstruct(name: str, told: Any) -> Iterator[Score]:
    for length, shares in told["lengths"].items():
        about = {"texts": shares["texts"], "input": name}
        for measure, values in shares["items"].items():
            items = {"values": {str(i): value for i, value in enumerate(values)}}
            task = f"{name}, {length} tokens"
            text = measure.replace("_", " ")
            yield Score("reconstruction", task, text, shares[measure], about, items, 100.0)
