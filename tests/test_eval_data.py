"""Datasets in folders are read as they are now, whatever `datasets` kept of their name."""

import datasets
import pytest
from encode_evaluate_data import write_rows
from hub_copies import readme

from gem_ds.errors import InputError
from gem_ds.eval_data import Needed, check_hub, local


def copy(folder, texts):
    write_rows(folder / "rows.jsonl", [{"text": text} for text in texts])
    readme(folder, {"default": {"test": "rows.jsonl"}})
    return folder


def read(folder):
    return datasets.load_dataset(local(folder).path, split="test")["text"]


def test_a_changed_dataset_and_one_of_the_same_name_are_read_anew(tmp_path):
    first, second = tmp_path / "a" / "Copied", tmp_path / "b" / "Copied"
    assert read(copy(first, ["one"])) == ["one"]
    assert read(copy(second, ["two", "three"])) == ["two", "three"]
    before = local(first).revision
    assert read(copy(first, ["four"])) == ["four"]
    assert local(first).revision != before
    assert read(copy(first, ["one"])) == ["one"]
    assert local(first).revision == before


def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    wanted = [Needed(name, "no-such-owner/none", None, name) for name in ("A", "B", "C")]
    with pytest.raises(InputError) as caught:
        check_hub(wanted, tmp_path)
    said = str(caught.value)
    assert said.startswith(
        "the data of A (2 more tasks want the hub) cannot be had: looked for in "
    )
    assert said.endswith("elsewhere, put it into FOLDER/A, and give --data FOLDER")
    check_hub([], None)
