"""What goes wrong around data preparation: disks, inputs, settings, memory, receipts, other runs.

Either it is said in a sentence, and the same command finishes the folder later, byte for byte as if
nothing had happened; or nothing is said, because it does not matter. Kills: see test_kills.
"""

import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from kills_runs import SCRIPT, hashes
from processes import until

from gem_ds import job, pool, prepare, sharding
from gem_ds.errors import InputError
from gem_ds.manifest import MANIFEST
from gem_ds.pool import Tell
from gem_ds.prepare_config import PrepareConfig
from gem_ds.units import Plan

FLAGS = {"row_length": 128, "unit_megabytes": 0.1, "max_bad_fraction": 0.5, "workers": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files, which make six units, with a bad record in each."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(1, 9))) for _ in range(500)]
    for name in ("a", "b"):
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=300))}) for _ in range(160)]
        lines[5::50] = ["bad"] * 4
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    corpus: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare.prepare(config(corpus, tokenizer_dir, folder))
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def config(corpus: Path, tokenizer: Path, output: Path, **options: object) -> PrepareConfig:
    return PrepareConfig([str(corpus)], str(tokenizer), str(output), **FLAGS | options)


def command(corpus: Path, tokenizer: Path, output: Path, *more: object) -> list[str]:
    flags = [part for n, v in FLAGS.items() for part in (f"--{n.replace('_', '-')}", v)]
    fixed = ["--input", corpus, "--tokenizer", tokenizer, "--output", output]
    return [sys.executable, *map(str, [SCRIPT, *fixed, *flags, *more])]


def begin(corpus: Path, tokenizer: Path, output: Path, **options: object) -> Plan:
    """A folder with a plan and nothing else."""
    prepare.prepare(config(corpus, tokenizer, output, only_plan=True, **options))
    return Plan.load(output)


def assert_unfinished(output: Path, killed: bool = False) -> list[int]:
    """The units that are done. No other looks it; what is half done, only killed workers leave."""
    assert not (output / MANIFEST).exists()
    assert killed or not list(output.rglob("*.tmp"))
    plan = Plan.load(output)
    done = [int(path.stem) for path in output.glob("units/?????.json")]
    assert all(job.receipt(output, plan, unit) for unit in done)
    return done


def assert_finishes(work: PrepareConfig, undisturbed: Path) -> None:
    prepare.prepare(work)
    assert hashes(Path(work.output)) == hashes(undisturbed)


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
        sharding.write_unit(0, change, folder=tmp_path / "out", digest=plan.digest)
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
    job.load(folder, digest)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    sharding.write_unit(item, tell, folder=folder, digest=digest)


@pytest.mark.parametrize("spare", [0, 8 << 20])  # the tokenizer aborts; Arrow and Python raise
def test_workers_without_memory(
    corpus: Path, tokenizer_dir: Path, undisturbed: Path, tmp_path: Path, spare: int
) -> None:
    plan = begin(corpus, tokenizer_dir, tmp_path)
    task = functools.partial(starved, folder=tmp_path, digest=plan.digest, spare=spare)
    with pytest.raises(InputError, match=r"unit \d .*memory.* with fewer --workers"):
        list(pool.run(task, range(3), 2, plan.where, lambda _: None, print))
    assert len(assert_unfinished(tmp_path, killed=not spare)) < 3
    assert_finishes(config(corpus, tokenizer_dir, tmp_path), undisturbed)


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
