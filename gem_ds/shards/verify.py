"""Whether a finished folder of shards is what its manifest says, down to the last byte and token.

`dataset.Shards` checks each row that it reads. Here is what only reading all of them can tell, and
what training need not know: where control tokens stand, and how the folder came about.
"""

import functools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from gem_ds import files, layout, process_pool
from gem_ds.corpus import tokenization
from gem_ds.corpus.records import place_of
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.errors import InputError
from gem_ds.layout import END, START
from gem_ds.shards import unit_context
from gem_ds.shards.dataset import AGAIN, Row, Shards
from gem_ds.shards.documents import KINDS, PLAIN
from gem_ds.shards.manifest import MANIFEST, TOKENIZER, Manifest, Tally
from gem_ds.shards.work_plan import PLAN, Plan

REDO = f"remove it and {MANIFEST} and repeat the shard.py command, which does what is missing"
TOLD_ROWS = 1024  # between two words to the progress bar
TEXT = -1  # in place of every id that is no control token's


def verify(folder: str | Path, workers: int) -> str:
    """Check all of a folder, its files in `workers` processes; returns the closing words.

    Raises `InputError` at the first fault of the tokenizer, the counts or the receipts; else with
    the first one of each damaged file, until there are three.
    """
    shards = Shards(folder)
    manifest = shards.manifest
    tokenizer(shards)
    check_counts(manifest, shards.folder / MANIFEST)
    check_receipts(manifest, shards.folder)
    bar = tqdm(
        total=len(shards),
        unit="row",
        desc="verifying",
        leave=False,
        delay=2,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    task = functools.partial(check_file, folder=shards.folder)
    names = [file["name"] for file in manifest.files]
    warn = functools.partial(tqdm.write, file=sys.stderr)
    items = range(len(names))
    with bar:
        for _ in process_pool.run(task, items, workers, names.__getitem__, bar.update, warn):
            pass
    return (
        f"{folder} verified: {len(names):,} files, {manifest.n_rows:,} rows, "
        f"{manifest.n_documents:,} documents, {manifest.n_tokens:,} tokens"
    )


def tokenizer(shards: Shards) -> Vocabulary:
    """The tokenizer in a folder of shards. Raises `InputError` if it is not the manifest's."""
    manifest = shards.manifest
    path = shards.folder / TOKENIZER
    if not path.is_dir():
        raise InputError(f"{path} is missing; {AGAIN}")
    vocab = tokenization.load(path)
    same = tokenization.fingerprint(vocab) == manifest.tokenizer_sha256
    same &= tokenization.summary_ids(vocab) == manifest.summary_tokens
    same &= vocab.bos_token_id == manifest.bos_token_id
    same &= vocab.eos_token_id == manifest.eos_token_id
    if not same:
        raise InputError(f"{path} is not the tokenizer that the shards were written with; {AGAIN}")
    return vocab


def check_counts(manifest: Manifest, path: Path) -> None:
    """Raise `InputError` unless the manifest's counts add up."""
    counts = manifest.counts
    records = counts["records_written"] + sum(counts["skipped"].values())
    documents = sum(counts["documents"].values())
    of_files = [
        (f["n_rows"], f["n_documents"], f["n_tokens"], f["n_targets"]) for f in manifest.files
    ]
    totals = [manifest.n_rows, manifest.n_documents, manifest.n_tokens, manifest.n_targets]
    epochs = [file["epoch"] for file in manifest.files]
    wrong = {
        "the records in are not those written and skipped": records != counts["documents_in"],
        "the documents of all kinds are not all documents": documents != manifest.n_documents,
        "the files do not add up to the totals": np.sum(of_files, axis=0).tolist() != totals,
        "the files are not in the order of their epochs": epochs != sorted(epochs),
    }
    for what in (what for what, found in wrong.items() if found):
        raise InputError(f"{path}: {what}; {AGAIN}")


def check_receipts(manifest: Manifest, folder: Path) -> None:
    """Raise `InputError` unless the plan's receipts and the manifest tell the same."""
    if not (folder / PLAN).is_file():
        raise InputError(f"{folder / PLAN} is missing; {AGAIN}")
    plan = Plan.load(folder)
    left = {entry["name"]: entry for entry in manifest.files}
    tally = Tally()
    for unit in range(len(plan.units)):
        path = unit_context.receipt_path(folder, unit)
        try:
            receipt = unit_context.receipt(folder, plan, unit)
            if receipt is None or receipt["unit"] != unit:
                raise InputError(f"{path} is missing, or not of the plan and the files; {REDO}")
            tally.add(receipt["counts"])
            for entry in receipt["files"]:
                if left.pop(entry["name"], None) != entry:
                    raise InputError(f"{path} and {MANIFEST} differ on {entry['name']}; {REDO}")
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); {REDO}") from error
    if left:
        raise InputError(
            f"{folder / min(left)} is in no receipt of {folder / unit_context.UNITS}; {AGAIN}"
        )
    counts = manifest.counts
    same = (counts["documents_in"], counts["records_written"]) == (tally.records, tally.written)
    for name in ("skipped", "documents", "notes"):
        same &= Counter(counts[name]) == getattr(tally, name)
    if not same:
        raise InputError(
            f"{folder / unit_context.UNITS}: the counts are not those of {MANIFEST}; {AGAIN}"
        )


