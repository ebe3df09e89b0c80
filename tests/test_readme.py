"""README.md: every command in it runs, every flag it names exists, its picture is the real mask."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pages import commands, flags
from runs import ROOT, llama_config
from slurm_cluster import SBATCH
from transformers import AutoConfig, AutoModelForCausalLM

from gem_ds.attention import masks
from gem_ds.corpus import docstrings
from gem_ds.inference import memory_files

README = (ROOT / "README.md").read_text()
# Appended to a training command, so that it takes two steps instead of a thousand.
SHORT = "--steps 2 --rows-per-step 1 --alpha-start 1"
# Only looked at, because they would install, repeat the tests' own work or need a cluster.
LOOKED_AT = ("make", ".", "sbatch")
SERVING = "python launch/serve.py "  # never ends; run by test_serving_docs


COMMANDS = commands(README)


def runs(command: str) -> bool:
    """Whether it is one to run; a command of an unknown kind fails."""
    scripts = r"(data_prep|launch)/\w+\.py"
    if command.startswith(SERVING):
        return False
    known = re.match(rf"python ({scripts}) |deepspeed launch/train\.py ", command)
    assert known or command.split()[0] in LOOKED_AT, f"how is this to be tested: {command}"
    return bool(known)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A folder with what the README's commands name: a base model, a corpus, some texts, and the
    repository's scripts."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("data_prep", "launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    base = llama_config(folder / "base", positions=2048, vocab_size=400)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(base)
    for file in tokenizer_dir.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    module = Path(docstrings.__file__).with_name("record_reader.py").read_text()
    entries = list(docstrings.entries_in(module, "sources"))
    docstrings.write(entries * 20, folder / "corpus.jsonl")
    (folder / "texts.txt").write_text("a text\nanother one\n")
    return folder


def test_commands_run_one_after_another(place: Path) -> None:
    """As typed, but for `SHORT` and the launcher's port, which two people may not share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    for command in filter(runs, COMMANDS):
        typed = command
        if "launch/train.py" in command:
            typed = f"{command} {SHORT}"
            typed = re.sub(r"^deepspeed", f"deepspeed --master_port {port}", typed)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", typed],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{typed}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if "launch/train.py" in command:
            assert "on the cpu, attention sdpa, isolated summaries" in done.stdout
    assert len(pq.read_table(place / "vectors.parquet")) > 2
    assert len(memory_files.read(place / "memories")) == 2
    vectors = np.load(place / "vectors.npy")
    assert vectors.shape == (2, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], rel=1e-5)
    exported = {path.name for path in (place / "exports" / "gem").iterdir()}
    assert exported == {"README.md", "model", "adapter", "model-embed"}


def test_the_two_commands_of_the_road_are_there() -> None:
    started = [" ".join(command.split()[:2]) for command in COMMANDS if runs(command)]
    assert started[:2] == ["python data_prep/shard.py", "deepspeed launch/train.py"]


def test_make_commands_have_targets() -> None:
    lines = [command for command in COMMANDS if command.startswith("make")]
    lines += re.findall(r"`(make [^`]+)`", README)
    assert lines
    for line in lines:
        subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_the_activated_environment_is_what_make_env_makes() -> None:
    (activate,) = [command for command in COMMANDS if command.startswith(". ")]
    dry = subprocess.run(
        ["make", "-n", "-B", "env"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    folder = activate.removeprefix(". ").removesuffix("/bin/activate")
    assert f" -m venv {folder}\n" in dry.stdout


def test_python_in_the_text_runs(place: Path) -> None:
    """After the commands, whose export it reads."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    line = [sys.executable, "-c", f"{code}\nprint(vectors.shape, type(answer))"]
    done = subprocess.run(line, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(2, 32) <class 'str'>"


def test_sbatch_commands_name_a_script_and_real_options() -> None:
    lines = [command for command in COMMANDS if command.startswith("sbatch")]
    assert lines
    for line in lines:
        options, script, rest = re.fullmatch(r"sbatch (.*)(launch/\S+)(.*)", line).groups()
        subprocess.run(["bash", "-n", ROOT / script], check=True)
        assert set(re.findall(r"--([a-z-]+)", options)) <= set(SBATCH)
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags()


def test_flags_that_the_text_names_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", prose))
    assert named
    assert named - flags() == {"--help", "--debug", "--num_gpus"}, (
        "of all commands, and DeepSpeed's"
    )


def test_files_that_the_text_names_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    shown = re.findall(r"`([a-z_]+/[\w/.]*)`", README)
    made = {"runs", "exports"}
    missing = [n for n in links + shown if not (ROOT / n).exists() and n.split("/")[0] not in made]
    assert missing == []


def test_the_picture_is_the_mask() -> None:
    names, *rows = re.search(r"^ +(p0 .*\n(?: +\w\d  .*\n)+)", README, re.MULTILINE)[1].splitlines()
    parts = "".join(name[0] for name in names.split())
    m, k = parts.count("p"), parts.count("s")
    bounds = np.array([[0, m, m + k, len(parts)]], dtype=np.int32)
    shown = [[cell == "1" for cell in row.split()[1:]] for row in rows]
    assert shown == masks.dense(bounds).tolist()
