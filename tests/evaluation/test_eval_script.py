"""launch/slurm/eval.sbatch on a real SLURM: an array shares the tasks, a job makes the table."""

import re
import shlex
import subprocess

import pytest
from evaluated import place
from runs import ROOT
from slurm_cluster import slurm, submit, wait

from gem_ds.commands.eval import parser

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "launch" / "slurm" / "eval.sbatch"
TEXT = SCRIPT.read_text()
SBATCH = [
    *("job-name", "nodes", "ntasks", "cpus-per-task", "gpus-per-node", "time", "requeue"),
    *("open-mode", "output", "partition", "account"),
]


def test_bash_accepts_it_and_its_options_are_meant():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert re.findall(r"^##?SBATCH --([a-z-]+)", TEXT, re.MULTILINE) == SBATCH


def test_the_commands_of_its_head_parse():
    head = re.sub(r"\\\n# +", "", TEXT)
    found = re.findall(r"^#   sbatch .* launch/slurm/eval.sbatch (.*)", head, re.MULTILINE)
    assert len(found) == 2
    for rest in found:
        parser().parse_args(shlex.split(rest))


@pytest.fixture(scope="module")
def cluster():
    with slurm() as env:
        yield env


def test_an_array_fills_one_folder_and_a_job_after_it_makes_the_table(cluster, tmp_path):
    place(tmp_path)
    for name in ("launch", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {**cluster, "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    ours = ["--cpus-per-task=1", "--time=10"]
    flags = ["mteb", "--model", "exports/gem", "--data", "data", "--output", "the results"]
    flags += ["--tasks", "SmallSTS", "SmallPairs", "SmallSummaries", "SmallRetrieval"]
    job = submit(env, "--array=4-5", *ours, SCRIPT, *flags, cwd=tmp_path)
    after = ["--dependency", f"afterany:{job}", *ours, SCRIPT, "compare", "the results"]
    table = submit(env, *after, "--output", "table", cwd=tmp_path)
    assert wait(env, table, 240) == ["COMPLETED"], logs(tmp_path)
    assert wait(env, job) == ["COMPLETED"] * 2, logs(tmp_path)
    made = (tmp_path / "table.md").read_text()
    assert "| mean of 4 mteb tasks " in made
    done = [set(re.findall(r"^(Small\w+): ", p.read_text(), re.MULTILINE)) for p in found(tmp_path)]
    assert sorted(filter(None, done), key=min) == [
        {"SmallPairs", "SmallRetrieval"},
        {"SmallSTS", "SmallSummaries"},
    ]


def found(folder):
    return sorted(folder.glob("slurm-eval-*.log"))


def logs(folder):
    return "\n".join(path.read_text() for path in found(folder))
