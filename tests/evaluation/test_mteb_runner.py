"""Scores by mteb: equal to mteb's own, kept whole, made once, and never another model's."""

import json
import os
import shutil
import subprocess
import sys
import time

import mteb
import numpy as np
import pytest
from datasets import Dataset
from encode_evaluate import mteb_equal
from encode_evaluate_data import tiny_export, write_rows
from evaluated import place
from hub_copies import gem16
from runs import ROOT
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from gem_ds.errors import InputError
from gem_ds.evaluation import mteb_runner, mteb_tasks, result_files
from gem_ds.evaluation.mteb_runner import Cache, Gem, Settings
from gem_ds.inference.encoder import Encoder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return place(tmp_path_factory.mktemp("mteb"))


def score(here, output, *names, export="gem", **settings):
    model = result_files.candidate(here / "exports" / export)
    tasks = mteb_tasks.select(names, here / "data")
    mteb_runner.run(model, tasks, output, Settings(**settings))
    return output / "results" / model.place


def main_score(path):
    ((entry,),) = json.loads(path.read_text())["scores"].values()
    return entry["main_score"]


def encode(model, texts, task, kind=None):
    about = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=1)
    return model.encode(loader, prompt_type=kind, **about)


def test_every_type_of_task_scores_as_mteb_does_with_sentence_transformers(here, tmp_path):
    found = mteb_equal(tmp_path, here / "exports" / "full")
    assert len(found["scores"]) == 7
    assert found["good"], found["differ"]
    assert len({row["theirs"] for row in found["scores"].values()}) == 7, "they tell nothing apart"


def test_an_adapter_at_eight_summary_tokens_and_mteb_agree_on_what_its_vectors_are(here, tmp_path):
    """From the vectors of the encoder alone: Spearman of cosines, and what mteb wrote down."""
    folder = score(here, tmp_path, "SmallSTS")
    rows = [json.loads(x) for x in (here / "data/SmallSTS/test.jsonl").read_text().splitlines()]
    encoder = Encoder.from_pretrained(here / "exports" / "gem")
    a, b = (encoder.encode([row[key] for row in rows]) for key in ("sentence1", "sentence2"))
    expected = spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic
    assert main_score(folder / "SmallSTS.json") == pytest.approx(expected, abs=1e-6)


def test_prompts_and_cuts_reach_the_encoder_and_keep_results_apart(here, tmp_path):
    (sts,) = mteb_tasks.select(["SmallSTS"], here / "data")
    (search,) = mteb_tasks.select(["SmallRetrieval"], here / "data")
    prompts = {"SmallSTS": "the ", "Retrieval-query": "rain: ", "query": "snow: "}
    tested = result_files.candidate(here / "exports" / "gem")
    model = Gem(tested, Settings(prompts=prompts, truncate_dim=8))
    plain = Encoder.from_pretrained(tested.folder)
    query = mteb.types.PromptType.query
    document = mteb.types.PromptType.document
    for task, kind, prompt in (
        (sts, None, "the "),
        (search, query, "rain: "),
        (search, document, ""),
    ):
        found = encode(model, ["wind", "salt"], task, kind)
        expected = plain.encode([prompt + "wind", prompt + "salt"], truncate_dim=8)
        assert np.abs(found - expected).max() < 1e-6
    with_prompt = score(here, tmp_path, "SmallSTS", prompts={"STS": "rain snow wind "})
    without = score(here, tmp_path, "SmallSTS")
    (apart,) = (with_prompt / "experiments").glob("*/SmallSTS.json")
    assert main_score(apart) != main_score(without / "SmallSTS.json")
    # SentenceTransformers' folder embeds with the same prompt.
    stock = result_files.candidate(here / "exports" / "full" / "model-embed")
    embedded = encode(Gem(stock, Settings(prompts=prompts)), ["wind"], sts)
    own = Encoder.from_pretrained(here / "exports" / "full").encode(["the wind"])
    assert (embedded * own).sum() > 0.9999


def test_prompts_of_nothing_are_refused(here, tmp_path):
    tasks = mteb_tasks.select(["SmallSTS"], here / "data")
    path = tmp_path / "prompts.json"
    path.write_text('{"SmallSTS-query": "a", "STS17": "b", "document": "c"}')
    assert len(mteb_runner.read_prompts(path, tasks)) == 3
    for wrong in ('{"Nothing": "a"}', '{"STS": 3}', "[]", "{"):
        path.write_text(wrong)
        with pytest.raises(InputError, match="holds no prompts"):
            mteb_runner.read_prompts(path, tasks)


