"""One table of several models' scores, with bootstrap confidence intervals of what differs.

Reading scores is the business of `eval_scores`.

Shapes: N items of a task, or tasks of a mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from gem_ds import eval_scores
from gem_ds.errors import InputError
from gem_ds.eval_results import write_json
from gem_ds.eval_scores import Score
from gem_ds.evaluate import table
from gem_ds.files import replacing

CONFIDENCE = 0.95
MEANS = ("mteb", "MMLU")  # groups whose tasks are one benchmark
BATCH = 200  # resamples at once
Interval = tuple[float, float]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A task's scores by model, and what the later ones have more than the first."""

    group: str
    task: str
    measure: str
    scores: list[float]
    intervals: list[Interval | None]
    differences: list[float]
    difference_intervals: list[Interval | None]


@dataclass(frozen=True)
class Table:
    """Rows of tasks and of means, and how their intervals were made."""

    models: list[str]
    rows: list[Row]
    means: list[Row]
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
        return (
            f"{table(header, lines)}\n\n"
            f"Intervals hold {self.confidence:.0%} of {self.resamples} bootstrap resamples "
            f"(scipy.stats.bootstrap, {self.method}, seed {self.seed}): of a task's pairs, queries "
            "or questions, the same ones for all models, and of a mean's tasks. Without scores of "
            "single items there is none.\n"
        )

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
    """The table of models named as `eval_scores.find` takes them, the first being compared with.

    Raises `InputError` where tasks, splits, data or versions differ, naming them.
    """
    found = [eval_scores.find(text) for text in results]
    labels = [label for label, _ in found]
    if len(set(labels)) < len(labels):  # the same name in several folders
        labels = [f"{text}" for text in results]
    scores = [eval_scores.read(place) for _, place in found]
    for label, other in zip(labels[1:], scores[1:], strict=True):
        _check_same(labels[0], scores[0], label, other)
    draws = _Draws(resamples, seed)
    rows = [_row([model[key] for model in scores], draws) for key in scores[0]]
    means = [
        _mean(group, chosen, draws)
        for group in MEANS
        if len(chosen := [row for row in rows if row.group == group]) > 1
    ]
    return Table(labels, rows, means, resamples, seed)


def _check_same(
    first: str, scores: Mapping[Any, Score], second: str, others: Mapping[Any, Score]
) -> None:
    wrong = []
    for name, has, lacks in ((first, scores, others), (second, others, scores)):
        wrong += [f"{key[1]} ({key[2]}) only in {name}" for key in has if key not in lacks]
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
    """Bootstrap intervals, always of the same resamples for items of the same number."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed

    def interval(self, statistic: Callable[..., Any], *samples_N: Vector) -> Interval | None:
        """Of a statistic of items that belong together. None where it is undefined."""
        if len(samples_N[0]) < 2:
            return None
        with np.errstate(invalid="ignore"):
            found = stats.bootstrap(
                samples_N,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=self.resamples,
                batch=BATCH,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=np.random.default_rng(self.seed),
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        return (low, high) if np.isfinite(low) and np.isfinite(high) else None


def _row(scores: Sequence[Score], draws: _Draws) -> Row:
    first = scores[0]
    items = [_arrays(score) for score in scores]
    paired = [
        draws.interval(_difference, own[0], *items[0]) if own and items[0] else None
        for own in items[1:]
    ]
    return Row(
        group=first.group,
        task=first.task,
        measure=first.measure,
        scores=[score.scale * score.value for score in scores],
        intervals=_scaled(
            [draws.interval(_score, *own) if own else None for own in items], first.scale
        ),
        differences=[score.scale * (score.value - first.value) for score in scores[1:]],
        difference_intervals=_scaled(paired, first.scale),
    )


def _scaled(intervals: Sequence[Interval | None], scale: float) -> list[Interval | None]:
    return [i and (scale * i[0], scale * i[1]) for i in intervals]


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


def _mean(group: str, rows: Sequence[Row], draws: _Draws) -> Row:
    """Of a group's tasks, with intervals over them: what other tasks of the kind would give."""
    scores_NM = np.array([row.scores for row in rows], dtype=np.float64)
    later_N = [scores_NM[:, i] - scores_NM[:, 0] for i in range(1, scores_NM.shape[1])]
    return Row(
        group=group,
        task=f"mean of {len(rows)} {group} tasks",
        measure=rows[0].measure,
        scores=scores_NM.mean(0).tolist(),
        intervals=[None for _ in rows[0].scores],
        differences=[float(more_N.mean()) for more_N in later_N],
        difference_intervals=[draws.interval(_score, more_N) for more_N in later_N],
    )
