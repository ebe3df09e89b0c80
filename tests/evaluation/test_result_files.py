"""The model under test and its digest, shares, and tasks that fail."""

import json
import shutil

import pytest
from encode_evaluate_data import tiny_export
from exports import unseal

from gem_ds.errors import InputError
from gem_ds.evaluation.result_files import candidate, run_each, share_of, write_json


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("results") / "a model", k=2, adapter=True)


def test_the_revision_is_the_content_and_nothing_else(export, tmp_path):
    model = candidate(export)
    assert (model.name, model.is_export) == ("local/a_model", True)
    assert candidate(export / "model") == model
    copy = shutil.copytree(export, tmp_path / "b")
    assert candidate(copy).revision == model.revision
    (copy / "model" / ".cache").write_text("x")
    assert candidate(copy).revision == model.revision
    (copy / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"model/config\.json"):
        candidate(copy)
    shutil.copy(export / "model" / "config.json", copy / "model")
    unseal(copy)
    unsealed = candidate(copy).revision
    for name in (
        "model/model.safetensors",
        "model/gem_config.json",
        "adapter/adapter_model.safetensors",
    ):
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(
            whole[:-1] + bytes([whole[-1] ^ 1]) if name.endswith("s") else whole + b"\n"
        )
        assert candidate(copy).revision != unsealed, name
        path.write_bytes(whole)
    assert candidate(copy).revision == unsealed


def test_a_folder_that_is_no_model_is_refused(export, tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    assert not candidate(tmp_path).is_export
    with pytest.raises(InputError, match="holds neither"):
        candidate(export.parent)


def test_shares_are_all_and_each_once():
    units = list("abcdefg")
    parts = [share_of(units, f"{i}/3") for i in range(3)]
    assert sorted(parts[0] + parts[1] + parts[2]) == units
    assert {len(part) for part in parts} == {2, 3}
    assert share_of(units, None) == units
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(InputError, match="is no share"):
            share_of(units, wrong)


def test_failures_are_named_at_the_end(capsys):
    done = []

    def do(name):
        if name in "bd":
            raise ValueError(f"no {name}\nand more")
        done.append(name)
        return name * 2

    with pytest.raises(
        InputError, match=r"2 of 5 tasks failed: b \(no b\); d \(no d\)\. The others"
    ):
        run_each("abcde", str, do)
    assert done == ["a", "c", "e"]
    out, err = capsys.readouterr()
    assert out == "a: aa\nc: cc\ne: ee\n"
    assert "Traceback" in err, "of what is no mistake of the user's"


def test_json_appears_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"é": 1})
    assert json.loads(path.read_text()) == {"é": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"é": 1}
    assert list(path.parent.iterdir()) == [path]
