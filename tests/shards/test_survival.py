"""What goes wrong around data preparation: disks, inputs, settings, memory.

Either it is said in a sentence, and the same command finishes the folder later, byte for byte as if
nothing had happened; or nothing is said, because it does not matter. Kills: see test_kills;
what is in the folder already: test_leftovers.
"""

import functools
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import small_disk
from surviving import assert_finishes, assert_unfinished, begin, command, config, write_corpus

from gem_ds import process_pool
from gem_ds.errors import InputError
from gem_ds.process_pool import Tell
from gem_ds.shards import prepare, unit_context, unit_worker


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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as folder:
        yield folder


def test_a_full_disk(corpus: Path, tokenizer_dir: Path, undisturbed: Path, disk: Path) -> None:
    work = config(corpus, tokenizer_dir, disk / "out", workers=1)
    begin(corpus, tokenizer_dir, disk / "out")
    needed = sum(path.stat().st_size for path in undisturbed.glob("*.parquet"))
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - needed // 2))
    with pytest.raises(InputError, match=r"^\S*/out could not be written \(.*No space left .*make"):
        prepare.prepare(work)
    assert 0 < len(assert_unfinished(disk / "out")) < 6
    ballast.unlink()
    assert_finishes(work, undisturbed)


def test_files_that_may_not_be_so_large(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    work = config(corpus, tokenizer_dir, tmp_path)
    begin(corpus, tokenizer_dir, tmp_path)
    size = min(path.stat().st_size for path in undisturbed.glob("*.parquet"))
    limited = subprocess.run(
        command(corpus, tokenizer_dir, tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 2
    told = limited.stderr.splitlines()[-1]
    assert re.fullmatch(r"error: \S* could not be written \(.*File too large.*make room.*", told)
    assert assert_unfinished(tmp_path) == []
    assert_finishes(work, undisturbed)


def test_a_disk_that_cannot_be_written(corpus: Path, tokenizer_dir: Path, disk: Path) -> None:
    begin(corpus, tokenizer_dir, disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for output in ("out", "new"):
        with pytest.raises(InputError, match=r"could not be written \(Read-only file system\)"):
            prepare.prepare(config(corpus, tokenizer_dir, disk / output))


def test_an_output_that_cannot_be_a_folder(corpus: Path, tokenizer_dir: Path) -> None:
    for output in (corpus / "a.jsonl", corpus / "a.jsonl" / "out"):
        with pytest.raises(InputError, match="could not be written"):
            prepare.prepare(config(corpus, tokenizer_dir, output))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            300_000,
            r"a.jsonl is damaged or cut short after line [\d,]+ \(EOFError: it ends after .* but",
        ),
        (900_000, r"a.jsonl has changed since the plan was made; put it back as it was"),
    ],
)
def test_an_input_that_changes_while_it_is_read(
    tokenizer_dir: Path, tmp_path: Path, size: int, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "some words " * 10}) + "\n")
    path.write_text(path.read_text() * 5000)
    assert path.stat().st_size == 615_000
    plan = begin(path, tokenizer_dir, tmp_path / "out", unit_megabytes=1)
    blocks = []

    def change(n_bytes: int) -> None:
        blocks.append(n_bytes)
        os.truncate(path, size)

    with pytest.raises(InputError, match=message):
        unit_worker.write_unit(0, change, folder=tmp_path / "out", digest=plan.digest)
    assert blocks
    assert assert_unfinished(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_inputs_that_change_after_the_plan(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    mine, output = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, mine)
    begin(mine, tokenizer_dir, output)
    work = config(mine, tokenizer_dir, output)

    def refused(message: str) -> None:
        with pytest.raises(
            InputError, match=rf"^{output} was begun with something else: {message}"
        ):
            prepare.prepare(work)

    size = (mine / "a.jsonl").stat().st_size
    with (mine / "a.jsonl").open("a") as file:
        file.write("\n{}")
    refused(rf"{mine}/a.jsonl has changed \(size was {size} and is {size + 3}\)")
    shutil.copy2(corpus / "a.jsonl", mine)
    (mine / "b.jsonl").rename(mine / "c.jsonl")
    refused(f"{mine}/c.jsonl is new; {mine}/b.jsonl is gone; give another --output")
    (mine / "c.jsonl").rename(mine / "b.jsonl")
    os.utime(mine / "b.jsonl")
    refused(f"{mine}/b.jsonl has changed")
    shutil.copy2(corpus / "b.jsonl", mine)
    prepare.prepare(work)
    os.utime(mine / "b.jsonl")
    refused(f"{mine}/b.jsonl has changed")


def test_settings_that_change_after_the_plan(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    begin(corpus, tokenizer_dir, tmp_path)
    for folder in (tmp_path, undisturbed):
        with pytest.raises(
            InputError, match="--row-length was 128 and is 256; --seed was 0 and is"
        ):
            prepare.prepare(config(corpus, tokenizer_dir, folder, row_length=256, seed=1))
        with pytest.raises(InputError, match=r"--kinds was .* and is .*--summary-tokens was 8 and"):
            prepare.prepare(
                config(corpus, tokenizer_dir, folder, kinds="plain=1", summary_tokens=0)
            )
    work = config(corpus, tokenizer_dir, tmp_path, workers=1, max_bad_fraction=0.6)
    assert_finishes(work, undisturbed)


def test_libraries_that_change_after_the_plan(
    corpus: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    plan = begin(corpus, tokenizer_dir, tmp_path)
    replace(plan, versions=plan.versions | {"tokenizers": "0.1", "gone": "2"}).save(tmp_path)
    now = f"tokenizers 0.1 is {version('tokenizers')} now, gone 2 is None now"
    with pytest.raises(InputError, match=re.escape(f"begun with other versions ({now})")):
        prepare.prepare(config(corpus, tokenizer_dir, tmp_path))


def starved(item: int, tell: Tell, folder: Path, digest: str, spare: int) -> None:
    """A unit with so many bytes more than the process has by now."""
    unit_context.load(folder, digest)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    unit_worker.write_unit(item, tell, folder=folder, digest=digest)


@pytest.mark.parametrize("spare", [0, 8 << 20])  # the tokenizer aborts; Arrow and Python raise
def test_workers_without_memory(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path, spare: int
) -> None:
    plan = begin(corpus, tokenizer_dir, tmp_path)
    task = functools.partial(starved, folder=tmp_path, digest=plan.digest, spare=spare)
    with pytest.raises(InputError, match=r"unit \d .*memory.* with fewer --workers"):
        list(process_pool.run(task, range(3), 2, plan.where, lambda _: None, print))
    assert len(assert_unfinished(tmp_path, killed=not spare)) < 3
    assert_finishes(config(corpus, tokenizer_dir, tmp_path), undisturbed)
