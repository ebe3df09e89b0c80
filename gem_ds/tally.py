"""What became of each record of a corpus: counted, and quarantined if it was left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gem_ds.documents import KINDS, Batch
from gem_ds.errors import InputError
from gem_ds.records import BAD

HOPELESS = 1000  # records, all bad, after which a run stops at once
QUARANTINE = "quarantine.jsonl"


class Tally:
    """Counts of records and documents; the quarantine file gets a line for each record left out."""

    def __init__(self, quarantine: Path, max_bad_fraction: float) -> None:
        self.records = self.written = 0
        self.skipped: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.first_bad = ""
        self.quarantine = quarantine
        self.max_bad_fraction = max_bad_fraction

    def add(self, batch: Batch) -> None:
        """Count a batch. Raises `InputError` if every record so far, of many, was bad."""
        self.records += batch.n_records
        self.written += len({document.record for document in batch.documents})
        self.documents.update(document.kind for document in batch.documents)
        self.notes.update(batch.notes)
        self.skipped.update(reason for _, _, reason in batch.skipped)
        if not batch.skipped:
            return
        with self.quarantine.open("a", encoding="utf-8") as out:
            for file, line, reason in batch.skipped:
                out.write(json.dumps({"file": file, "line": line, "reason": reason}) + "\n")
                if not self.first_bad and reason in BAD:
                    self.first_bad = f"{file}:{line}: {reason}"
        if self.bad() == self.records >= HOPELESS and self.max_bad_fraction < 1:
            self.check()

    def bad(self) -> int:
        """The number of records that could not be decoded; empty ones are not bad."""
        return sum(n for reason, n in self.skipped.items() if reason in BAD)

    def check(self) -> None:
        """Raise `InputError` if records are missing, or more than the allowed share was bad."""
        assert self.records == self.written + self.skipped.total(), "a record was lost"
        if self.bad() > self.max_bad_fraction * self.records:
            raise InputError(
                f"{self.bad():,} of {self.records:,} records could not be read, first "
                f"{self.first_bad} (all in {self.quarantine}); correct them, or allow them with "
                f"--max-bad-fraction (now {self.max_bad_fraction})"
            )
        if not self.records:
            raise InputError("the corpus is empty: there is no record in --input")
        if not self.written:
            reasons = ", ".join(self.skipped)
            raise InputError(f"the corpus yields nothing: all its records were skipped ({reasons})")

    def counts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "documents_in": self.records,
            "records_written": self.written,
            "skipped": dict(sorted(self.skipped.items())),
            "documents": {kind: self.documents[kind] for kind in KINDS},
            "notes": {name: n for name, n in sorted(self.notes.items()) if n},
        }
