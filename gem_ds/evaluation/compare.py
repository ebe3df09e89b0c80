"""One table of several models' scores, with bootstrap confidence intervals of what differs.

`score_files` reads the scores.

Shapes: N items of a task; B bootstrap resamples.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from gem_ds.errors import InputError
from gem_ds.evaluation import score_files
from gem_ds.evaluation.evaluate import table
from gem_ds.evaluation.result_files import write_json
from gem_ds.evaluation.score_files import Score
from gem_ds.files import replacing

CONFIDENCE = 0.95
MEANS = ("mteb", "MMLU")  # groups whose tasks are one benchmark
BATCH = 200  # resamples at once
Interval = tuple[float, float]
Vector = npt.NDArray[np.float64]
Draws = Vector | None


@dataclass(frozen=True)
class Row:
    """A task's scores by model, and what the later ones have more than the first. `note` says why a
    mean has no interval."""

    group: str
    task: str
    measure: str
    scores: list[float]
    intervals: list[Interval | None]
    differences: list[float]
    difference_intervals: list[Interval | None]
    note: str = ""


Made = tuple[Row, list[Draws]]  # the draws of each score, then of each difference


@dataclass(frozen=True)
class Table:
    """Rows of tasks and of means, how their intervals were made, and the scores that are left out
    because not all models have them."""

    models: list[str]
    rows: list[Row]
    means: list[Row]
    left_out: list[str]
    resamples: int
    seed: int
    confidence: float = CONFIDENCE
    method: str = "percentile"

    def markdown(self) -> str:
        """The table and, below it, what the intervals are. MMLU's subjects are only its mean."""
        first = self.models[0]
        header = ["task", "measure", *self.models]
        for name in self.models[1:]:
            header += [f"{name} - {first}", f"{self.confidence:.0%}"]
        shown = [row for row in self.rows if row.group != "MMLU"] + self.means
        lines = []
        for row in shown:
            line = [row.task, row.measure]
            line += [_with(*pair) for pair in zip(row.scores, row.intervals, strict=True)]
            for pair in zip(row.differences, row.difference_intervals, strict=True):
                line += [f"{pair[0]:+.2f}", _text(pair[1])]
            lines.append(line)
        below = [
            f"Intervals hold {self.confidence:.0%} of {self.resamples} bootstrap resamples "
            f"(scipy.stats.bootstrap, {self.method}, seed {self.seed}) of a task's pairs, queries "
            "or questions, the same ones for all models; those of a mean resample within each of "
            "its tasks. Without scores of single items there is none."
        ]
        below += [f"The {row.task} has no interval: {row.note}." for row in self.means if row.note]
        if self.left_out:
            below.append(f"Not compared: {'; '.join(self.left_out)}.")
        return "\n\n".join([table(header, lines), *below]) + "\n"

    def write(self, name: Path) -> None:
        """``NAME.md`` and, with MMLU's subjects, ``NAME.json``."""
        write_json(name.with_name(name.name + ".json"), asdict(self))
        with replacing(name.with_name(name.name + ".md")) as partial:
            partial.write_text(self.markdown())


def _with(score: float, interval: Interval | None) -> str:
    return f"{score:.2f}" if interval is None else f"{score:.2f} {_text(interval)}"


