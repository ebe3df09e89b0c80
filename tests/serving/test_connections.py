"""Connections of a real server: whoever is slow, many or half gone keeps nobody waiting."""

import json
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from processes import until
from served import NAME, Served, served
from serving import metric

from gem_ds.errors import InputError
from gem_ds.serving.connections import room

pytest_plugins = ["servers"]
MOST = 40
LIMITS = ["--head-seconds", "1.5", "--body-seconds", "1.5", "--idle-seconds", "1.5"]


@pytest.fixture(scope="module")
def guarded(server_export: Any) -> Iterator[Served]:
    flags = [*LIMITS, "--max-connections", str(MOST), "--max-body-mb", "0.5"]
    with served(server_export, *flags, "--timeout-seconds", "4") as running:
        yield running


def connect(server: Served, sent: bytes = b"", receive: int = 0) -> socket.socket:
    url = httpx.URL(server.url)
    made = socket.socket()
    if receive:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    made.settimeout(20)
    made.connect((url.host, url.port))
    made.sendall(sent)
    return made


def post(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def said(**body: Any) -> bytes:
    return json.dumps({"model": NAME, **body}).encode()


def closed(server: Served, waited: str) -> float:
    return metric(server, f'gem_connections_closed_total{{waited="{waited}"}}')


def healthy(server: Served) -> bool:
    with server.client(timeout=5) as plain:
        return plain.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("sent", "waited"),
    [
        (b"", "head"),
        (b"GET /heal", "head"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "idle"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal", "head"),
        (post("/v1/nothing", b"x" * 100)[:-50], "body"),
    ],
)
def test_a_connection_that_waits_for_its_client_is_closed(
    guarded: Served, sent: bytes, waited: str
) -> None:
    before, began = closed(guarded, waited), time.monotonic()
    with connect(guarded, sent) as slow:
        answer(slow)
    assert 1 < time.monotonic() - began < 5
    assert closed(guarded, waited) == before + 1


def test_a_head_that_comes_byte_by_byte_is_closed(guarded: Served) -> None:
    began = time.monotonic()
    with connect(guarded, b"GET /health HTTP/1.1\r\n") as slow:
        try:
            while time.monotonic() - began < 10:
                slow.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - began < 5


def test_a_body_that_takes_too_long_gets_408(guarded: Served) -> None:
    with connect(guarded, post("/v1/embeddings", b"x" * 1000)[:-1]) as slow:
        found = answer(slow)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"longer than 1.5 seconds" in found


@pytest.mark.parametrize("sent", [b"", b"GET /heal", post("/v1/embeddings", b"x" * 99)[:-9]])
def test_there_is_room_for_others_however_many_wait(guarded: Served, sent: bytes) -> None:
    before = closed(guarded, "room")
    many = [connect(guarded, sent) for _ in range(3 * MOST)]
    began = time.monotonic()
    assert healthy(guarded)
    assert time.monotonic() - began < 1
    assert closed(guarded, "room") > before
    assert psutil.Process(guarded.process.pid).num_fds() < MOST + 64
    for one in many:
        one.close()


def test_where_files_run_out_the_log_stays_short(guarded: Served) -> None:
    process = psutil.Process(guarded.process.pid)
    usual = process.rlimit(resource.RLIMIT_NOFILE)
    before = len(guarded.text())
    assert until(lambda: metric(guarded, "gem_connections ") <= 3, 10)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 5, usual[1]))
    try:
        many = [connect(guarded, b"GET /heal") for _ in range(30)]
        assert healthy(guarded)  # others that wait have made room
        for one in many:
            one.close()
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, usual)
    said = guarded.text()[before:]
    assert said.count("cannot accept a connection") <= 1
    assert len(said) < 2000


