"""Scores by lm-eval: equal to lm-eval's own, kept once, MMLU's mean over subjects."""

import json
from pathlib import Path

import lm_eval
import pytest
from encode_evaluate import lm_equal
from evaluated import place
from hub_copies import SUBJECTS, mmlu
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from gem_ds.errors import InputError
from gem_ds.evaluation import lm_eval_runner, result_files
from gem_ds.evaluation.lm_eval_runner import Scorer, Settings


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = place(tmp_path_factory.mktemp("lm"))
    mmlu(folder / "hub")
    groups = "group: small_group\ntask:\n  - small_choice\n"
    groups += "aggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    (folder / "yaml" / "small_group.yaml").write_text(groups)
    return folder


@pytest.fixture(scope="module")
def tasks(here):
    return lm_eval_runner.manager(here / "yaml")


def scorer(here, tasks, export="gem", **settings):
    return Scorer(result_files.candidate(here / "exports" / export), tasks, Settings(**settings))


def test_scores_are_those_of_lm_eval(here, tmp_path):
    found = lm_equal(tmp_path, here / "exports" / "full")
    assert found["good"], found
    assert found["scores"]["acc,none"]["ours"] not in (0, 1), "it tells nothing apart"


def test_a_group_with_few_shots_and_a_limit_is_scored_as_by_lm_eval(here, tasks, tmp_path):
    units = lm_eval_runner.select(tasks, ["small_group"], None)
    (path,) = lm_eval_runner.run(scorer(here, tasks, num_fewshot=1, limit=7), units, tmp_path)
    told = json.loads(path.read_text())
    lm = HFLM(str(here / "exports/gem/model"), device="cpu", dtype="float32", batch_size=8)
    expected = lm_eval.simple_evaluate(
        lm,
        tasks=["small_group"],
        num_fewshot=1,
        limit=7,
        task_manager=TaskManager(include_path=str(here / "yaml"), include_defaults=False),
    )
    (name,) = told["tasks"]
    kept = told["tasks"][name]
    assert kept["metrics"]["acc,none"] == expected["results"]["small_choice"]["acc,none"]
    assert (
        told["groups"]["small_group"]["acc,none"] == expected["groups"]["small_group"]["acc,none"]
    )
    assert (kept["n"], kept["shots"], kept["version"], kept["split"]) == (7, 1, 1.0, "test")
    items = kept["items"]["acc,none"]
    samples = expected["samples"]["small_choice"]
    assert items == {str(s["doc_id"]): s["acc"] for s in samples}


def test_what_is_there_stays_and_other_settings_are_refused(here, tasks, tmp_path, capsys):
    units = lm_eval_runner.select(tasks, ["small_choice"], None)
    (path,) = lm_eval_runner.run(scorer(here, tasks, limit=5), units, tmp_path)
    path.write_text(path.read_text().replace('"acc,none": 0.', '"acc,none": 1.', 1))
    capsys.readouterr()
    assert lm_eval_runner.run(scorer(here, tasks, limit=5), units, tmp_path) == [path]
    assert "small_choice: acc 1." in capsys.readouterr().out
    with pytest.raises(InputError, match="limit 5 instead of None"):
        lm_eval_runner.run(scorer(here, tasks), units, tmp_path)


def test_a_result_of_data_that_changed_is_refused(here, tasks, tmp_path):
    units = lm_eval_runner.select(tasks, ["small_choice"], None)
    lm_eval_runner.run(scorer(here, tasks, limit=5), units, tmp_path)
    path = here / "yaml" / "test.jsonl"
    before = path.read_text()
    try:
        path.write_text(before.replace("the", "The"))
        units = lm_eval_runner.select(tasks, ["small_choice"], None)
        with pytest.raises(InputError, match=r"was made with task and data \w{20} instead of"):
            lm_eval_runner.run(scorer(here, tasks, limit=5), units, tmp_path)
    finally:
        path.write_text(before)


def test_mmlu_is_five_shots_and_each_subject_weighs_the_same(here, tasks, tmp_path):
    assert len(lm_eval_runner.subjects(tasks)) == 57
    names = lm_eval_runner.subjects(tasks, SUBJECTS)
    units = lm_eval_runner.select(tasks, names, here / "hub")
    paths = lm_eval_runner.run(
        scorer(here, tasks, num_fewshot=lm_eval_runner.SHOTS), units, tmp_path
    )
    kept = [json.loads(path.read_text())["tasks"] for path in paths]
    accuracies = []
    for name, told in zip(names, kept, strict=True):
        assert told[name]["shots"] == 5
        items = told[name]["items"]["acc,none"]
        assert len(items) == told[name]["n"] == {"anatomy": 6, "astronomy": 11}[name[5:]]
        accuracies.append(sum(items.values()) / len(items))
    assert lm_eval_runner.macro_average(paths) == pytest.approx(sum(accuracies) / 2)
    assert accuracies[0] != accuracies[1]


def test_mmlu_from_a_folder_is_what_lm_eval_reads_there(here, tasks):
    (unit,) = lm_eval_runner.select(tasks, ["mmlu_anatomy"], here / "hub")
    (task,) = tasks.load([unit.spec])["tasks"].values()
    assert Path(task.config.dataset_path).resolve() == (here / "hub" / "cais" / "mmlu").resolve()
    assert task.config.description.endswith("about anatomy.\n\n")
    first = task.dataset["test"][0]
    assert f"{first['question']}\nA. {first['choices'][0]}\n" in task.doc_to_text(first)


def test_a_tag_is_its_tasks_and_unknown_names_are_refused(here, tasks):
    names = [unit.name for unit in lm_eval_runner.select(tasks, ["mmlu_stem_tasks"], here / "hub")]
    assert "mmlu_anatomy" in names
    assert len(names) == 19
    with pytest.raises(InputError, match="no task 'small_choise'"):
        lm_eval_runner.select(tasks, ["small_choise"], None)
    with pytest.raises(InputError, match="poetry is no subject of MMLU; these are: abstract_alg"):
        lm_eval_runner.subjects(tasks, ["poetry"])
    with pytest.raises(InputError, match="is no folder"):
        lm_eval_runner.manager(here / "nowhere")
    with pytest.raises(InputError, match="only embeds"):
        Scorer(result_files.candidate(here / "exports/full/model-embed"), tasks, Settings())
