"""Tasks by name and tasks of one's own: what they are made of, and what is refused."""

import json
import shutil

import mteb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encode_evaluate_data import local_tasks, write_rows
from hub_copies import gem16

from gem_ds.errors import InputError
from gem_ds.evaluation import mteb_tasks
from gem_ds.evaluation.mteb_tasks import FORMS, GEM16, own_task, select


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    local_tasks(folder)
    return folder


@pytest.fixture
def data(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "data")


def test_the_papers_sixteen_are_in_mtebs_registry_in_english(tmp_path):
    gem16(tmp_path)
    tasks = select(["gem16"], tmp_path)
    assert [task.metadata.name for task in tasks] == GEM16
    assert len(GEM16) == len(set(GEM16)) == 16
    assert all(set(task.languages) == {"eng"} for task in tasks)
    assert {t.metadata.name: t.hf_subsets for t in tasks if t.metadata.is_multilingual} == {
        "MassiveIntentClassification": ["en"],
        "STS17": ["en-en"],
    }
    assert all(list(task.eval_splits) == ["test"] for task in tasks)


def test_the_set_of_the_second_benchmark_is_all_of_it():
    names = {task.metadata.name for task in mteb_tasks._set("eng-v2")}
    assert names == {task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v2)").tasks}
    assert len(names) == 41


def test_a_folder_stands_in_for_the_hub_and_its_content_is_the_revision(tmp_path):
    gem16(tmp_path)
    (task,) = select(["NFCorpus"], tmp_path)
    for _ in range(2):  # what is unloaded can be loaded again, from the same place
        task.load_data()
        assert len(task.dataset["default"]["test"]["corpus"]) == 12
        task.unload_data()
    first = task.metadata.revision
    assert select(["NFCorpus"], tmp_path)[0].metadata.revision == first
    path = tmp_path / "NFCorpus" / "queries.jsonl"
    path.write_text(path.read_text().replace("q0", "q9"))
    assert select(["NFCorpus"], tmp_path)[0].metadata.revision != first
    assert mteb.get_task("NFCorpus").metadata.revision != first, "mteb's own task is as it was"


def test_a_copy_without_its_readme_is_refused(tmp_path):
    gem16(tmp_path)
    (tmp_path / "NFCorpus" / "README.md").unlink()
    with pytest.raises(InputError, match=r"NFCorpus .* no part corpus; copy the whole dataset"):
        select(["NFCorpus"], tmp_path)


def test_each_type_is_mtebs_with_its_settings(made):
    for path in made.iterdir():
        task = own_task(path)
        told = json.loads((path / "task.json").read_text())
        assert isinstance(task, FORMS[told["type"]].base)
        assert task.metadata.type == told["type"]
        assert task.metadata.main_score == FORMS[told["type"]].main_score
    assert own_task(made / "SmallSummaries").max_score == 6
    assert own_task(made / "SmallClustering").max_fraction_of_documents_to_embed is None
    ranked = own_task(made / "SmallReranking")
    ranked.load_data()
    assert {len(v) for v in ranked.dataset["default"]["test"]["top_ranked"].values()} == {20}


def test_parquet_is_the_same_as_jsonl(data):
    path = data / "SmallSTS" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    task = own_task(data / "SmallSTS")
    task.load_data()
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    path.unlink()
    other = own_task(data / "SmallSTS")
    other.load_data()
    assert other.dataset["test"].to_list() == task.dataset["test"].to_list() == rows


def test_what_a_task_lacks_is_said_before_anything_runs(data):
    def refused(name, match):
        with pytest.raises(InputError, match=match):
            select([name], data)

    (data / "SmallClassification" / "train.jsonl").unlink()
    refused("SmallClassification", r"train.jsonl or .*train.parquet is missing")
    write_rows(data / "SmallSTS" / "test.jsonl", [{"a": "x", "sentence2": "y", "score": 1}])
    refused("SmallSTS", "columns a, sentence2, score, but not sentence1")
    (data / "SmallPairs" / "test.jsonl").write_text("no json\n")
    refused("SmallPairs", "test.jsonl cannot be read")
    rows = [{"query-id": "q0", "corpus-id": "other", "score": 1}]
    write_rows(data / "SmallRetrieval" / "qrels" / "test.jsonl", rows)
    refused("SmallRetrieval", "names 'other' .* not among corpus and queries")
    write_rows(data / "SmallReranking" / "corpus.jsonl", [{"text": "a"}])
    refused("SmallReranking", "has no column _id")
    for told, match in (
        ({"name": "SmallSummaries", "type": "Poetry"}, "needs a name and a type, one of STS"),
        ({"name": "SmallSummaries", "type": "STS", "max_scores": 3}, "max_scores"),
        ({"name": "Other", "type": "STS"}, "call its folder so"),
        (
            {"name": "SmallSummaries", "type": "STS", "splits": 3},
            r"is no task \(eval_splits: Input",
        ),
    ):
        (data / "SmallSummaries" / "task.json").write_text(json.dumps(told))
        refused("SmallSummaries", match)


def test_names_that_are_none_are_refused(made):
    with pytest.raises(InputError, match="no task 'STSBenchmrak'"):
        select(["STSBenchmrak"], made)
    with pytest.raises(InputError, match="names SmallSTS twice"):
        select(["SmallSTS", "SmallSTS"], made)
    with pytest.raises(InputError, match="CQADupstackRetrieval is the average of other tasks"):
        select(["CQADupstackRetrieval"], made)