def _text(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def compare(results: Sequence[str], resamples: int = 9999, seed: int = 0) -> Table:
    """The table of models named as `score_files.find` takes them, the first being compared with, of
    the scores that all of them have.

    Raises `InputError` where there are none, or their splits, data or versions differ, naming them.
    """
    if seed < 0:
        raise InputError(f"--seed is {seed}, it must be 0 or more")
    found = [score_files.find(text) for text in results]
    labels = [label for label, _ in found]
    if len(set(labels)) < len(labels):  # the same name in several folders
        labels = [f"{text}" for text in results]
    scores = [score_files.read(place) for _, place in found]
    common = [key for key in scores[0] if all(key in model for model in scores)]
    left_out = _left_out(labels, scores, common)
    if not common:
        raise InputError(
            f"{' and '.join(labels)} have no score in common: {'; '.join(left_out)}; "
            "score them on the same tasks"
        )
    for label, other in zip(labels[1:], scores[1:], strict=True):
        _check_same(labels[0], scores[0], label, other)
    draws = _Draws(resamples, seed)
    made = [_row([model[key] for model in scores], draws) for key in common]
    means = [
        _mean(group, chosen)
        for group in MEANS
        if len(chosen := [one for one in made if one[0].group == group]) > 1
    ]
    return Table(labels, [row for row, _ in made], means, left_out, resamples, seed)


def _left_out(
    labels: Sequence[str], scores: Sequence[Mapping[Any, Score]], common: Sequence[Any]
) -> list[str]:
    """What only some models have, and which."""
    have: dict[Any, list[str]] = {}
    for label, model in zip(labels, scores, strict=True):
        for key in model.keys() - set(common):
            have.setdefault(key, []).append(label)
    return [
        f"{task} ({measure}) only in {' and '.join(names)}"
        for (_, task, measure), names in sorted(have.items())
    ]


def _check_same(
    first: str, scores: Mapping[Any, Score], second: str, others: Mapping[Any, Score]
) -> None:
    wrong = []
    for key in scores.keys() & others.keys():
        a, b = scores[key], others[key]
        wrong += [
            f"{key[1]}: {what} {a.about[what]} in {first}, {b.about[what]} in {second}"
            for what in a.about
            if a.about[what] != b.about[what]
        ]
        if a.items and b.items and _names(a.items) != _names(b.items):
            wrong.append(f"{key[1]}: other pairs, queries or questions in {first} than in {second}")
    if wrong:
        raise InputError(
            f"{first} and {second} cannot be compared: {'; '.join(sorted(set(wrong)))}; "
            "score both on the same"
        )


def _names(items: Mapping[str, Any]) -> Any:
    """What identifies a score's items."""
    if "pairs" in items:
        return [people for _, people in items["pairs"]]
    return sorted(items["values"])


class _Draws:
    """Bootstrap distributions. A task's items are drawn the same for all models, and for each task
    anew."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed

    def of(self, key: tuple[str, ...], statistic: Callable[..., Any], *samples_N: Vector) -> Draws:
        """(B,) a statistic of items that belong together. None where some are undefined."""
        if len(samples_N[0]) < 2:
            return None
        with np.errstate(invalid="ignore"):
            drawn: Vector = stats.bootstrap(
                samples_N,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=self.resamples,
                batch=BATCH,
                method="percentile",
                rng=np.random.default_rng([self.seed, zlib.crc32("/".join(key).encode())]),
            ).bootstrap_distribution
        return drawn if np.isfinite(drawn).all() else None


def _interval(drawn_B: Draws) -> Interval | None:
    """The percentiles that hold `CONFIDENCE` of the draws."""
    if drawn_B is None:
        return None
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn_B, [outside, 100 - outside])
    return float(low), float(high)


def _row(scores: Sequence[Score], draws: _Draws) -> Made:
    first = scores[0]
    items = [_arrays(score) for score in scores]
    alone = [draws.of(first.key, _score, *own) if own else None for own in items]
    paired = [
        draws.of(first.key, _difference, own[0], *items[0]) if own and items[0] else None
        for own in items[1:]
    ]
    drawn = [None if one is None else first.scale * one for one in (*alone, *paired)]
    intervals = [_interval(one) for one in drawn]
    row = Row(
        group=first.group,
        task=first.task,
        measure=first.measure,
        scores=[score.scale * score.value for score in scores],
        intervals=intervals[: len(scores)],
        differences=[score.scale * (score.value - first.value) for score in scores[1:]],
        difference_intervals=intervals[len(scores) :],
    )
    return row, drawn


def _arrays(score: Score) -> tuple[Vector, ...] | None:
    """(the model's scores and people's) of pairs, or (the scores,) of single items."""
    if score.items is None:
        return None
    if "pairs" in score.items:
        return tuple(np.array(score.items["pairs"], dtype=np.float64).T)
    values = score.items["values"]
    return (np.array([values[name] for name in sorted(values)], dtype=np.float64),)


def _score(model: Vector, people: Vector | None = None, axis: int = -1) -> Any:
    """The mean of scores, or Spearman's correlation with people's."""
    if people is None:
        return model.mean(axis=axis)
    a, b = (stats.rankdata(x, axis=axis) for x in (model, people))
    a, b = (x - x.mean(axis=axis, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=axis) / np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))


def _difference(later: Vector, first: Vector, people: Vector | None = None, axis: int = -1) -> Any:
    return _score(later, people, axis=axis) - _score(first, people, axis=axis)


def _mean(group: str, made: Sequence[Made]) -> Row:
    """Of a group's tasks. Its intervals are of the means of the tasks' own draws (a bootstrap
    stratified by task): what other items of these tasks would give."""
    scores = np.array([row.scores for row, _ in made], dtype=np.float64).mean(0)
    columns = list(zip(*(drawn for _, drawn in made), strict=True))
    intervals = [
        None if any(one is None for one in column) else _interval(np.mean(column, axis=0))
        for column in columns
    ]
    lack = [row.task for row, drawn in made if any(one is None for one in drawn)]
    few = f" and {len(lack) - 3} more" if len(lack) > 3 else ""
    return Row(
        group=group,
        task=f"mean of {len(made)} {group} tasks",
        measure=made[0][0].measure,
        scores=scores.tolist(),
        intervals=intervals[: len(scores)],
        differences=(scores[1:] - scores[0]).tolist(),
        difference_intervals=intervals[len(scores) :],
        note=f"no or too few scores of single items of {', '.join(lack[:3])}{few}" if lack else "",
    )
