"""Folders of shards with one thing wrong, against what --verify says."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from helpers import save_tokenizer
from inspected import OPTIONS, edit_manifest, flip, make_corpus, make_shards, rewrite, run

from gem_ds.corpus.records import OFFSET_BITS
from gem_ds.errors import InputError
from gem_ds.layout import END, START, SUFFIX, SUMMARY
from gem_ds.shards import verify
from gem_ds.shards.manifest import Manifest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """All kinds of documents, two summary tokens, two epochs of two units; do not write in it."""
    folder = tmp_path_factory.mktemp("verified")
    return make_shards(make_corpus(folder), tokenizer_dir, folder / "shards", **OPTIONS)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "shards")


def fault(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        verify.verify(folder, 2)
    return str(caught.value)


def test_what_was_written_is_verified(good: Path) -> None:
    manifest = Manifest.load(good)
    assert len(manifest.files) == 4
    done = run(good, "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{good} verified: 4 files, {manifest.n_rows:,} rows, {manifest.n_documents:,} documents, "
        f"{manifest.n_tokens:,} tokens\n"
    )


def test_other_shards(good: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """Without summary tokens; of chats, whose template writes bos and eos into the texts."""
    corpus, tokenizer = good.parent / "c.jsonl", tmp_path / "tokenizer"
    plain = {"kinds": "plain=1", "summary_tokens": 0}
    folder = make_shards(corpus, tokenizer_dir, tmp_path / "plain", **plain)
    assert "verified" in verify.verify(folder, 1)
    shutil.copytree(tokenizer_dir, tokenizer)
    template = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
    (tokenizer / "chat_template.jinja").write_text(template)
    turns = [{"role": role, "content": f"so says the {role}"} for role in ("user", "assistant")]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"chat": turns}) + "\n")
    chats = {"kinds": "pair=1", "messages_field": "chat"}
    folder = make_shards(tmp_path / "chats.jsonl", tokenizer, tmp_path / "chats", **chats)
    assert "verified" in verify.verify(folder, 1)
    shown = run(folder, "--row", 0, PYTHONIOENCODING="utf-8").stdout
    assert "⟦bos⟧user: so says the user⟦eos⟧" in shown


def test_a_flipped_byte_and_the_way_out(good: Path, folder: Path, tokenizer_dir: Path) -> None:
    shard = folder / "shard-00002.parquet"
    flip(shard, shard.stat().st_size // 2)
    done = run(folder, "--verify", "--workers", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {shard} is damaged: its sha256 is not what was written; {verify.REDO}\n"
    )
    shard.unlink()
    (folder / "manifest.json").unlink()
    make_shards(good.parent / "c.jsonl", tokenizer_dir, folder, **OPTIONS)
    assert shard.read_bytes() == (good / shard.name).read_bytes()
    assert verify.verify(folder, 1).startswith(f"{folder} verified: 4 files, ")


def test_flipped_bytes_of_what_is_no_shard(good: Path, folder: Path) -> None:
    """No byte of a receipt that says something can change unnoticed."""
    manifest = Manifest.load(folder)
    receipt = folder / "units" / "00001.json"
    before = json.loads(receipt.read_text())
    for at in range(receipt.stat().st_size):
        flip(receipt, at)
        with contextlib.suppress(InputError):
            verify.check_receipts(manifest, folder)
            said = json.loads(receipt.read_text())
            assert all(said[name] == before[name] for name in ("plan", "unit", "files", "counts"))
        flip(receipt, at)
    for name in ("manifest.json", "plan.json"):
        flip(folder / name, 200)
        assert f"{folder / name} is damaged or was edited" in fault(folder)
        flip(folder / name, 200)


def test_swapped_files(folder: Path) -> None:
    one, other = (folder / f"shard-0000{i}.parquet" for i in (0, 1))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    assert f"{one} has {len(contents[1])} bytes, {len(contents[0])} were written" in fault(folder)
    entries = Manifest.load(folder).files  # as if they had been written so
    entries[:2] = ({**entries[1 - i], "name": entries[i]["name"]} for i in (0, 1))
    edit_manifest(folder, files=entries)
    assert "00000.json is missing, or not of the plan and the files" in fault(folder)


@pytest.mark.parametrize(
    ("part", "offset", "token", "belongs"),
    [
        (START, 1, 400, "text"),
        (SUFFIX, 0, 401, "text"),
        (SUMMARY, 0, 401, "the control token 400"),
        (SUMMARY, 1, 5, "the control token 401"),
        (START, 0, 5, "the control token 0"),
        (START, 1, 0, "text"),
        (END, -2, 1, "text"),
    ],
)
def test_misplaced_controls(folder: Path, part: int, offset: int, token: int, belongs: str) -> None:
    def edit(ids, bounds, records, kinds, d, *boundaries):
        ids[boundaries[part] + offset] = token

    row, d, boundaries = rewrite(folder, edit)
    t = boundaries[part] + offset
    expected = f"{row}: token {t}, in document {d}, is {token} where {belongs} belongs; "
    assert fault(folder).startswith(expected)


def test_rows_of_no_sense(folder: Path) -> None:
    def from_nowhere(ids, bounds, records, kinds, d, *boundaries):
        records[d] = 1 << OFFSET_BITS

    row, d, _ = rewrite(folder, from_nowhere)
    assert f"{row} names a record of none of the 1 inputs" in fault(folder)

    def called_plain(ids, bounds, records, kinds, d, *boundaries):
        records[d], kinds[d] = 0, 0

    rewrite(folder, called_plain)
    assert f"{row}: document {d} is not plain, as is said" in fault(folder)

    def moved(ids, bounds, records, kinds, d, *boundaries):
        kinds[d], bounds[d, SUMMARY] = 1, bounds[d, SUMMARY] + 1

    rewrite(folder, moved)
    assert f"{row}: document {d} does not have 2 summary tokens" in fault(folder)


def test_a_file_that_holds_other_than_it_says(folder: Path) -> None:
    n = Manifest.load(folder).files[0]["n_targets"]
    rewrite(folder, lambda *_: None, n_targets=n + 1)
    assert f"00000.parquet has {n} targets, manifest.json says {n + 1}; " in fault(folder)


def test_counts_that_do_not_add_up(folder: Path) -> None:
    manifest = Manifest.load(folder)
    counts, path = manifest.counts, folder / "manifest.json"
    more = {"documents_in": counts["documents_in"] + 1}
    skipped = {"skipped": {"empty text": 3}}
    for changes, message in (
        ({"counts": counts | more}, f"{path}: the records in are not those written and skipped"),
        ({"counts": counts | more | skipped}, f"{folder / 'units'}: the counts are not those of"),
        ({"counts": counts | {"documents": {}}}, "the documents of all kinds are not all"),
        ({"n_tokens": manifest.n_tokens + 1}, "the files do not add up to the totals"),
        ({"files": manifest.files[::-1]}, "the files are not in the order of their epochs"),
    ):
        edit_manifest(folder, **changes)
        assert message in fault(folder)
        manifest.save(folder)
    assert "verified" in verify.verify(folder, 1)


def test_receipts(good: Path, folder: Path) -> None:
    one, other = folder / "units" / "00000.json", folder / "units" / "00001.json"
    one.unlink()
    assert f"{one} is missing" in fault(folder)
    shutil.copy(other, one)
    assert f"{one} is missing, or not of the plan" in fault(folder)
    receipt = json.loads((good / "units" / "00000.json").read_text())
    last = receipt["files"].pop()
    one.write_text(json.dumps(receipt))
    assert f"{folder / last['name']} is in no receipt of {folder / 'units'}" in fault(folder)
    one.write_text(json.dumps(receipt | {"files": [{**last, "n_rows": 1}]}))
    assert f"{one} and manifest.json differ on {last['name']}" in fault(folder)
    (folder / "plan.json").unlink()
    assert f"{folder / 'plan.json'} is missing" in fault(folder)


def test_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer"
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|bos|>"}))
    other = f"{path} is not the tokenizer that the shards were written with"
    assert other in fault(folder)
    save_tokenizer(path)
    assert other in fault(folder)
    done = run(folder, "--row", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert other in done.stderr
    shutil.rmtree(path)
    assert f"{path} is missing" in fault(folder)
