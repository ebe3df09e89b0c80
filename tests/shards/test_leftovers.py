"""What data preparation finds in its folder: receipts and files of runs that ended, runs that are.

Whatever it is, the folder ends byte for byte as if nothing had happened.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from kills_runs import hashes
from processes import until
from surviving import assert_finishes, assert_unfinished, begin, command, config, write_corpus

from gem_ds.errors import InputError
from gem_ds.shards import executors, prepare
from gem_ds.shards.manifest import MANIFEST


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(
    corpus: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare.prepare(config(corpus, tokenizer_dir, folder))
    return folder


SPOILED = {
    "a shard is missing": lambda out: (out / "shard-00002.parquet").unlink(),
    "a shard is cut short": lambda out: os.truncate(out / "shard-00002.parquet", 1000),
    "a list is missing": lambda out: (out / "units" / "00002.skipped.jsonl").unlink(),
    "a receipt is missing": lambda out: (out / "units" / "00002.json").unlink(),
    "a receipt is cut short": lambda out: os.truncate(out / "units" / "00002.json", 300),
    "a receipt is empty": lambda out: os.truncate(out / "units" / "00002.json", 0),
    "a receipt is zeros": lambda out: (out / "units" / "00002.json").write_bytes(bytes(600)),
    "a receipt is bytes": lambda out: (out / "units" / "00002.json").write_bytes(b"\xff" * 600),
    "a receipt is a list": lambda out: (out / "units" / "00002.json").write_text("[1]"),
    "a receipt is of another plan": lambda out: other_plan(out / "units" / "00002.json"),
    "a receipt is of another unit": lambda out: shutil.copy(
        out / "units" / "00001.json", out / "units" / "00002.json"
    ),
}


def other_plan(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": "0" * 64}))


@pytest.mark.parametrize("what", SPOILED)
def test_a_unit_that_is_not_what_its_receipt_says(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path, what: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    (output / MANIFEST).unlink()
    SPOILED[what](output)
    before = {path: path.stat().st_ino for path in output.glob("units/*.json")}
    assert_finishes(config(corpus, tokenizer_dir, output, workers=1), undisturbed)
    redone = {path.stem for path, inode in before.items() if path.stat().st_ino != inode}
    assert redone <= {"00002"}


def test_a_tokenizer_that_was_exchanged_gets_no_manifest(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Also where all units are done, so that no worker looks at it."""
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    (output / MANIFEST).unlink()
    path = output / "tokenizer" / "tokenizer.json"
    told = json.loads(path.read_text())
    vocab = told["model"]["vocab"]
    one, other = list(vocab)[100:102]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match="tokenizer is not the tokenizer of the plan"):
        prepare.prepare(config(corpus, tokenizer_dir, output))
    assert not (output / MANIFEST).exists()


def test_what_killed_processes_left_is_removed(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    (output / MANIFEST).unlink()
    for name in ("shard-00001.parquet", "manifest.json", "units/00003.json", "plan.json"):
        (output / f"{name}.some-host-17.tmp").write_text("half of i")
    assert_finishes(config(corpus, tokenizer_dir, output), undisturbed)


def test_two_runs_at_once(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = subprocess.Popen(command(corpus, tokenizer_dir, output), stderr=subprocess.DEVNULL)
    assert until((output / "plan.json").exists, 20)
    first.send_signal(signal.SIGSTOP)
    again = [command(corpus, tokenizer_dir, output, *more) for more in ([], ["--share", "0/2"])]
    others = [subprocess.run(each, capture_output=True, text=True) for each in again]
    first.send_signal(signal.SIGCONT)
    for other in others:
        assert other.returncode == 2
        assert other.stderr == f"error: another run is writing {output}; wait for it\n"
    assert first.wait(30) == 0
    assert hashes(output) == hashes(undisturbed)


def test_a_run_and_tasks_of_a_cluster_keep_each_other_out(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """What a task is writing is no leftover."""
    output = tmp_path / "out"
    plan = begin(corpus, tokenizer_dir, output)
    living = output / "shard-00000.parquet.another-host-7.tmp"
    living.touch()
    with executors.claimed(output, alone=False):
        with pytest.raises(InputError, match="another run is writing"):
            prepare.prepare(config(corpus, tokenizer_dir, output))
        assert living.exists()
        task = executors.Share(output, tuple(range(len(plan.units))), workers=1)
        task(None, 0, 3)
    assert living.exists()
    assert len(assert_unfinished(output, killed=True)) == 2
    with executors.claimed(output, alone=True):
        for other in (task, executors.Finish(output, 0.5)):
            with pytest.raises(InputError, match="another run is writing"):
                other(None, 1, 3)
    assert_finishes(config(corpus, tokenizer_dir, output), undisturbed)


def test_who_submits_lets_the_tasks_in(tmp_path: Path) -> None:
    with executors.claimed(tmp_path / "out", alone=True) as let_others_in:
        let_others_in()
        with executors.claimed(tmp_path / "out", alone=False):
            pass


def test_shares_at_once(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shares = [command(corpus, tokenizer_dir, output, "--share", f"{i}/2") for i in range(2)]
    without_a_plan = subprocess.run(shares[0], capture_output=True, text=True)
    assert without_a_plan.returncode == 2
    assert "has no plan yet" in without_a_plan.stderr
    subprocess.run(command(corpus, tokenizer_dir, output, "--only-plan"), check=True)
    runs = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in shares]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert_finishes(config(corpus, tokenizer_dir, output), undisturbed)


def test_a_share_alone_leaves_the_rest(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    begin(corpus, tokenizer_dir, tmp_path)
    assert prepare.prepare(config(corpus, tokenizer_dir, tmp_path, share="1/3")) is None
    assert len(assert_unfinished(tmp_path)) == 2
    assert_finishes(config(corpus, tokenizer_dir, tmp_path), undisturbed)
