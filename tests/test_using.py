"""docs/using.md: its snippets and commands run, one after another, as they are typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import export_adapter
from pages import commands, flags
from runs import ROOT

TEXT = (ROOT / "docs" / "using.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A folder with what the page names: an export, some texts, and the repository's scripts."""
    folder = tmp_path_factory.mktemp("using")
    for name in ("launch", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    export_adapter(tokenizer_dir, folder / "work", k=2, positions=512)
    (folder / "exports").mkdir()
    (folder / "work" / "out").rename(folder / "exports" / "gem")
    (folder / "texts.txt").write_text("a text\nanother one\n")
    (folder / "corpus.jsonl").write_text('{"text": "a", "id": "x"}\n{"text": "b", "id": "y"}\n')
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text("Paris is the capital.\n\nBerlin as well.\n")
    return folder


def run(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
def test_everything_on_the_page_runs_in_its_order(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    names: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
        else:
            for command in commands(f"```bash\n{block}```"):
                if "benchmarks/" not in command:  # test_benchmark_encode looks at that one
                    run(command, place)
    assert names["scores"].shape == (3,)
    assert names["bits"].shape == (3, 4)
    assert names["short"].shape == (3, 16)
    assert set(names["stored"]) == {"x", "y"}
    assert names["text"] == "a text"
    assert len(names["ids"]) == len(names["embedder"].preprocess(["a text"])["input_ids"][0])
    vectors = np.load(place / "vectors.npy")
    assert np.allclose(vectors, names["model"].encode(["a text", "another one"]), atol=1e-5)
    assert np.array_equal(vectors, np.load(place / "shared.npy"))
    assert np.load(place / "one.npy").shape == (1, 32)


def test_flags_options_and_files_that_the_page_names_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", prose))
    assert named
    assert named - flags() == ({"--model"} - flags()) | {"--debug"}
    scripts = re.findall(r"`((?:launch|examples|benchmarks)/[\w.]+)`", TEXT)
    assert scripts
    assert [name for name in scripts if not (ROOT / name).exists()] == []
    (table,) = re.findall(r"\| option \| what it does \|\n(.*?)\n\n", TEXT, re.DOTALL)
    options = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert options
    as_flags = {f"--{option.replace('_', '-')}" for option in options if option != "normalize"}
    assert as_flags <= flags()
