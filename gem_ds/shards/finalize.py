"""From the receipts of all units to a finished folder: counts that add up, the manifest last."""

import json
from pathlib import Path
from typing import Any

from gem_ds import files
from gem_ds.corpus import discovery, tokenization
from gem_ds.corpus.records import is_bad
from gem_ds.files import replacing
from gem_ds.shards import unit_context
from gem_ds.shards.documents import KINDS
from gem_ds.shards.manifest import FileEntry, Manifest, Tally
from gem_ds.shards.work_plan import Plan

QUARANTINE = "quarantine.jsonl"


def finish(plan: Plan, folder: Path, max_bad_fraction: float) -> Manifest:
    """Write the list of all records left out and the manifest, from the receipts of all units.

    Raises `InputError` if nothing was written, too many records were bad, or the tokenizer is not
    the plan's.
    """
    vocab = unit_context.tokenizer(folder, plan)
    receipts = [_receipt(plan, folder, unit) for unit in range(len(plan.units))]
    tally = Tally()
    for receipt in receipts:
        tally.add(receipt["counts"])
    first_bad = _list_skipped(plan, folder, receipts)
    tally.check(max_bad_fraction, f"{first_bad} (all in {folder / QUARANTINE})")
    _check_mixture(plan, tally)
    entries: list[FileEntry] = [entry for receipt in receipts for entry in receipt["files"]]
    entries.sort(key=lambda entry: entry["epoch"])  # stable: of an epoch in the order of units
    assert sum(entry["n_documents"] for entry in entries) == tally.documents.total()
    for path in (folder, folder / unit_context.UNITS):
        files.remove_leftovers(path)
    manifest = Manifest(
        row_length=plan.asked["row_length"],
        n_rows=sum(entry["n_rows"] for entry in entries),
        n_documents=sum(entry["n_documents"] for entry in entries),
        n_tokens=sum(entry["n_tokens"] for entry in entries),
        n_targets=sum(entry["n_targets"] for entry in entries),
        summary_tokens=plan.asked["summary_token_ids"],
        bos_token_id=vocab.bos_token_id,
        eos_token_id=vocab.eos_token_id,
        vocab_size=vocab.size,
        base_tokenizer_sha256=tokenization.fingerprint(vocab, summary_tokens=False),
        tokenizer_sha256=tokenization.fingerprint(vocab),
        seed=plan.asked["seed"],
        kinds=plan.asked["kinds"],
        epochs=plan.asked["epochs"],
        counts=_counts(tally),
        files=entries,
        config=plan.asked | {"input": [_named(item) for item in plan.inputs]},
        versions=plan.versions,
    )
    manifest.save(folder)
    return manifest


def _receipt(plan: Plan, folder: Path, unit: int) -> dict[str, Any]:
    found = unit_context.receipt(folder, plan, unit)
    assert found is not None, f"unit {unit} is not done"
    return found


def _named(item: discovery.Input) -> dict[str, Any]:
    """An input as the manifest has it: not where it lies."""
    return {"name": item.path.rpartition("/")[2], "bytes": item.size, "source": item.source}


def _counts(tally: Tally) -> dict[str, Any]:
    counts = tally.counts()
    return {
        "documents_in": counts["records"],
        "records_written": counts["written"],
        "skipped": counts["skipped"],
        "documents": {kind: tally.documents[kind] for kind in KINDS},
        "notes": {name: n for name, n in counts["notes"].items() if n},
    }


def _check_mixture(plan: Plan, tally: Tally) -> None:
    """Every source was drawn exactly as often as the plan says."""
    if plan.mixture:
        drawn = sum(source.drawn for source in plan.mixture.values()) * plan.asked["epochs"]
        assert tally.records == drawn, "the mixture is not what was planned"


def _list_skipped(plan: Plan, folder: Path, receipts: list[dict[str, Any]]) -> str:
    """Write the list of the records left out, with the lines they have in their files.

    Returns the first bad one, for people. Units know lines of their parts only: of a file that is
    cut in several, those of the parts before have to be added.
    """
    first_bad = ""
    path = folder / QUARANTINE
    if not any(receipt["n_listed"] for receipt in receipts):
        return first_bad
    lines_before: dict[int, int] = {}
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for unit, receipt in enumerate(receipts):
            starts = []
            for part, n_lines in zip(plan.units[unit], receipt["lines"], strict=True):
                starts.append(lines_before.get(part.input, 0))
                lines_before[part.input] = starts[-1] + n_lines
            if not receipt["n_listed"]:
                continue
            with unit_context.skipped_path(folder, unit).open(encoding="utf-8") as listed:
                for text in listed:
                    entry = json.loads(text)
                    item = plan.inputs[plan.units[unit][entry["part"]].input]
                    line = starts[entry["part"]] + entry["line"]
                    reason = entry["reason"]
                    out.write(
                        json.dumps({"file": item.path, "line": line, "reason": reason}) + "\n"
                    )
                    if not first_bad and is_bad(reason):
                        first_bad = f"{item.path}:{line}: {entry.get('told', reason)}"
    return first_bad


def summary(plan: Plan, manifest: Manifest, output: Path, seconds: float) -> str:
    """The closing words."""
    counts = manifest.counts
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts["documents"].items() if n)
    skipped = sum(counts["skipped"].values())
    why = ", ".join(f"{n:,} {reason}" for reason, n in counts["skipped"].items())
    fill = manifest.n_tokens / (manifest.n_rows * manifest.row_length)
    mixed = [
        f"            {source.drawn:,} of {source.size:,} records of {name}"
        + (" an epoch" if manifest.epochs > 1 else "")
        for name, source in plan.mixture.items()
    ]
    size = sum(item.size for item in plan.inputs) / 1e6
    lines = [
        f"records in  {counts['documents_in']:,} = {counts['records_written']:,} written + "
        f"{skipped:,} skipped" + (f" ({why}; see {output / QUARANTINE})" if why else ""),
        *mixed,
        f"documents   {manifest.n_documents:,}: {kinds}",
        *(f"            {n:,} {name.replace('_', ' ')}" for name, n in counts["notes"].items()),
        f"tokens      {manifest.n_tokens:,}, of which {manifest.n_targets:,} are targets",
        f"rows        {manifest.n_rows:,} of {manifest.row_length:,} tokens, {fill:.2%} filled, "
        f"{len(manifest.files)} files",
        f"{output} is finished: {seconds:.1f} s, {size / seconds:.1f} MB/s of corpus",
    ]
    return "\n".join(lines)
