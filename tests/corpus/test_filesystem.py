"""Files through fsspec are the files: a web server with byte ranges stands for object stores."""

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from reading import TEXTS, jsonl, read, save_every_format, texts

from gem_ds.corpus import discovery, filesystem, streams
from gem_ds.corpus.record_reader import Part
from gem_ds.errors import InputError
from gem_ds.shards import work_plan
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.prepare import prepare


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges, and counts the bytes that it sends."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one write, or the client's delayed acknowledgement costs 40 ms

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not self.server.ranges:
            super().do_GET()
            return
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        content = path.read_bytes()
        body = content[first : last + 1]
        self.send_response(206)
        last = first + len(body) - 1
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.n_sent += len(body)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length" or self.server.sizes:
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        if not self.server.sizes:
            self.send_header("Connection", "close")
        super().end_headers()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # of a client that has read enough
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    n_sent = 0
    ranges = True  # whether it knows of byte ranges
    sizes = True  # whether it says how long things are

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Of the folder ``www``."""
    (tmp_path / "www").mkdir()
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_files_of_a_store_give_the_same_records(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_plan, "MIN_UNIT", 50)
    folder = tmp_path / "www" / "a corpus"
    save_every_format(folder)
    for name in ("e f=[1].jsonl", "sub/l.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jsonl(TEXTS))
    for name in ("dataset_info.json", ".hidden.jsonl", ".cache/x.jsonl", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/kept", recursive=True)
    local = discovery.find([str(folder)])
    assert len(local) == 13
    cut = work_plan.cut(local, lambda _: ["text"], "paragraph", 50)
    assert len(cut) > 20
    expected = [read(local, unit) for unit in cut]
    for address in (f"file://{folder}", "memory://kept", f"{server.address}/a corpus/"):
        found = discovery.find([address])
        assert [item.size for item in found] == [item.size for item in local]
        assert work_plan.cut(found, lambda _: ["text"], "paragraph", 50) == cut
        assert [read(found, unit) for unit in cut] == expected, address
        assert all(discovery.unchanged(item) for item in found)


def test_a_part_is_fetched_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "AHEAD", 1 << 12)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(work_plan, "MIN_UNIT", 1 << 17)
    (tmp_path / "www" / "a.jsonl").write_bytes(jsonl([f"{i:0100}" for i in range(10_000)]))
    found = discovery.find([f"{server.address}/a.jsonl"])
    assert server.n_sent == 0
    cut = work_plan.cut(found, lambda _: ["text"], "paragraph", 1 << 20)
    assert len(cut) > 5
    assert server.n_sent < 3 * len(cut) << 12
    before = server.n_sent
    assert len(read(found, cut[4])) > 500
    assert server.n_sent - before < cut[4][0].n_bytes + (2 << 12)


def test_patterns_match_in_a_store(tmp_path: Path) -> None:
    for name in (
        "a.jsonl",
        "b.jsonl",
        "sub/c.jsonl",
        "folder.jsonl/d.jsonl",
        "[x].jsonl",
        ".h.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(TEXTS))
    for pattern in ("*.jsonl", "**/*.jsonl", "[ab].jsonl", "[x].jsonl", "folder.jsonl", "sub"):
        here = discovery.find([str(tmp_path / pattern)])
        there = discovery.find([f"file://{tmp_path}/{pattern}"])
        assert [item.path for item in there] == ["file://" + item.path for item in here], pattern


def test_a_change_is_noticed(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "www" / "a.jsonl"
    path.write_bytes(jsonl(TEXTS))
    (item,) = discovery.find([f"{server.address}/a.jsonl"])
    assert discovery.unchanged(item)
    os.utime(path, (0, 0))
    assert not discovery.unchanged(item)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl could not be reached"):
        discovery.unchanged(item)


def test_a_store_that_fails_is_named(tmp_path: Path, server: Server) -> None:
    """In one line, whatever the error was: before, while looking, and while reading."""
    (tmp_path / "www" / "a.jsonl").write_bytes(jsonl(TEXTS))
    address = f"{server.address}/a.jsonl"
    for name, message in {
        "nowhere://bucket/a.jsonl": "cannot be opened .ValueError: Protocol not known",
        f"{server.address}/b.jsonl": "there is no corpus file",
        f"{server.address}/*.txt": "there is no corpus file",
        "http://127.0.0.1:1/a.jsonl": "could not be listed",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            discovery.find([name])
        assert "\n" not in str(caught.value)
    found = discovery.find([address])
    assert texts(found) == TEXTS
    server.ranges = False
    with pytest.raises(InputError, match=rf"{address} cannot be read at the start from byte 80"):
        read(found, [Part(0, 80, 150, 70)])
    server.sizes = False
    with pytest.raises(InputError, match="does not tell its size"):
        discovery.find([address])
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=rf"{address} cannot be read at the start \("):
        texts(found)


def test_shards_of_a_store_are_those_of_its_files(
    tokenizer_dir: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With worker processes, each of which reaches the store by itself."""
    monkeypatch.setattr(work_plan, "MIN_UNIT", 1 << 12)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "www" / name).write_bytes(jsonl([f"{name} {i} and words" for i in range(300)]))
    made = []
    for i, address in enumerate((str(tmp_path / "www"), f"{server.address}/")):
        output = str(tmp_path / f"out-{i}")
        config = PrepareConfig([address], str(tokenizer_dir), output, 512, "plain=1", workers=2)
        made.append(prepare(config))
    here, there = made
    assert here
    assert there
    assert len(here.files) > 5
    assert here.files == there.files


def test_an_error_is_told_in_a_line() -> None:
    assert filesystem.reason(OSError("\nno bucket\nhint: make one")) == "OSError: no bucket"
    assert filesystem.reason(TimeoutError()) == "TimeoutError"
