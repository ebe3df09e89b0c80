"""What a finished folder of shards says of itself: ``manifest.json``, which is written last, and in
it what became of each record: counted, and listed if it was left out."""

import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from gem_ds.corpus.records import Record, Skip, is_bad
from gem_ds.errors import InputError
from gem_ds.files import replacing

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"


class FileEntry(TypedDict):
    """What the manifest says of one file. `footer_sha256` is of the Parquet footer alone."""

    name: str
    epoch: int
    n_rows: int
    n_documents: int
    n_tokens: int
    n_targets: int
    bytes: int
    sha256: str
    footer_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and how it came about.

    `summary_tokens` are the k ids; `vocab_size` is one more than the highest id; the tokenizer's
    fingerprint is given without the summary tokens (base) and with them. `kinds` are the shares
    asked for, by source of a mixture; `counts` the records in, written and skipped by reason, and
    the documents by kind; `config` is all that the shards depend on, which tells a repeated command
    from another one. Of several epochs the files come one after the other.
    """

    row_length: int
    n_rows: int
    n_documents: int
    n_tokens: int
    n_targets: int
    summary_tokens: list[int]
    bos_token_id: int | None
    eos_token_id: int | None
    vocab_size: int
    base_tokenizer_sha256: str
    tokenizer_sha256: str
    seed: int
    kinds: dict[str, dict[str, float]]
    epochs: int
    counts: dict[str, Any]
    files: list[FileEntry]
    config: dict[str, Any]
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def epoch_rows(self) -> list[int]:
        """The number of rows of each epoch."""
        files = self.files
        return [sum(f["n_rows"] for f in files if f["epoch"] == e) for e in range(self.epochs)]

    @property
    def documents(self) -> set[str]:
        """The kinds of which there are documents."""
        return {kind for kind, n in self.counts["documents"].items() if n}

    @property
    def digest(self) -> str:
        """sha256 of the content: two folders with the same digest hold the same rows."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, atomically and with its digest; to be called last."""
        content = asdict(self) | {"digest": self.digest}
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read a folder's manifest. Raises `InputError` if it is missing, damaged or too new."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(
                f"there is no {MANIFEST} in {folder}: sharding did not finish, or this is not a "
                "folder of shards; run python data_prep/shard.py again with the same --output"
            )
        damaged = f"{path} is damaged or was edited; remove {folder} and shard again"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{damaged} ({error})") from error
        if not isinstance(content, dict):
            raise InputError(damaged)
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; "
                "shard again with this version"
            )
        digest = content.pop("digest", None)
        if set(content) == {field.name for field in fields(cls)}:
            manifest = cls(**content)
            if manifest.digest == digest:
                return manifest
        raise InputError(damaged)


HOPELESS = 1000  # records, all bad, after which a unit is given up


@dataclass
class Tally:
    """Counts of one unit or of many. A record drawn twice counts twice.

    records: drawn. written: yielded a document. skipped: by reason. documents: by kind. notes: how
    often something else happened that is worth telling.
    """

    records: int = 0
    written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, counts: dict[str, Any]) -> None:
        """Add the counts of another."""
        self.records += counts["records"]
        self.written += counts["written"]
        for name in ("skipped", "documents", "notes"):
            getattr(self, name).update(counts[name])

    def counts(self) -> dict[str, Any]:
        """As JSON; names in order, whatever came first."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }

    def bad(self) -> int:
        """The number of records that could not be decoded; empty ones are not bad."""
        return sum(n for reason, n in self.skipped.items() if is_bad(reason))

    def is_hopeless(self) -> bool:
        """Whether every record so far, of many, was bad."""
        return self.bad() == self.records >= HOPELESS

    def check(self, max_bad_fraction: float, first_bad: str) -> None:
        """Raise `InputError` if nothing was written, or more than the allowed share was bad."""
        assert self.records == self.written + self.skipped.total(), "a record was lost"
        if self.bad() > max_bad_fraction * self.records:
            raise InputError(
                f"{self.bad():,} of {self.records:,} records could not be read, first {first_bad}; "
                f"correct them, or allow them with --max-bad-fraction (now {max_bad_fraction})"
            )
        if not self.records:
            raise InputError("the corpus is empty: there is no record in --input")
        if not self.written:
            reasons = ", ".join(self.skipped)
            raise InputError(f"the corpus yields nothing: all its records were skipped ({reasons})")


class Quarantine:
    """The list of a unit's records left out, a JSON line each: part, line in it, id, reason.

    The first one of each reason also has what else is to be said of it. A context manager: the file
    appears when that ends without an error, if there is anything in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n = 0
        self._reasons: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, record: Record, skip: Skip) -> None:
        """List a record."""
        if not self.n:
            temporary = self._stack.enter_context(replacing(self.path))
            self._out = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        reason = str(skip)
        entry = {"part": record.part, "line": record.line, "record": record.id, "reason": reason}
        if reason not in self._reasons:
            self._reasons.add(reason)
            entry["told"] = skip.told
        self._out.write(json.dumps(entry) + "\n")
        self.n += 1
