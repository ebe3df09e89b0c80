"""What looks like a path is one: no folder with a typing error is looked for on the hub."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from gem_ds import GemModel, files
from gem_ds.corpus import discovery, tokenization
from gem_ds.errors import InputError
from gem_ds.evaluation.result_files import candidate
from gem_ds.evaluation.task_data import check_hub
from gem_ds.export.merge_base import open_base
from gem_ds.model import base_model

MISSING = ["exports/gemm", "./gem", "../gem", "/nowhere/gem", "~/gem", "a/b/c", "gem/", "x.json"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with exports/gem; the hub must not be asked."""
    (tmp_path / "exports" / "gem").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    monkeypatch.setattr(AutoConfig, "from_pretrained", asked)


READERS = {
    "an export": GemModel.from_pretrained,
    "a tokenizer": tokenization.load,
    "a base": base_model.read_config,
    "its weights": lambda name: base_model.load(name, "auto"),
    "a base to average with": lambda name: open_base(name, None, None),
    "a dataset": lambda name: discovery.find([f"dataset:{name}"], [], "out"),
    "a model to score": lambda name: candidate(Path(name)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", MISSING)
def test_a_missing_folder_is_named(reader: str, name: str) -> None:
    with pytest.raises(InputError, match="there is no folder") as told:
        READERS[reader](name)
    assert name.removeprefix("./").rstrip("/") in str(told.value)
    assert "\n" not in str(told.value)


def test_the_near_name_is_told() -> None:
    with pytest.raises(InputError, match=r"exports/gemm: exports has no gemm; is it exports/gem\?"):
        GemModel.from_pretrained("exports/gemm")
    with pytest.raises(InputError, match=r"exports/gem/model has no|gem has no gem_config"):
        GemModel.from_pretrained("exports/gem")


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"])
def test_other_names_are_the_hubs(name: str) -> None:
    assert not files.is_path(name)
    with pytest.raises((AssertionError, InputError), match="the hub was asked"):
        tokenization.load(name)


def test_a_missing_folder_of_data_is_no_hub_download() -> None:
    with pytest.raises(InputError, match="there is no folder --data exports/data"):
        check_hub([], Path("exports/data"))
