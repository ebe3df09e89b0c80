"""Tables of scores: intervals equal to the obvious loop, and what cannot be compared is refused."""

import json
import zlib

import numpy as np
import pytest
from scipy import stats

from gem_ds.errors import InputError
from gem_ds.evaluation import compare, score_files
from gem_ds.evaluation.result_files import write_json

RNG = np.random.default_rng(3)
GOLD = RNG.uniform(0, 5, 60)


def results(folder, name, noise, revision="a" * 20, sts_data="d1", tasks=("A", "B", "S"), **lm):
    """A folder of results as the other commands write it; `noise` makes a model worse."""
    rng = np.random.default_rng(int(noise * 100))
    place = f"local__{name}/{revision}"
    for task in tasks:
        if task == "S":
            model = GOLD + noise * rng.normal(size=60)
            score = stats.spearmanr(model, GOLD).statistic
            items = {"test/default": {"pairs": np.stack([model, GOLD], 1).tolist()}}
        else:
            values = np.clip(0.8 - 0.1 * noise + 0.1 * rng.normal(size=30), 0, 1)
            score = values.mean()
            items = {"test/default": {"values": {f"q{i}": v for i, v in enumerate(values)}}}
        told = {
            "task_name": task,
            "mteb_version": "2.26.24",
            "dataset_revision": sts_data if task == "S" else "d",
            "scores": {"test": [{"hf_subset": "default", "main_score": score}]},
        }
        write_json(folder / "results" / place / f"{task}.json", told)
        write_json(folder / "items" / place / f"{task}.json", items)
    write_json(folder / "results" / place / "model_meta.json", {})
    right = (rng.random(50) > 0.3 + 0.1 * noise).astype(float)
    about = {"version": 1.0, "shots": 5, "split": "test", "n": 50, "prompts": "p", **lm}
    for subject in ("anatomy", "law"):
        task = {
            "metrics": {"acc,none": right.mean()},
            "items": {"acc,none": {str(i): v for i, v in enumerate(right)}},
            **about,
        }
        told = {"settings": {"lm-eval": "0.4.13"}, "tasks": {f"mmlu_{subject}": task}}
        write_json(folder / "lm" / place / f"mmlu_{subject}.json", told)
    return folder


@pytest.fixture
def folder(tmp_path):
    results(tmp_path, "base", 2.0)
    return results(tmp_path, "gem", 1.0)


def test_intervals_are_those_of_an_obvious_loop(folder):
    table = compare.compare([f"{folder}:base", f"{folder}:gem"], resamples=400, seed=5)
    assert table.models == ["base", "gem"]
    rows = {row.task: row for row in table.rows}
    items = {}
    for name in table.models:
        _, place = score_files.find(f"{folder}:{name}")
        items[name] = {
            task: json.loads((place.items / f"{task}.json").read_text()) for task in "ABS"
        }

    def draws(task, n):
        """The resamples of a generator with the same seed and task."""
        rng = np.random.default_rng([5, zlib.crc32(f"mteb/{task}/main score".encode())])
        return [part for size in (200, 200) for part in rng.integers(0, n, (size, n))]

    gains = {}
    for task in "AB":
        first, second = (
            np.array(
                [
                    items[n][task]["test/default"]["values"][f"q{i}"]
                    for i in sorted(range(30), key=str)
                ]
            )
            for n in table.models
        )
        gains[task] = [100 * (second - first)[i].mean() for i in draws(task, 30)]
        interval = rows[task].difference_intervals[0]
        assert interval == pytest.approx(np.percentile(gains[task], [2.5, 97.5]))
        assert rows[task].differences[0] == pytest.approx(100 * (second - first).mean())
    pairs = [np.array(items[n]["S"]["test/default"]["pairs"]) for n in table.models]

    def spearman(pair_N2, i):
        return 100 * stats.spearmanr(*pair_N2[i].T).statistic

    gains["S"] = [spearman(pairs[1], i) - spearman(pairs[0], i) for i in draws("S", 60)]
    interval = rows["S"].difference_intervals[0]
    assert interval == pytest.approx(np.percentile(gains["S"], [2.5, 97.5]))
    own = [spearman(pairs[1], i) for i in draws("S", 60)]
    assert rows["S"].intervals[1] == pytest.approx(np.percentile(own, [2.5, 97.5]))
    differences = np.array([row.differences[0] for row in table.rows if row.group == "mteb"])
    means = np.mean([gains[task] for task in "ABS"], axis=0)
    (mteb,) = [row for row in table.means if row.group == "mteb"]
    assert mteb.difference_intervals[0] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert mteb.differences[0] == pytest.approx(differences.mean())


