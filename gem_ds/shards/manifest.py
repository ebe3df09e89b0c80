"""What a finished folder of shards says of itself: ``manifest.json``, which is written last."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

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
