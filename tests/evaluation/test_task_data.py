"""Datasets in folders are read as they are now, whatever `datasets` kept of their name."""

import datasets
import pytest
from encode_evaluate_data import write_rows
from hub_copies import readme

from gem_ds.errors import InputError
from gem_ds.evaluation.task_data import Needed, check_hub, local, table


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


QRELS = ("query-id", "corpus-id", "score")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.tsv", "query-id\tcorpus-id\tscore\nq0\t007\t1\nNA\t1e5\t2\n"),
        ("test.TSV", "query-id\tcorpus-id\tscore\r\nq0\t007\t1\r\nNA\t1e5\t2\r\n"),
        ("test.csv", "query-id,corpus-id,score\nq0,007,1\nNA,1e5,2\n\n"),
        (
            "test.jsonl",
            '{"query-id": "q0", "corpus-id": "007", "score": 1}\n\n'
            '{"query-id": "NA", "corpus-id": "1e5", "score": 2}\n',
        ),
        (
            "test.json",
            '[{"query-id": "q0", "corpus-id": "007", "score": 1},\n'
            ' {"query-id": "NA", "corpus-id": "1e5", "score": 2}]',
        ),
    ],
)
def test_a_table_may_be_of_any_format(tmp_path, name, content):
    """Ids stay what is written, scores become numbers."""
    (tmp_path / name).write_text(content, newline="")
    rows = table(tmp_path / "test", QRELS).to_list()
    assert rows == [
        {"query-id": "q0", "corpus-id": "007", "score": 1},
        {"query-id": "NA", "corpus-id": "1e5", "score": 2},
    ]


def test_scores_of_csv_are_numbers_if_all_of_them_are(tmp_path):
    for cells, numbers in ((["1", "2.5"], [1.0, 2.5]), (["1", "x"], ["1", "x"])):
        (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t,{c}\n" for c in cells))
        assert list(table(tmp_path / "a", ("text", "label"))["label"]) == numbers


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test.tsv": "q0\t0\t1\n"}, r"test\.tsv has no rows after its first line"),
        (
            {"test.tsv": "q0\t0\t1\n" * 2},
            r"test\.tsv has the columns q0, 0, 1 in its first line, but",
        ),
        ({"test.tsv": "query-id\tcorpus-id\tscore\nq0\t0\n"}, r"test\.tsv cannot be read .line 2"),
        ({"test.jsonl": "{}\n", "test.tsv": "a\n"}, "are the same data; remove one of them"),
        ({"test.md": "", "test.x.jsonl": "{}"}, r"test\.jsonl or .*test\.tsv .* is missing"),
        ({"test.jsonl": '{"a": 1}\nno\n'}, r"test\.jsonl cannot be read .line 2: invalid JSON"),
        ({"test.csv": b"query-id,corpus-id,score\n\xff,a,1\n"}, "line 2: invalid UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, files, message):
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=message):
        table(tmp_path / "test", QRELS)


def test_lists_do_not_fit_into_csv(tmp_path):
    (tmp_path / "a.csv").write_text('query-id,corpus-ids\nq0,"[1]"\n')
    with pytest.raises(InputError, match="corpus-ids holds lists, which CSV cannot"):
        table(tmp_path / "a", ("query-id", "corpus-ids"))
