"""docs/serving.md: its commands and snippets run as they stand, its flags and limits are real."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from pages import commands
from processes import until
from runs import ROOT
from serving import export_to_serve

from gem_ds.serving.config import ServeConfig
from gem_ds.serving.jobs import SLICE
from gem_ds.serving.middleware import BODIES
from gem_ds.serving.reader_processes import READ_SECONDS, SMALL
from gem_ds.serving.schemas import MOST_CHOICES, MOST_MESSAGES, MOST_STOPS
from gem_ds.serving.serve import REQUESTS_END

TEXT = (ROOT / "docs" / "serving.md").read_text()


def test_commands_and_snippets_run(tokenizer_dir: Path, tmp_path: Path) -> None:
    """All but the port, which two people may not share, as typed."""
    install, serve, *others, benchmark, hostile = commands(TEXT)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    shutil.copytree(export_to_serve(tokenizer_dir, tmp_path / "work"), tmp_path / "exports" / "gem")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    how = {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "NO_PROXY": "127.0.0.1"}}
    server = subprocess.Popen(
        ["bash", "-c", f"exec {serve} --port {port}"], stdout=subprocess.PIPE, text=True, **how
    )
    try:
        assert f"serving gem on http://127.0.0.1:{port}: embeddings" in server.stdout.readline()
        assert all(command.startswith("curl -s ") for command in others)
        answers = [
            subprocess.run(
                ["bash", "-c", command.replace("8000", port)],
                **how,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for command in others
        ]
        assert len(json.loads(answers[0])["data"][0]["embedding"]) == 32
        assert json.loads(answers[1]) == {"status": "ok"}
        assert "gem_requests_total" in answers[2]
        (snippet,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
        done = subprocess.run(
            [sys.executable, "-c", snippet.replace("8000", port)],
            **how,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("2 16\n")
    finally:
        server.terminate()
        assert until(lambda: server.poll() is not None, 60)
    assert server.returncode == 0
    assert install == "pip install 'gem_ds[serve]'"
    assert "\nserve = [" in (ROOT / "pyproject.toml").read_text()
    for command in (benchmark, hostile):
        script, *flags = command.removeprefix("python ").split()
        shown = subprocess.run(
            [sys.executable, script, "--help"], **how, capture_output=True, text=True, check=True
        )
        assert all(flag in shown.stdout for flag in flags if flag.startswith("--"))


def test_flags_and_limits_that_it_names_are_real() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", TEXT))
    real = {f"--{field.name.replace('_', '-')}" for field in fields(ServeConfig)}
    assert len(named) > 8
    assert named - real == {"--help", "--json", "--minutes"}
    assert f"{MOST_MESSAGES:,} messages" in TEXT
    assert f"bodies that are coming have more than {BODIES} times" in TEXT
    assert f"has written {SLICE} tokens in it" in TEXT
    assert f"after {REQUESTS_END * 10:g} tenths of them" in TEXT
    assert f"requests of up to {SMALL // 1024} KB" in TEXT
    assert f"killed after {READ_SECONDS:g} seconds" in TEXT
    assert f"`stop` (up to {MOST_STOPS})" in TEXT
    assert f"`n` (up to {MOST_CHOICES})" in TEXT


@pytest.mark.parametrize("status", ["400", "401", "404", "408", "413", "429", "500", "503", "504"])
def test_statuses_that_it_names_are_given(status: str) -> None:
    code = "".join(path.read_text() for path in (ROOT / "gem_ds" / "serving").glob("*.py"))
    assert re.search(rf"\b{status}\b", code)