@functools.lru_cache(1)
def _opened(folder: Path) -> Shards:
    return Shards(folder)  # once a worker


def check_file(number: int, tell: process_pool.Tell, *, folder: Path) -> None:
    """Hash file `number` of the manifest and check its rows; `tell` is told of rows.

    Raises `InputError` at the first fault.
    """
    shards = _opened(folder)
    manifest = shards.manifest
    entry = manifest.files[number]
    path = folder / entry["name"]
    if files.sha256(path) != entry["sha256"]:
        raise InputError(f"{path} is damaged: its sha256 is not what was written; {REDO}")
    counted = {"n_rows": pq.read_metadata(path).num_rows}
    counted |= {"n_documents": 0, "n_tokens": 0, "n_targets": 0}
    first = sum(file["n_rows"] for file in manifest.files[:number])
    for i in range(entry["n_rows"]):
        row = shards.read(first + i)
        _check_row(row, manifest, f"{path}, row {i}")
        counted["n_documents"] += len(row.bounds)
        counted["n_tokens"] += len(row.input_ids)
        counted["n_targets"] += layout.n_targets(row.bounds)
        if (i + 1) % TOLD_ROWS == 0:
            tell(TOLD_ROWS)
    tell(entry["n_rows"] % TOLD_ROWS)
    said = dict(entry)
    for name, n in counted.items():
        if n != said[name]:
            what = name.removeprefix("n_")
            raise InputError(f"{path} has {n} {what}, {MANIFEST} says {said[name]}; {AGAIN}")


def _check_row(row: Row, manifest: Manifest, name: str) -> None:
    """Raise `InputError` unless control tokens stand where the layout has them, and only there.

    Each document must begin with bos, may end with eos, come from an input that there was, and have
    summary tokens if its kind has.
    """
    ids_T, bounds_D4, records_D, kinds_D = row
    bos, eos = manifest.bos_token_id, manifest.eos_token_id
    if manifest.config["messages_field"]:
        bos = eos = None  # a chat template may put them anywhere
    expected_T = np.full(len(ids_T), TEXT)
    is_summary_T = layout.is_summary(bounds_D4)
    expected_T[is_summary_T] = np.resize(manifest.summary_tokens, is_summary_T.sum())
    if bos is not None:
        expected_T[bounds_D4[:, START]] = bos
    if eos is not None:
        last_D = bounds_D4[:, END] - 1
        expected_T[last_D[ids_T[last_D] == eos]] = eos  # a split text has it in its last document
    controls = [token for token in (*manifest.summary_tokens, bos, eos) if token is not None]
    found_T = np.where(np.isin(ids_T, controls), ids_T, TEXT)
    if not np.array_equal(found_T, expected_T):
        t = int((found_T != expected_T).argmax())
        belongs = "text" if expected_T[t] == TEXT else f"the control token {expected_T[t]}"
        raise InputError(
            f"{name}: token {t}, in document {layout.document_of(bounds_D4)[t]}, is {ids_T[t]} "
            f"where {belongs} belongs; {AGAIN}"
        )
    n_inputs = len(manifest.config["input"])
    if records_D.min() < 0 or place_of(int(records_D.max()))[0] >= n_inputs:
        raise InputError(f"{name} names a record of none of the {n_inputs} inputs; {AGAIN}")
    wrong_D = (kinds_D != KINDS.index(PLAIN)) != layout.is_gem(bounds_D4)
    if wrong_D.any():
        d = int(wrong_D.argmax())
        raise InputError(f"{name}: document {d} is not {KINDS[kinds_D[d]]}, as is said; {AGAIN}")