def test_room_is_what_files_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert room(200) == 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert room(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
        assert 0 < room(10**6) < hard or hard == resource.RLIM_INFINITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if hard < 10**6:
        assert "connections at most instead of --max-connections 1000000" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_has_ended_what_it_sends_gets_its_answer(
    guarded: Served, version: str
) -> None:
    body = said(prompt="The", max_tokens=300, temperature=0)
    with connect(guarded) as half:
        half.sendall(
            post("/v1/completions", body).replace(b"HTTP/1.1", b"HTTP/" + version.encode())
        )
        half.shutdown(socket.SHUT_WR)
        found = answer(half)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", found)
    assert statuses[-1] == b"200"
    assert set(statuses[:-1]) <= ({b"100"} if version == "1.1" else set())
    assert b'"finish_reason"' in found


def test_pipelined_requests_of_such_a_client_are_answered(guarded: Served) -> None:
    with connect(guarded, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3) as half:
        half.shutdown(socket.SHUT_WR)
        assert answer(half).count(b'{"status":"ok"}') == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_left_politely_is_noticed(guarded: Served, stream: bool) -> None:
    body = said(prompt=["The"] * 8, n=4, max_tokens=480, stream=stream)
    before = metric(guarded, 'gem_tokens_total{kind="write"}')
    with connect(guarded, post("/v1/completions", body)):
        time.sleep(0.3)
    assert until(lambda: metric(guarded, "gem_open_requests") == 0, 3)
    after = metric(guarded, 'gem_tokens_total{kind="write"}')
    assert after - before < 32 * 480 * 0.8


LARGE = b" " * 3_000_000


@pytest.mark.parametrize(
    "sent",
    [
        post("/v1/embeddings", LARGE),
        post("/v1/embeddings", LARGE, "Connection: close"),
        post("/v1/embeddings", LARGE, "Expect: 100-continue"),
        post("/v1/embeddings", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"2dc6c0\r\n"
        + LARGE
        + b"\r\n0\r\n\r\n",
        post("/v1/embeddings", b"", "Connection: close").replace(
            b"Content-Length: 0", b"Transfer-Encoding: chunked"
        )
        + b"2dc6c0\r\n"
        + LARGE
        + b"\r\n0\r\n\r\n",
    ],
    ids=["whole", "whole, close", "expect", "chunked", "chunked, close"],
)
def test_a_body_over_the_limit_gets_413_however_it_comes(guarded: Served, sent: bytes) -> None:
    """Though the client reads nothing before it has sent everything."""
    with connect(guarded, sent) as large:
        found = large.recv(65536)
        assert found.startswith(b"HTTP/1.1 413 ")
        assert b"more than 0.5 MB" in found + large.recv(65536)


def test_a_body_in_tiny_chunks_is_refused_at_once(guarded: Served) -> None:
    head = post("/v1/embeddings", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with connect(guarded, head) as tiny:
        tiny.sendall(b"1\r\n \r\n" * 20_000)
        assert answer(tiny).startswith(b"HTTP/1.1 400 ")


def test_what_is_no_http_is_logged_once(guarded: Served) -> None:
    before = metric(guarded, "gem_log_records_total")
    for _ in range(20):
        with connect(guarded, b"\x00\x01\r\n\r\n") as junk:
            assert answer(junk).startswith(b"HTTP/1.1 400 ")
    assert metric(guarded, "gem_log_records_total") >= before + 20
    assert guarded.text().count("Invalid HTTP request received") == 1


def test_a_stream_whose_time_is_over_says_so_to_slow_readers_too(guarded: Served) -> None:
    body = said(prompt=["The"] * 64, n=8, max_tokens=480, stream=True, temperature=1.0)
    with connect(guarded, post("/v1/completions", body), receive=4096) as slow:
        time.sleep(5.5)
        found = b""
        while b"[DONE]" not in found:
            part = slow.recv(65536)
            assert part, found[-500:]
            found += part
    events = found.split(b"\n\n")
    error = next(event for event in events if b'"error"' in event)
    assert b"longer than 4 seconds" in error
    assert until(lambda: metric(guarded, "gem_open_requests") == 0, 3)


def test_it_ends_in_its_time_whoever_is_connected(server_export: Any) -> None:
    with served(server_export, "--stop-seconds", "3") as server:
        body = said(prompt=["The"] * 64, n=8, max_tokens=480, stream=True, temperature=1.0)
        there = [connect(server, b"GET /heal"), connect(server, post("/v1/x", b"xx")[:-1])]
        there.append(connect(server, post("/v1/embeddings", b"x" * 100)[:-1]))
        there.append(connect(server, post("/v1/completions", body), receive=4096))
        reads = connect(server, post("/v1/completions", body))
        assert reads.recv(100)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert b"the server ends; ask again later" in answer(reads)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 3.5
        for one in (*there, reads):
            one.close()


def test_no_room_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (70, 70))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(InputError, match="this process may open 70 files, and needs"):
        room(100)
