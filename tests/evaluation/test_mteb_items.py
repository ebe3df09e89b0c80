"""Items of a task make its score again; what would not is left out."""

import json

import pytest
from encode_evaluate_data import local_tasks, tiny_export
from hub_copies import gem16

from gem_ds.evaluation import mteb_items, mteb_runner, mteb_tasks, result_files


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Folders of results and of items, of all small tasks and three of mteb's."""
    folder = tmp_path_factory.mktemp("items")
    model = result_files.candidate(tiny_export(folder / "model"))
    gem16(folder / "data")
    local_tasks(folder / "own")
    tasks = mteb_tasks.select(["ArguAna", "SciDocsRR", "SICK-R"], folder / "data")
    tasks += mteb_tasks.select([p.name for p in (folder / "own").iterdir()], folder / "own")
    mteb_runner.run(model, tasks, folder / "out", mteb_runner.Settings())
    return folder / "out" / "results" / model.place, folder / "out" / "items" / model.place


def test_they_make_the_score(scored):
    results, items = scored
    found = {}
    for path in items.glob("*.json"):
        told = json.loads((results / path.name).read_text())["scores"]["test"]
        for place, own in json.loads(path.read_text()).items():
            (entry,) = [e for e in told if place == f"test/{e['hf_subset']}"]
            assert mteb_items.mean(own) == pytest.approx(entry["main_score"], abs=2e-5)
            found[path.stem] = next(iter(own))
    assert found == {
        "ArguAna": "values",  # which leaves out a query's own text
        "SciDocsRR": "values",
        "SICK-R": "pairs",
        "SmallSTS": "pairs",
        "SmallRetrieval": "values",
        "SmallReranking": "values",
    }
    assert {path.name for path in items.glob("*.json")} == {
        path.name for path in results.glob("*.json") if path.name != "model_meta.json"
    }, "that a task has none is kept, too"
    assert not [path for path in items.iterdir() if path.is_dir()], "predictions are gone"


def test_a_score_of_its_own_kind_has_no_items(tmp_path):
    """A task that scores otherwise than its measure's name says must not get a wrong interval."""
    local_tasks(tmp_path / "tasks")
    told = {"test": [{"hf_subset": "default", "main_score": 0.5}]}
    task = mteb_tasks.own_task(tmp_path / "tasks" / "SmallSTS")
    task.load_data()
    predictions = {"default": {"test": {"cosine_scores": [0.1 * i for i in range(40)]}}}
    (tmp_path / task.prediction_file_name).write_text(json.dumps(predictions))
    assert mteb_items.of_task(task, told, tmp_path) == {}
    model = predictions["default"]["test"]["cosine_scores"]
    pairs = list(zip(model, task.dataset["test"]["score"], strict=True))
    right = mteb_items.mean({"pairs": pairs})
    told["test"][0]["main_score"] = right
    assert mteb_items.of_task(task, told, tmp_path).keys() == {"test/default"}