def test_an_interval_of_a_known_gain_holds_it_and_one_of_nothing_holds_zero(folder):
    low, high = (
        compare.compare([f"{folder}:base", f"{folder}:gem"], 500).rows[-1].difference_intervals[0]
    )
    assert low < high
    same = compare.compare([f"{folder}:gem", f"{folder}:gem"], 200)
    assert {row.difference_intervals[0] for row in same.rows} == {(0.0, 0.0)}
    assert len(set(same.models)) == 1 or same.models[0] != "gem"


def test_the_table_says_how_it_was_made_and_is_written_in_both_forms(folder, tmp_path):
    table = compare.compare([f"{folder}:base", f"{folder}:gem"], 300, 7)
    text = table.markdown()
    assert "300 bootstrap resamples" in text
    assert "seed 7" in text
    assert "mean of 2 MMLU tasks" in text
    assert "mmlu_law" not in text
    table.write(tmp_path / "made" / "table")
    assert (tmp_path / "made" / "table.md").read_text() == text
    told = json.loads((tmp_path / "made" / "table.json").read_text())
    assert (told["resamples"], told["seed"], told["models"]) == (300, 7, ["base", "gem"])
    assert "mmlu_law" in {row["task"] for row in told["rows"]}
    assert compare.compare([f"{folder}:base", f"{folder}:gem"], 300, 7) == table
    assert compare.compare([f"{folder}:base", f"{folder}:gem"], 300, 8) != table


def test_three_models_are_compared_with_the_first(folder):
    results(folder, "third", 0.5)
    names = [f"{folder}:{name}" for name in ("base", "gem", "third")]
    table = compare.compare(names, 200)
    row = table.rows[0]
    assert len(row.differences) == 2
    assert row.differences[1] == pytest.approx(row.scores[2] - row.scores[0])
    pair = compare.compare([names[0], names[2]], 200).rows[0]
    assert pair.difference_intervals[0] == row.difference_intervals[1]


def test_what_differs_is_named(folder, tmp_path):
    def refused(match, **changed):
        other = results(tmp_path / "other" / str(len(match)), "gem", 1.0, **changed)
        with pytest.raises(InputError, match=match):
            compare.compare([f"{folder}:base", str(other)])

    refused("S: data d1 in base, d2 in gem", sts_data="d2")
    refused("mmlu_anatomy: version 1.0 in base, 2.0 in gem", version=2.0)
    refused("mmlu_law: questions 50 in base, 9 in gem", n=9)
    refused("mmlu_law: prompts p in base, other in gem", prompts="other")
    place = tmp_path / "results" / "local__gem" / ("a" * 20)
    told = json.loads((place / "A.json").read_text())
    told["scores"]["dev"] = told["scores"].pop("test")
    write_json(place / "A.json", told)
    with pytest.raises(InputError, match=r"A: splits \{'test'.*in base, \{'dev'.* in gem"):
        compare.compare([f"{folder}:base", f"{folder}:gem"])


def test_what_only_one_has_is_named_and_the_rest_compared(folder, tmp_path):
    results(tmp_path / "other", "gem", 1.0, tasks=("A", "S", "C"))
    other = f"{tmp_path / 'other'}:gem"
    table = compare.compare([f"{folder}:base", other], 300)
    named = ["B (main score) only in base", "C (main score) only in gem"]
    assert table.left_out == named
    assert f"Not compared: {'; '.join(named)}." in table.markdown()
    whole = compare.compare([f"{folder}:base", f"{folder}:gem"], 300)
    assert whole.left_out == []
    assert "Not compared" not in whole.markdown()
    by_task = {row.task: row for row in whole.rows}
    assert {row.task for row in table.rows} == {*by_task} - {"B"}
    assert table.rows[0].scores[0] == by_task["A"].scores[0]
    assert "mean of 2 mteb tasks" in table.markdown()
    third = compare.compare([f"{folder}:base", f"{folder}:gem", other], 50)
    assert [text.partition(" only in ")[0] for text in third.left_out] == [
        "B (main score)",
        "C (main score)",
    ]
    assert {row.task for row in third.rows} == {row.task for row in table.rows}