def test_a_finished_task_is_not_run_again_and_a_changed_one_is(here, tmp_path):
    """mteb itself would take the old result for the changed data."""
    data = tmp_path / "data"
    shutil.copytree(here / "data" / "SmallSTS", data / "SmallSTS")
    moved = tmp_path / "here"
    moved.mkdir()
    (moved / "exports").symlink_to(here / "exports")
    (moved / "data").symlink_to(data)
    folder = score(moved, tmp_path / "out", "SmallSTS")
    path = folder / "SmallSTS.json"
    first = path.read_bytes()
    score(moved, tmp_path / "out", "SmallSTS")
    assert path.read_bytes() == first, "with its date and times"
    rows = [json.loads(x) for x in (data / "SmallSTS/test.jsonl").read_text().splitlines()]
    write_rows(data / "SmallSTS/test.jsonl", [{**row, "score": 5 - row["score"]} for row in rows])
    score(moved, tmp_path / "out", "SmallSTS")
    assert main_score(path) == pytest.approx(-json.loads(first)["scores"]["test"][0]["main_score"])


def test_another_model_of_the_same_name_has_its_own_results(here, tmp_path):
    first = score(here, tmp_path / "out", "SmallSTS", export="full")
    tiny_export(tmp_path / "exports" / "full", seed=1)
    (tmp_path / "data").symlink_to(here / "data")
    second = score(tmp_path, tmp_path / "out", "SmallSTS", export="full")
    assert first.parent == second.parent
    assert first != second
    assert main_score(first / "SmallSTS.json") != main_score(second / "SmallSTS.json")
    names = mteb.ResultCache(tmp_path / "out").load_results(include_remote=False)
    assert len(names.model_results) == 2, "mteb reads the cache"


def test_a_task_that_fails_is_named_and_the_others_are_kept(here, tmp_path, capsys):
    broken = tmp_path / "data"
    shutil.copytree(here / "data", broken)
    rows = [{"text": "rain", "label": 1}] * 4  # one class cannot be told from another
    for split in ("train", "test"):
        write_rows(broken / "SmallClassification" / f"{split}.jsonl", rows)
    (tmp_path / "exports").symlink_to(here / "exports")
    names = ("SmallClassification", "SmallSTS", "SmallPairs")
    with pytest.raises(InputError, match=r"1 of 3 tasks failed: SmallClassification .*class"):
        score(tmp_path, tmp_path / "out", *names)
    kept = sorted(path.name for path in (tmp_path / "out").glob("results/*/*/Small*.json"))
    assert kept == ["SmallPairs.json", "SmallSTS.json"]
    assert "SmallSTS: " in capsys.readouterr().out


def test_the_papers_tasks_from_copies_of_their_datasets(here, tmp_path):
    gem16(tmp_path / "data")
    (tmp_path / "exports").symlink_to(here / "exports")
    folder = score(tmp_path, tmp_path / "out", "gem16", export="full")
    names = {path.stem for path in folder.glob("*.json")} - {"model_meta"}
    assert names == set(mteb_tasks.GEM16)
    told = json.loads((folder / "STS17.json").read_text())
    assert [entry["hf_subset"] for entry in told["scores"]["test"]] == ["en-en"]
    assert told["dataset_revision"].startswith("local-"), "not the hub's"


def test_killed_at_any_moment_every_file_is_whole_and_the_same_command_ends_it(here, tmp_path):
    script = ROOT / "launch" / "run_eval.py"
    command = [sys.executable, script, "mteb", "--model", here / "exports/full", "--tasks"]
    command += ["SmallSTS", "SmallPairs", "SmallRetrieval", "--data", here / "data"]
    command += ["--output", tmp_path]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout.readline().startswith("SmallSTS: ")
    time.sleep(0.02)
    running.kill()
    running.wait()
    (first,) = tmp_path.glob("results/*/*/SmallSTS.json")
    made = first.stat().st_mtime_ns
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())
    model = result_files.candidate(here / "exports" / "full")
    tasks = mteb_tasks.select(["SmallSTS", "SmallPairs", "SmallRetrieval"], here / "data")
    mteb_runner.run(model, tasks, tmp_path, Settings())
    assert len(list(tmp_path.glob("results/*/*/Small*.json"))) == 3
    assert first.stat().st_mtime_ns == made


def test_several_jobs_write_one_cache(here, tmp_path):
    """Each adds lines to the same file of settings; none is lost."""
    folder = score(here, tmp_path, "SmallSTS")
    cache, model = Cache(tmp_path), Gem(result_files.candidate(here / "exports/gem"), Settings())
    result = cache.load_task_result("SmallSTS", model.mteb_model_meta)
    children = []
    for n in range(4):
        if (pid := os.fork()) == 0:
            for i in range(8):
                copy = result.model_copy(update={"task_name": f"Task{n}-{i}"})
                cache.save_to_cache(copy, model.mteb_model_meta)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    lines = (folder / "run_settings.jsonl").read_text().splitlines()
    expected = {"SmallSTS", *(f"Task{n}-{i}" for n in range(4) for i in range(8))}
    assert {json.loads(line)["task"] for line in lines} == expected
    left = {path.name for path in folder.iterdir() if path.is_dir()}
    assert left == set(), "nothing aside is left"
