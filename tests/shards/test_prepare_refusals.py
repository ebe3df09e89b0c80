"""Data preparation as a user runs it: what it leaves out, refuses, or finds done already."""

import json
from pathlib import Path

import pytest
from kills_runs import hashes
from prepared import in_process, run, words, write_jsonl

from gem_ds.errors import InputError
from gem_ds.shards import prepare
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.dataset import Shards
from gem_ds.shards.manifest import Manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = [{"text": words(1 + i, i)} for i in range(100)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", content)


def test_bad_records_are_skipped_counted_and_quarantined(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    good = json.dumps({"text": words(30, 0)}).encode()
    corpus = tmp_path / "corpus.jsonl"
    bad = [b'{"text": "b\xffd"}', b"{", b'{"txt": 1}', b'{"text": 1}', b'{"text": "\\udc00"}', b"7"]
    corpus.write_bytes(b"\n".join([good, *bad, b'{"text": " "}', b"", good]))
    common = ["--input", corpus, "--tokenizer", tokenizer_dir, "--workers", 1]
    output = tmp_path / "out"
    done = run(*common, "--output", output)
    assert done.returncode == 2
    assert f"6 of 9 records could not be read, first {corpus}:2: invalid UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (output / "manifest.json").exists()
    with pytest.raises(InputError, match="did not finish"):
        Shards(output)

    done = run(*common, "--output", output, "--max-bad-fraction", 0.7)  # takes the folder over
    assert done.returncode == 0, done.stderr
    counts = Manifest.load(output).counts
    assert counts["documents_in"] == 9
    assert counts["records_written"] == 2
    assert counts["skipped"] == {
        "empty text": 1,
        "invalid JSON": 1,
        "invalid UTF-8": 1,
        "lone surrogate": 1,
        "missing field 'text'": 1,
        "not a JSON object": 1,
        "not a string": 1,
    }
    quarantine = [json.loads(line) for line in (output / "quarantine.jsonl").open()]
    assert [entry["line"] for entry in quarantine] == list(range(2, 9))
    assert quarantine[0] == {"file": str(corpus), "line": 2, "reason": "invalid UTF-8"}
    assert "7 skipped" in done.stdout
    assert "quarantine.jsonl" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kinds": "pair=1"},
            r"missing field 'context' \(it has id, text, body; name the right one",
        ),
        (
            {"text_field": "txt"},
            r":1: missing field 'txt' \(it has id, text, body; did you mean text",
        ),
        ({"kinds": "pair=1", "context_field": "text"}, "missing field 'answer'"),
        ({"text_field": "body"}, r"missing field 'body' \(it is null"),
        ({"text_field": "id"}, r"not a string \(id is of type int"),
    ],
)
def test_a_field_that_is_not_there_is_named(
    tokenizer_dir: Path, tmp_path: Path, options: dict, message: str
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"id": 1, "text": "x", "body": None}] * 2)
    with pytest.raises(InputError, match=message):
        in_process(corpus, tokenizer_dir, tmp_path / "out", **options)


def test_the_output_may_lie_in_the_input(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out at the first start, when it goes on, and when it is finished."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(corpus.read_bytes())
    output = folder / "shards"
    before = in_process(folder, tokenizer_dir, output).manifest
    assert "left out" not in capsys.readouterr().err
    (output / "manifest.json").unlink()
    assert in_process(folder, tokenizer_dir, output).manifest == before
    assert in_process(folder, tokenizer_dir, output).manifest == before
    told = capsys.readouterr()
    assert told.err.count("(in --output)") == 2
    assert "already finished" in told.out
    other = in_process(folder, tokenizer_dir, tmp_path / "other").manifest
    assert other.counts == before.counts
    assert "shards of another run" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--input .*data lies in --output"):
        in_process(folder, tokenizer_dir, folder)


def test_a_wrong_field_is_noticed_at_once(tokenizer_dir: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"body": "x"}] * 40_000)
    with pytest.raises(InputError, match="missing field") as caught:
        in_process(corpus, tokenizer_dir, tmp_path / "out")
    assert " of 40,000 records" not in str(caught.value)


def test_running_again(corpus: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["--input", corpus, "--tokenizer", tokenizer_dir, "--output", output, "--workers", 1]
    assert run(*command).returncode == 0
    before = hashes(output)
    again = run(*command)
    assert (again.returncode, hashes(output)) == (0, before)
    assert "already finished" in again.stdout
    other = run(*command, "--row-length", 512, "--seed", 3)
    assert other.returncode == 2
    assert "--row-length was 2048 and is 512; --seed was 0 and is 3" in other.stderr
    assert hashes(output) == before

    (output / "manifest.json").unlink()  # as after a crash
    (output / "shard-00000.parquet.host-1.tmp").touch()
    receipt = (output / "units" / "00000.json").read_text()
    (output / "units" / "00000.json").unlink()
    assert run(*command).returncode == 0
    assert hashes(output) == before
    assert (output / "units" / "00000.json").read_text() == receipt


def test_a_folder_of_something_else_is_left_alone(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "precious").touch()
    with pytest.raises(InputError, match="holds files that are not ours"):
        in_process(corpus, tokenizer_dir, tmp_path)
    assert (tmp_path / "tokenizer" / "precious").exists()


def test_too_little_space_is_noticed_before_the_start(tokenizer_dir: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jsonl" for i in range(1000)]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # sparse; a thousand of them, for which no disk has room
    config = PrepareConfig([*map(str, paths)], str(tokenizer_dir), str(tmp_path / "out"))
    with pytest.raises(InputError, match="make room or give another --output"):
        prepare.prepare(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summary_tokens": 0}, "at least one summary token"),
        ({"row_length": 18}, "--row-length 18 is too short; give at least"),
        ({"min_suffix": 0}, "--min-suffix 0 is out of range"),
        ({"kinds": "plain=0.3"}, "add up to 1"),
        ({"text_field": "nope"}, "missing field"),
        ({"tokenizer": "nowhere/at/all"}, "no folder nowhere/at/all"),
        ({"input": ["/nowhere.jsonl"]}, "no corpus file /nowhere.jsonl"),
    ],
)
def test_options_that_cannot_be_met(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path, options: dict, message: str
) -> None:
    named = {"input": [str(corpus)], "tokenizer": str(tokenizer_dir), "output": str(tmp_path / "o")}
    with pytest.raises(InputError, match=message):
        prepare.prepare(PrepareConfig(**named | {"workers": 1, "min_prefix": 8} | options))


@pytest.mark.parametrize(
    ("content", "message"), [("", "the corpus is empty"), ('{"text": ""}\n', "yields nothing")]
)
def test_a_corpus_without_text(
    tokenizer_dir: Path, tmp_path: Path, content: str, message: str
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(content)
    with pytest.raises(InputError, match=message):
        in_process(corpus, tokenizer_dir, tmp_path / "out")