def test_nothing_in_common_is_refused(tmp_path):
    for name, task in (("base", "A"), ("gem", "B")):
        results(tmp_path / name, name, 1.0, tasks=(task,))
        for path in (tmp_path / name / "lm").rglob("*.json"):
            path.unlink()
    names = [f"{tmp_path / name}:{name}" for name in ("base", "gem")]
    with pytest.raises(InputError, match=r"base and gem have no score in common: A \(main score\)"):
        compare.compare(names)


def test_the_mean_of_two_tasks_has_an_interval_of_their_items(folder):
    """Wider than nothing and narrower than the tasks' own: not the two tasks themselves."""
    for task in ("S", "B"):
        for path in folder.rglob(f"{task}.json"):
            path.unlink()
    results(folder, "base", 2.0, tasks=("A", "B"))
    table = compare.compare([f"{folder}:base", f"{folder}:gem"], 50)
    assert [mean.group for mean in table.means] == ["MMLU"], "one task has no mean"
    results(folder, "gem", 1.0, tasks=("A", "B"))
    table = compare.compare([f"{folder}:base", f"{folder}:gem"], 2000)
    tasks = [row for row in table.rows if row.group == "mteb"]
    (mean,) = [row for row in table.means if row.group == "mteb"]
    assert len(tasks) == 2

    def width(row, i):
        low, high = [*row.intervals, *row.difference_intervals][i]
        return high - low

    for i in range(3):
        independent = np.hypot(*(width(row, i) for row in tasks)) / 2
        assert width(mean, i) == pytest.approx(independent, rel=0.1)
    low, high = mean.difference_intervals[0]
    assert low < mean.differences[0] < high
    assert sorted((low, high)) != pytest.approx(sorted(row.differences[0] for row in tasks))


def test_models_in_one_folder_are_told_apart(folder):
    assert score_files.find(f"{folder}:gem")[0] == "gem"
    with pytest.raises(InputError, match=r"2 models match .*name one: .*:base, .*:gem"):
        score_files.find(str(folder))
    results(folder, "gem", 3.0, revision="b" * 20)
    with pytest.raises(InputError, match=rf"0 models match .*:gem@{'a' * 20}, .*:gem@{'b' * 20}"):
        score_files.find(f"{folder}:gem")
    label, place = score_files.find(f"{folder}:gem@b")
    assert place.mteb.name == "b" * 20
    assert label.startswith("gem@b")
    write_json(place.mteb / "experiments" / "x_1" / "A.json", {})
    assert score_files.find(f"{folder}:gem@{'b' * 20}+x_1")[1].mteb.name == "x_1"
    with pytest.raises(InputError, match="is no folder"):
        score_files.find("nowhere:gem")
    with pytest.raises(InputError, match="holds no results"):
        score_files.find(str(folder / "lm"))


def test_without_items_there_is_no_interval(folder):
    for path in (folder / "items").rglob("*.json"):
        write_json(path, {})
    table = compare.compare([f"{folder}:base", f"{folder}:gem"], 100)
    rows = [row for row in table.rows if row.group == "mteb"]
    assert {(*row.intervals, *row.difference_intervals) for row in rows} == {(None, None, None)}
    mteb, mmlu = table.means
    assert (*mteb.intervals, *mteb.difference_intervals) == (None, None, None)
    assert mmlu.difference_intervals[0]
    why = (
        "The mean of 3 mteb tasks has no interval: no or too few scores of single items of A, B, S."
    )
    assert why in table.markdown()
    assert "mean of 2 MMLU tasks has no" not in table.markdown()


def test_a_seed_below_zero_is_refused(folder):
    with pytest.raises(InputError, match="--seed is -1, it must be 0 or more"):
        compare.compare([f"{folder}:base", f"{folder}:gem"], 50, -1)
