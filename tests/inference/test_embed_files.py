"""The commands: what they write is what the model gives, interrupted or on several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from exports import TEXTS, export_adapter, export_tiny
from runs import ROOT

from gem_ds import GemModel
from gem_ds.errors import InputError
from gem_ds.inference import embed_files, memory_files
from gem_ds.inference.embed_files import Settings
from gem_ds.inference.text_files import TextFile

MANY = [f"{text} {i}" for i in range(20) for text in TEXTS]


@pytest.fixture(scope="module")
def export(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export_tiny(tokenizer_dir, tmp_path_factory.mktemp("export"))[1])


@pytest.fixture(scope="module")
def gem(export: str) -> GemModel:
    return GemModel.from_pretrained(export)


@pytest.fixture
def corpus(tmp_path: Path) -> TextFile:
    rows = (json.dumps({"body": t, "key": f"n{i}"}) for i, t in enumerate(MANY))
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    return TextFile.find(str(tmp_path / "in.jsonl"), field="body", id_field="key")


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / f"{script}.py"), *map(str, arguments)]


def test_vectors_are_the_models_whatever_the_parts(
    corpus: TextFile, export: str, gem: GemModel, tmp_path: Path
) -> None:
    settings = Settings(prompt="q: ", truncate_dim=16)
    embed_files.embed(export, corpus, str(tmp_path / "a.parquet"), settings, 100, part=50)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("id").to_pylist() == [f"n{i}" for i in range(len(MANY))]
    found = np.array(table.column("embedding").to_pylist(), dtype=np.float32)
    assert np.allclose(found, gem.encode(MANY, prompt="q: ", truncate_dim=16), atol=1e-5)
    embed_files.embed(export, corpus, str(tmp_path / "b.npy"), Settings(precision="binary"))
    assert np.array_equal(np.load(tmp_path / "b.npy"), gem.encode(MANY, precision="binary"))


def test_other_settings_do_not_go_on_with_unfinished_work(
    corpus: TextFile, export: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "a.npy")
    with pytest.raises(InputError, match="has 32 dimensions, not 99"):
        embed_files.embed(export, corpus, output, Settings(truncate_dim=99))
    (tmp_path / "in.jsonl").write_text((tmp_path / "in.jsonl").read_text() + "\nno JSON\n")
    corpus = TextFile.find(str(tmp_path / "in.jsonl"), field="body", id_field="key")
    with pytest.raises(InputError, match=r"in\.jsonl, line 121: invalid JSON"):
        embed_files.embed(export, corpus, output, part=50)
    assert sorted(p.name for p in (tmp_path / "a.npy.parts").glob("part*")) == [
        "part-000000.npy",
        "part-000001.npy",
    ]
    with pytest.raises(InputError, match=r"unfinished work with other settings \(prompt\)"):
        embed_files.embed(export, corpus, output, Settings(prompt="x"), part=50)


def test_a_killed_command_goes_on(tmp_path: Path, export: str, gem: GemModel) -> None:
    texts = MANY * 200
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    given = ("--model", export, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy")
    process = subprocess.Popen(command("encode", *given))
    parts = tmp_path / "out.npy.parts"
    while not list(parts.glob("part-*.npy")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.npy")}
    assert done
    assert not (tmp_path / "out.npy").exists()
    whole = {path.name: np.load(path) for path in done}
    subprocess.run(command("encode", *given), check=True)
    found = np.load(tmp_path / "out.npy")
    assert np.array_equal(found[:4096], whole["part-000000.npy"])
    picked = np.random.default_rng(0).choice(len(texts), 50)
    assert np.allclose(found[picked], gem.encode([texts[i] for i in picked]), atol=1e-5)
    assert len(found) == len(texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


def test_processes_share_the_parts(
    corpus: TextFile, export: str, gem: GemModel, tmp_path: Path
) -> None:
    """Two real ranks, which meet through torchrun's own variables."""
    code = (
        "from gem_ds.inference import embed_files\n"
        "from gem_ds.inference.text_files import TextFile\n"
        f"embed_files.embed({export!r}, TextFile.find({corpus.path!r}, field='body'), "
        f"{str(tmp_path / 'out.npy')!r}, part=17)"
    )
    (tmp_path / "work.py").write_text(code)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node=2", str(tmp_path / "work.py")]
    done = subprocess.run(torchrun, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(np.load(tmp_path / "out.npy"), gem.encode(MANY), atol=1e-5)
    assert not (tmp_path / "out.npy.parts").exists()


def test_the_encode_command_reads_lines_and_pipes(
    export: str, gem: GemModel, tmp_path: Path
) -> None:
    lines = "one text\r\n\nTöxt drei".encode()
    given = ("--model", export, "--output", tmp_path / "out.npy", "--batch-tokens", 20)
    subprocess.run(command("encode", *given), input=lines, check=True)
    expected = gem.encode(["one text", "", "Töxt drei"])
    assert np.load(tmp_path / "out.npy").dtype == np.float32
    assert np.allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    piped = tmp_path / "piped.npy"
    with piped.open("wb") as file:
        subprocess.run(command("encode", "--model", export), input=lines, stdout=file, check=True)
    assert np.allclose(np.load(piped), expected, atol=1e-6)
    bad = subprocess.run(
        command("encode", "--model", export, "--output", tmp_path / "bad.npy"),
        input=b"fine\n\xff\n",
        capture_output=True,
    )
    assert bad.returncode == 2
    assert bad.stderr.decode().splitlines()[-1] == (
        "error: standard input, line 2: invalid UTF-8; correct or remove the line"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "piped.npy"]


@pytest.mark.parametrize("script", ["encode", "compress"])
def test_without_arguments_a_command_says_what_it_needs(script: str) -> None:
    done = subprocess.run(command(script), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"python launch/{script}.py --model" in done.stdout


@pytest.mark.parametrize("name", ["memories", "memories.safetensors"])
def test_memories_keep_their_ids(
    corpus: TextFile, tokenizer_dir: Path, tmp_path: Path, name: str
) -> None:
    _, folder = export_adapter(tokenizer_dir, tmp_path / "export", k=2)
    output = tmp_path / name
    embed_files.compress(str(folder), corpus, str(output), part=50)
    found = memory_files.read(output)
    assert list(found) == [f"n{i}" for i in range(len(MANY))]
    gem = GemModel.from_pretrained(folder)
    expected = gem.compress(MANY[7])
    assert np.allclose(found["n7"].keys[1], expected.keys[1], atol=1e-4)
    assert gem.reconstruct(found["n7"]) == gem.reconstruct(expected)
    if output.is_dir():
        with pytest.raises(InputError, match="exists; name another folder or remove it"):
            embed_files.compress(str(folder), corpus, str(output))


def test_an_id_stands_for_one_text(export: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n')
    source = TextFile.find(str(tmp_path / "in.jsonl"), id_field="id")
    with pytest.raises(InputError, match=r"in\.jsonl: an id stands for two texts"):
        embed_files.compress(export, source, str(tmp_path / "out"))
