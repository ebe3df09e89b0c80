"""Units on a cluster: the same shards as on one machine, by real SLURM and real Ray."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT
from slurm_cluster import slurm, submit, wait

BIN = Path(sys.executable).parent
NOT_SHARDS = {"logs", "slurm-job.json"}


@pytest.fixture(scope="module")
def cluster():
    with slurm() as env:
        yield env | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tokenizer_dir):
    """All but the output, of some 5 MB that are five units."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    text = " ".join(f"word{i % 97} of sentence {i % 13}." for i in range(400))
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(500)))
    return ["--input", path, "--tokenizer", tokenizer_dir, "--unit-megabytes", "1"]


@pytest.fixture(scope="module")
def expected(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "shards"
    done = shard(*flags, "--output", folder, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "done" not in done.stdout
    assert len(list(folder.glob("shard-*.parquet"))) == len(list(folder.glob("units/*.json"))) > 4
    return content(folder)


def shard(*arguments, env=None):
    command = [sys.executable, ROOT / "data_prep" / "shard.py", *map(str, arguments)]
    env = {**(env or os.environ), "PATH": f"{BIN}{os.pathsep}{(env or os.environ)['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=200)


def content(folder):
    """The hashes of all files of a folder of shards, logs and job numbers left out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.relative_to(folder).parts[0] not in NOT_SHARDS
    }


def finished(folder, seconds=90):
    until = time.monotonic() + seconds
    while not (folder / "manifest.json").exists():
        assert time.monotonic() < until, [str(p) for p in folder.rglob("*")]
        time.sleep(0.2)
    return content(folder)


@pytest.mark.slow
def test_slurm_arrays_make_the_same_shards(cluster, flags, expected, tmp_path):
    output = tmp_path / "shards"
    command = [*flags, "--output", output, "--executor", "slurm", "--tasks", "3"]
    command += ["--slurm", "partition=test,time=00:05:00,begin=now+4"]
    done = shard(*command, env=cluster)
    assert done.returncode == 0, done.stderr
    assert "units in 3 tasks of job" in done.stdout
    temporary = output / "units" / "00000.json.host-1.tmp"  # as of a task that is at work
    temporary.parent.mkdir(exist_ok=True)
    temporary.touch()
    # It begins in four seconds. Asked meanwhile, it submits nothing, and does not disturb.
    assert "job" in shard(*command, env=cluster).stdout.split("done; ")[-1]
    assert temporary.exists()
    assert finished(output) == expected
    assert "already finished" in shard(*command, env=cluster).stdout


@pytest.mark.slow
def test_what_a_cancelled_job_left_out_is_said_and_done_by_the_same_command(
    cluster, flags, expected, tmp_path
):
    output = tmp_path / "shards"
    command = [*flags, "--output", output, "--executor", "slurm", "--tasks", "2"]
    command += ["--slurm", "partition=test,time=00:05:00,begin=now+4"]
    assert shard(*command, env=cluster).returncode == 0
    array, ending = json.loads((output / "slurm-job.json").read_text())["jobs"]
    # Nothing of it has begun yet.
    subprocess.run(["scancel", f"{array}_1"], env=cluster, check=True)
    wait(cluster, ending)
    (log,) = output.glob("logs/*/finish/logs/task_00000.log")
    assert "units are not done, the first is unit" in log.read_text()
    assert not (output / "manifest.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (output / "units").glob("*.json")}
    assert shard(*command, env=cluster).returncode == 0
    assert finished(output) == expected
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


@pytest.mark.slow
def test_the_batch_script_shares_the_units_between_its_machines(cluster, flags, expected, tmp_path):
    (tmp_path / ".venv").symlink_to(BIN.parent)
    for name in ("data_prep", "gem_ds"):
        (tmp_path / name).symlink_to(ROOT / name)
    output = tmp_path / "the shards"
    options = ["--nodes=2", "--cpus-per-task=1", "--time=5"]
    script = ROOT / "launch" / "slurm" / "shard.sbatch"
    job = submit(cluster, *options, script, *flags, "--output", output, cwd=tmp_path)
    states = wait(cluster, job, seconds=120)
    log = (tmp_path / f"slurm-shard-{job}.log").read_text()
    assert states == ["COMPLETED"], log
    assert "share 0/2 is done" in log
    assert "share 1/2 is done" in log
    assert content(output) == expected


def test_without_a_partition_or_a_cluster_it_says_so(flags, tmp_path):
    command = [*flags, "--output", tmp_path / "shards", "--executor", "slurm"]
    done = shard(*command)
    assert done.returncode == 2
    assert "give sbatch's options with the partition among them" in done.stderr
    nowhere = {**os.environ, "PATH": str(tmp_path), "SLURM_CONF": "/nowhere"}
    done = shard(*command, "--slurm", "partition=test", env=nowhere)
    assert done.returncode == 2
    assert "sbatch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ray_makes_the_same_shards(flags, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    ray = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        ray.add_node(**node)
        output = tmp_path / "shards"
        command = [*flags, "--output", output, "--executor", "ray", "--tasks", "2"]
        done = shard(*command, "--memory-gb", 1, env={**os.environ, "RAY_ADDRESS": ray.address})
    finally:
        ray.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(output) == expected
