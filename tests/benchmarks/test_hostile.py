"""benchmarks/hostile.py: real attacks on a real server, for some seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import ALL, ALONE, Phase, broken
from hostile_attacks import ATTACKS
from runs import ROOT
from serving import export_to_serve

pytestmark = pytest.mark.slow


def test_an_honest_client_beside_all_attacks(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = export_to_serve(tokenizer_dir, tmp_path)
    script = [sys.executable, str(ROOT / "benchmarks" / "hostile.py"), "--model", str(folder)]
    more = ["--json", str(tmp_path / "out.json"), "--minutes", "0.15", "--rounds", "1"]
    only = ["--only", "heads", "overload"]
    done = subprocess.run([*script, *more, *only], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())
    phases = [phase["attack"] for phase in result["phases"]]
    assert phases == [ALONE, "heads", "overload", ALL, ALONE]
    assert all(not phase["errors"] and phase["times"]["embed"] for phase in result["phases"])
    assert result["exit_status"] == 0
    assert sum(result["phases"][3]["attackers"].values()) > 20
    assert "worst p99" in done.stdout


def test_what_is_not_as_promised_is_said() -> None:
    def phase(attack: str, megabytes: float = 100, files: int = 10, log: int = 0) -> Phase:
        return Phase(attack, {}, [], {}, megabytes, files, log)

    calm = [phase(ALONE)] * 3
    assert broken(calm, calm, 3.0, 0) == []
    assert broken([phase("ids")._replace(errors=["embed: 500"])], calm, 3.0, 0) == [
        "1 errors beside ids: embed: 500"
    ]
    for worse, said in (
        (phase(ALONE, megabytes=300), "memory grows: 100 to 300 MB"),
        (phase(ALONE, files=99), "files stay open: 10 to 99"),
        (phase(ALONE, log=10**6), "the log grows: 0 to 1000000 bytes"),
    ):
        assert broken([], [*calm[:2], worse], 3.0, 0) == [said]
    assert broken([], calm, 30.0, 1) == [
        "SIGTERM takes 30.0 s, and 10 are its grace",
        "the server's exit status is 1",
    ]
    assert set(ATTACKS) >= {"ids", "heads", "bodies", "departures", "readers", "overload"}
