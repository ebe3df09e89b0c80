"""The flags of data preparation, and what they must be."""

import datetime
from dataclasses import dataclass, field
from typing import Any

from gem_ds.corpus import mixture, record_reader
from gem_ds.errors import InputError
from gem_ds.flags import SEEDS, Range, check, real, whole
from gem_ds.shards import documents
from gem_ds.shards.documents import PLAIN

LOCAL, SLURM, RAY = EXECUTORS = ("local", "slurm", "ray")


def _flag(default: Any, text: str, allowed: Range | None = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, "range": allowed, **more})


@dataclass(frozen=True)
class PrepareConfig:
    """What `prepare.prepare` is to do. The metadata of the fields makes the script's flags."""

    input: list[str] = field(
        metadata={
            "help": "files, folders, patterns or addresses of .jsonl, .json, .csv, .tsv, .txt "
            "(also .gz, .zst, .bz2, .xz, .zip), .parquet, .arrow or .feather; dataset:NAME:SPLIT; "
            "with --mix, each as source=..."
        }
    )
    tokenizer: str = field(metadata={"help": "folder or hub name of the model's tokenizer"})
    output: str = field(metadata={"help": "folder for the shards, new or left by this command"})
    row_length: int = _flag(
        2048, "tokens in a packed row, summary and control tokens included", whole(1, 2**24)
    )
    kinds: str = _flag(
        "plain=0.8,continuation=0.2",
        "shares of the kinds of documents; of a source of a mixture, "
        "plain=0.8,continuation=0.2;qa:pair=1",
    )
    summary_tokens: int = _flag(8, "number k of summary tokens (the paper's: 1)", whole(0, 1000))
    text_field: str = _flag("text", "field or column of the text")
    context_field: str = _flag("context", "field of the context, such as a query, for kind pair")
    answer_field: str = _flag(
        "answer",
        "field of the answer, for kind pair; a list gives a pair each (negatives are not used)",
    )
    messages_field: str = _flag(
        "",
        "field of chat messages (role and content, or from and value), which make the pairs",
    )
    chat_date: str = _flag("", "day, as 2026-01-31, for chat templates that write today's date")
    text_unit: str = _flag(
        "paragraph", "what a record of plain text is", choices=record_reader.UNITS
    )
    cut: str = _flag("uniform", "where a continuation is cut: uniform, sentence, or 32-256 tokens")
    min_prefix: int = _flag(
        8, "least tokens of text before a continuation's summary tokens", whole(1)
    )
    min_suffix: int = _flag(8, "least tokens of text after them", whole(1))
    long_pairs: str = _flag(
        "truncate",
        "pairs longer than a row lose the beginning of their context, or are left out",
        choices=documents.LONG_PAIRS,
    )
    mix: str = _flag("", "shares of records by source, such as web=0.7,books=0.3")
    mix_records: int = _flag(
        0, "records drawn an epoch; 0 is as many as repeat none", whole(0, 10**12)
    )
    epochs: int = _flag(
        1, "times that each record is drawn, with new kinds and cuts", whole(1, 10**6)
    )
    seed: int = _flag(0, "seed of kinds, cuts, mixture and the order of rows", whole(0, SEEDS))
    unit_megabytes: float = _flag(256.0, "most text that is one unit of work", real(1e-6, 1e6))
    max_bad_fraction: float = _flag(
        0.001, "share of undecodable records above which to fail", real(0, 1)
    )
    workers: int = _flag(
        0, "processes that encode; 0 is one a core, in a cluster's task one", whole(0, 10**4)
    )
    executor: str = _flag(LOCAL, "where units are done", choices=EXECUTORS)
    share: str = _flag("", "do only units i of n, written i/n, and leave the rest to others")
    only_plan: bool = _flag(False, "stop when the plan is made")
    tasks: int = _flag(
        0, "most tasks of a cluster, each with its share of the units; 0 is 1,000", whole(0, 10**6)
    )
    memory_gb: int = _flag(2, "memory of each worker in a cluster", whole(1, 10**5))
    slurm: str = _flag("", "options for sbatch, such as partition=cpu,time=04:00:00,account=me")

    def kinds_by_source(self, names: list[str]) -> dict[str, dict[str, float]]:
        """The kinds of each source; the one source without a name is called ``""``."""
        default, by_name = "", {}
        for part in self.kinds.split(";"):
            name, colon, shares = part.strip().rpartition(":")
            if colon and name not in names:
                raise InputError(f"--kinds {self.kinds}: --mix has no source {name!r}")
            if colon:
                by_name[name] = documents.parse_kinds(shares)
            else:
                default = shares
        missing = [name for name in names or [""] if name not in by_name]
        if missing and not default:
            raise InputError(f"--kinds {self.kinds} says nothing of the source {missing[0]}")
        return by_name | {name: documents.parse_kinds(default) for name in missing}

    def check(self) -> None:
        """Raise `InputError` for options that cannot be met, alone or together."""
        check(self)
        kinds = self.kinds_by_source(list(mixture.parse(self.mix)))
        if not self.summary_tokens and any(set(shares) != {PLAIN} for shares in kinds.values()):
            raise InputError(
                f"--summary-tokens 0 with --kinds {self.kinds}: every kind but plain needs at "
                "least one summary token"
            )
        if self.mix_records and not self.mix:
            raise InputError("--mix-records is of a mixture; give --mix too")
        try:
            datetime.date.fromisoformat(self.chat_date or "2000-01-01")
        except ValueError:
            raise InputError(f"--chat-date {self.chat_date}: give a day as 2026-01-31") from None
        if self.share:
            self.share_of([])
        _, least_prefix, most = documents.parse_cut(self.cut)
        min_prefix = max(self.min_prefix, least_prefix)
        if most is not None and most < min_prefix:
            raise InputError(f"--cut {self.cut} leaves no prefix of --min-prefix {self.min_prefix}")
        needed = 2 + self.summary_tokens + min_prefix + self.min_suffix
        if self.row_length < needed:
            raise InputError(f"--row-length {self.row_length} is too short; give at least {needed}")

    def share_of(self, items: list[int]) -> list[int]:
        """The units of ``--share i/n``, or all."""
        if not self.share:
            return items
        i, slash, n = self.share.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
            raise InputError(f"--share {self.share}: give i/n with i from 0 to n - 1, such as 0/4")
        return items[int(i) :: int(n)]
