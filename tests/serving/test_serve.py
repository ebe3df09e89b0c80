"""Starting and stopping a server: faults are one sentence, what is under way is finished."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import until
from served import NAME, ROOT, served
from serving import export_to_serve

from gem_ds.errors import InputError
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.connections import Listener
from gem_ds.serving.serve import _listen, serve

COMMAND = [sys.executable, str(ROOT / "launch" / "serve.py")]


def test_sigterm_ends_it_when_everything_is_answered(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = export_to_serve(tokenizer_dir, tmp_path)
    body: Any = {"model": NAME, "prompt": "The", "max_tokens": 300, "n": 4, "seed": 0}
    answers: dict[str, Any] = {}
    with served(folder) as server:

        def ask(name: str, **more: Any) -> None:
            with server.client() as plain:
                answers[name] = plain.post("/v1/completions", json={**body, **more})

        threads = [
            threading.Thread(target=ask, args=("whole",)),
            threading.Thread(target=ask, args=("stream",), kwargs={"stream": True}),
        ]
        for thread in threads:
            thread.start()
        with server.client() as plain:
            assert until(lambda: 'gem_tokens_total{kind="write"}' in plain.get("/metrics").text, 20)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url, trust_env=False)
        for thread in threads:
            thread.join()
        status = server.process.wait(30)
    assert status == 0
    assert answers["whole"].status_code == 200
    assert all(c["finish_reason"] for c in answers["whole"].json()["choices"])
    events = answers["stream"].text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    ends = [json.loads(e.removeprefix("data: "))["choices"][0] for e in events[:-1]]
    assert sum(choice["finish_reason"] is not None for choice in ends) == 4


def test_who_calls_when_told_the_address_is_heard(
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first turn of the server's loop, which may come late."""
    folder = export_to_serve(tokenizer_dir, tmp_path)
    reached = []

    def held(server: Listener) -> None:
        (port,) = re.findall(r"serving .* on http://127.0.0.1:(\d+):", capsys.readouterr().out)
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection:
            reached.append(connection.getpeername() == server.listening.getsockname())

    monkeypatch.setattr(Listener, "run", held)
    before = signal.getsignal(signal.SIGTERM)
    try:
        serve(ServeConfig(model=str(folder), port=0))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert reached == [True]


def test_a_port_in_use_is_one_sentence_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on port {port} of 127.0.0.1 \(Addr"):
            serve(ServeConfig(model="nowhere", port=port))
    with pytest.raises(InputError, match=r"cannot listen on port 0 of 192.0.2.1"):
        serve(ServeConfig(model="nowhere", host="192.0.2.1", port=0))


def test_a_second_server_on_a_port_is_refused_while_the_first_one_loads() -> None:
    with (
        _listen("127.0.0.1", 0) as first,
        pytest.raises(InputError, match="end the program that has it"),
    ):
        _listen("127.0.0.1", first.getsockname()[1])


def test_a_model_that_fails_for_good_ends_the_server(tokenizer_dir: Path, tmp_path: Path) -> None:
    """With a status by which it is started again, after an answer."""
    folder = export_to_serve(tokenizer_dir, tmp_path)
    script = (
        "from gem_ds.inference import gem_model; from gem_ds.serving.scheduler import Worker\n"
        "def fails(*_): gem_model.GemModel.encode = fails; raise OSError\n"
        "Worker._drop_cancelled = fails\n"
        "from gem_ds.serving.serve import serve; from gem_ds.serving.config import ServeConfig\n"
        f"if __name__ == '__main__': serve(ServeConfig(model={str(folder)!r}, port=0))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    (url,) = re.findall(r"on (http://\S+):", line)
    answer = httpx.post(
        f"{url}/v1/embeddings",
        json={"model": "export", "input": "a"},
        trust_env=False,
        timeout=60,
    )
    _, said = process.communicate(timeout=60)
    assert answer.status_code == 500
    assert process.returncode == 1
    assert "error: the model works no more" in said


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uvicorn", "fastapi"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            without.delitem(sys.modules, "gem_ds.serving.server", raising=False)
            with pytest.raises(InputError, match=rf"needs {name}.*pip install 'gem_ds\[serve\]'"):
                serve(ServeConfig(model="nowhere", port=0))


def test_no_export_no_key_wrong_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"has no gem_config\.json"):
        serve(ServeConfig(model=str(tmp_path), port=0))
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(InputError, match=r"the API key in .*key is empty"):
        serve(ServeConfig(model=str(tmp_path), port=0, api_key_file=str(tmp_path / "key")))
    for wrong, said in (
        (b"\xff\xfe", "is no text in UTF-8"),
        ("schlüssel".encode(), "cannot be sent in a header"),
        (b"one\ntwo", "cannot be sent in a header"),
        (b"k\x00", "cannot be sent in a header"),
        (b"k" * 5000, "cannot be sent in a header"),
    ):
        (tmp_path / "key").write_bytes(wrong)
        with pytest.raises(InputError, match=said):
            serve(ServeConfig(model="nowhere", port=0, api_key_file=str(tmp_path / "key")))
    with pytest.raises(InputError, match="cannot read --api-key-file"):
        ServeConfig(model="x", api_key_file=str(tmp_path)).api_key()
    (tmp_path / "key").write_text("secret\n")
    assert ServeConfig(model="x", api_key_file=str(tmp_path / "key")).api_key() == "secret"
    monkeypatch.setenv("GEM_API_KEY", "other")
    assert ServeConfig(model="x").api_key() == "other"
    for wrong in (
        {"max_queue": 0},
        {"timeout_seconds": float("nan")},
        {"max_body_mb": 0.0},
        {"port": 70000},
        {"long_texts": "keep"},
        {"head_seconds": 0.0},
        {"body_seconds": float("inf")},
        {"idle_seconds": -1.0},
        {"max_connections": 0},
        {"stop_seconds": -1.0},
        {"readers": 0},
    ):
        name = f"--{next(iter(wrong)).replace('_', '-')}"
        with pytest.raises(InputError, match=name):
            ServeConfig(model="x", **wrong)
    assert ServeConfig(model="exports/gem/").served_name == "gem"


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        (["http://localhost:3000, https://a.b", "app://c"], 3),
        (["*"], 1),
        (["null"], 1),
        (["https://a.b:80"], 1),
        (["http://[::1]:3000"], 1),
    ],
)
def test_origins(given: list[str], origins: int) -> None:
    assert len(ServeConfig(model="x", cors_origin=given).origins) == origins


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "localhost:3000", "http://", "http://a/", "http://a/b", "http://a?b", "http://A"),
        *("http://a:80", "https://a:443", "http://a:b", "http://u@a", "http://a,", "http://*"),
    ],
)
def test_what_browsers_never_send_is_no_origin(wrong: str) -> None:
    with pytest.raises(
        InputError, match=r"--cors-origin '.*' is no origin; give it as browsers do"
    ):
        ServeConfig(model="x", cors_origin=[wrong])


def test_the_command_says_how_it_is_used() -> None:
    none = subprocess.run(COMMAND, capture_output=True, text=True)
    assert none.returncode == 2
    assert "python launch/serve.py --model" in none.stdout
    for field in fields(ServeConfig):
        assert f"--{field.name.replace('_', '-')} " in none.stdout
    wrong = subprocess.run(
        [*COMMAND, "--model", "x", "--port", "99999"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: --port 99999 is out of range; give .*\n", wrong.stderr)
