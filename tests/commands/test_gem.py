"""The command ``gem``: the scripts under one name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from gem_ds.commands.gem import COMMANDS, USAGE

GEM = "from gem_ds.commands.gem import gem; gem()"
SCRIPTS = [*(ROOT / "launch").glob("*.py"), *(ROOT / "data_prep").glob("*.py")]
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "scipy", "mteb", "lm_eval", "fastapi"}


def gem(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", GEM, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


def test_every_script_is_a_command_of_the_same_module() -> None:
    modules = {re.findall(r"gem_ds\.commands\.(\w+)", path.read_text())[0] for path in SCRIPTS}
    assert modules == set(COMMANDS) | {"docstrings", "train_tokenizer"}


def test_help_tells_the_commands() -> None:
    assert gem("--help").stdout == f"{USAGE}\n"
    assert (gem().returncode, gem().stdout) == (2, "")
    wrong = gem("trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: there is no command 'trian'; gem has shard, inspect, ")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_nothing_that_takes_long(name: str) -> None:
    line = [sys.executable, "-X", "importtime", "-c", GEM, name, "--help"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: gem {name}" in done.stdout
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert loaded & HEAVY == set()


def test_a_command_does_what_its_script_does(tmp_path: Path) -> None:
    """With DeepSpeed's flag before its name, as its launcher starts it."""
    flags = ("--output", tmp_path / "none", "--verify", tmp_path / "nothing")
    script = subprocess.run(
        [sys.executable, ROOT / "launch" / "export.py", *map(str, flags)],
        capture_output=True,
        text=True,
    )
    done = gem("export", *flags)
    assert (done.returncode, done.stderr) == (2, script.stderr)
    train = gem("--local_rank=0", "train", "--shards", "none", "--no-such-flag", "1")
    assert train.returncode == 2
    assert "--no-such-flag" in train.stderr
