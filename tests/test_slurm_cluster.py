"""tests/support/slurm_cluster.py: the cluster that other tests rely on really is one."""

import subprocess

import pytest
from slurm_cluster import SCRIPT, slurm, submit, wait

pytestmark = pytest.mark.slow

# An array's task says where it is and waits for all others: all run at once, or none ends.
TOGETHER = """
srun sh -c 'echo $SLURMD_NODENAME >$SLURM_ARRAY_TASK_ID.task'
until [ $(ls *.task | wc -l) -eq 4 ]; do sleep 0.1; done
"""
REQUEUE = """
echo ${SLURM_RESTART_COUNT:-0} >>starts
[ ${SLURM_RESTART_COUNT:-0} -gt 0 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }
"""


@pytest.fixture(scope="module")
def cluster():
    with slurm() as env:
        yield env


def test_an_array_fills_both_nodes_and_what_depends_on_it_comes_after(cluster, tmp_path):
    array = submit(cluster, "--array=0-3", "--time=1", "--wrap", TOGETHER, cwd=tmp_path)
    after = ("--dependency", f"afterok:{array}", "--wrap", "cat [0-3].task >after")
    assert wait(cluster, submit(cluster, *after, cwd=tmp_path)) == ["COMPLETED"]
    assert wait(cluster, array) == ["COMPLETED"] * 4
    nodes = (tmp_path / "after").read_text().split()
    assert len(nodes) == 4
    assert len(set(nodes)) == 2
    assert all(nodes.count(node) == 2 for node in nodes)


def test_a_job_that_requeues_itself_starts_again(cluster, tmp_path):
    job = submit(cluster, "--wrap", REQUEUE, cwd=tmp_path)
    assert wait(cluster, job) == ["COMPLETED"]
    assert (tmp_path / "starts").read_text().split() == ["0", "1"]


def test_starting_what_runs_is_fine_and_status_says_how_to_reach_it(cluster):
    folder = cluster["SLURM_CONF"].removesuffix("/slurm.conf")
    for action, says in (("start", ""), ("status", f"export SLURM_CONF={folder}/slurm.conf\n")):
        command = [SCRIPT, action, folder]
        assert subprocess.check_output(command, env=cluster, text=True) == says
