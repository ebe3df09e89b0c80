"""A run goes on from where its folder says, or refuses: some states of benchmarks/resumes.py."""

import pytest
from faults_runs import Work
from resumes import base, check
from resumes_states import STATES

TRIED = [
    "latest before all",
    "the newest is half removed",
    "metrics without a checkpoint",
    "another seed",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    made = Work(tmp_path_factory.mktemp("resumes") / "work")
    base(made)
    return made


@pytest.mark.parametrize("name", TRIED)
def test_a_run_says_where_it_begins_or_refuses(work: Work, name: str) -> None:
    assert check(work, name, STATES[name])[1] == ""
