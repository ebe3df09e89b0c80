"""How a corpus is cut into units of work, and the plan that freezes it.

A unit is a list of parts of at most some 256 MB in all, done by one worker at a stretch: its shards
depend on the plan and its number alone. ``plan.json`` holds what every unit needs to know, so that
any process on any machine can do any unit, and a run that goes on finds that nothing has changed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from gem_ds.corpus import discovery, filesystem, record_reader, tables
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.mixture import Source
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.records import OFFSET_BITS
from gem_ds.corpus.streams import Stream
from gem_ds.errors import InputError
from gem_ds.files import replacing

PLAN = "plan.json"
PLAN_VERSION = 1
MIN_UNIT = 1 << 23  # bytes of text; smaller ones fill their rows less well
SHARE = 32  # a small corpus is cut into as many units, so that several workers have something to do
EXPANSION = 4  # bytes of text in a byte of compressed corpus


@dataclass(frozen=True)
class Plan:
    """What a folder of shards is made from and how.

    asked: all settings that the shards depend on. inputs, units: see `corpus.discovery.Input` and
    `corpus.record_reader.Part`. mixture: the sources' `corpus.mixture.Source`. versions: of the
    libraries whose change may change a shard.
    """

    asked: dict[str, Any]
    inputs: list[Input]
    units: list[list[Part]]
    mixture: dict[str, Source]
    versions: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """sha256 of the content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def weight(self, unit: int) -> int:
        """Bytes of a unit."""
        return sum(part.n_bytes for part in self.units[unit])

    def where(self, unit: int) -> str:
        """What a unit covers, for people."""
        first, last = self.units[unit][0], self.units[unit][-1]
        more = f" to {self.inputs[last.input].path}" if last.input != first.input else ""
        return f"unit {unit} ({self.inputs[first.input].path} from {first.start:,}{more})"

    def save(self, folder: Path) -> None:
        """Write ``plan.json``."""
        content = {"plan_version": PLAN_VERSION, "digest": self.digest, **asdict(self)}
        with replacing(folder / PLAN) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read a folder's plan. Raises `InputError` if it is damaged or of another version."""
        path = folder / PLAN
        damaged = f"{path} is damaged or was edited; remove {folder} and shard again"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("plan_version") != PLAN_VERSION:
                raise InputError(f"{path} is of another version of this program; shard again")
            digest = content.pop("digest")
            plan = cls(
                content["asked"],
                [Input(**item) for item in content["inputs"]],
                [[Part(*part) for part in unit] for unit in content["units"]],
                {name: Source(**source) for name, source in content["mixture"].items()},
                content["versions"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{damaged} ({error})") from error
        if plan.digest != digest:
            raise InputError(damaged)
        return plan

    def check_same(self, folder: Path, found: list[Input], asked: dict[str, Any]) -> None:
        """Raise `InputError`, saying what, if inputs or settings are not those of the plan."""
        changed = [
            f"--{name.replace('_', '-')} was {self.asked.get(name)} and is {asked.get(name)}"
            for name in sorted({*asked, *self.asked})
            if asked.get(name) != self.asked.get(name)
        ]
        before = {item.path: item for item in self.inputs}
        now = {item.path: item for item in found}
        changed += [f"{path} is new" for path in now if path not in before]
        changed += [f"{path} is gone" for path in before if path not in now]
        changed += [
            f"{path} has changed ({name} was {old!r} and is {getattr(now[path], name)!r})"
            for path in now
            if path in before
            for name, old in asdict(before[path]).items()
            if getattr(now[path], name) != old
        ]
        if not changed and found != self.inputs:
            changed = ["the order of the inputs has changed"]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise InputError(
                f"{folder} was begun with something else: {'; '.join(changed[:5])}{more}; "
                "give another --output, or remove the folder"
            )


def cut(
    found: Sequence[Input],
    columns: Callable[[Input], Sequence[str]],
    text_unit: str,
    largest: int,
) -> list[list[Part]]:
    """The units of a corpus, in its order: depends on nothing but the corpus and `largest`, bytes.

    Files of lines are cut at line breaks, those of paragraphs at blank lines, tables between row
    groups. A compressed file cannot be cut. Small parts share a unit. `columns` says which fields
    of an input will be asked for. Raises `InputError` for an input that cannot be read.
    """
    if len(found) >= 1 << (63 - OFFSET_BITS):
        raise InputError(f"there are {len(found):,} inputs; join them into fewer files")
    total = sum(weight(item) for item in found)
    size = min(largest, max(MIN_UNIT, -(-total // SHARE)))
    units: list[list[Part]] = []
    room = 0
    for i, item in enumerate(found):
        with filesystem.faults_named(item.path):
            parts = _parts(i, item, columns(item), text_unit, size)
        for part in parts:
            if part.n_bytes > room or not units:
                units.append([])
                room = size
            units[-1].append(part)
            room -= part.n_bytes
    return units


def weight(item: Input) -> int:
    """About how many bytes of text an input holds."""
    is_dense = item.compression not in (None, filesystem.ZIPPED) or item.format == discovery.PARQUET
    return item.size * (EXPANSION if is_dense else 1)


def uncut(found: Sequence[Input], largest: int) -> list[Input]:
    """The inputs that make units of more than `largest` bytes, because they cannot be cut."""
    return [item for item in found if _is_whole(item) and weight(item) > largest]


def _is_whole(item: Input) -> bool:
    """Whether a file can be read from its beginning only."""
    return bool(item.compression) or item.format in (discovery.JSON, discovery.CSV, discovery.ARROW)


def _parts(i: int, item: Input, columns: Sequence[str], text_unit: str, size: int) -> list[Part]:
    match item.format:
        case discovery.PARQUET:
            return _row_groups(i, item, columns, size)
        case discovery.SAVED:
            n = tables.extent(item)
            bounds = [*range(0, n, max(1, n * size // max(item.size, 1))), n]
            return [Part(i, a, b, item.size * (b - a) // n) for a, b in pairwise(bounds)]
        case discovery.STREAMED:
            n = tables.extent(item)
            n_bytes = item.size // n or size
            return [Part(i, shard, shard + 1, n_bytes) for shard in range(n)]
    if item.format == discovery.ARROW:
        return [Part(i, 0, tables.extent(item), weight(item))]
    if _is_whole(item) or (item.format == discovery.TEXT and text_unit == "file"):
        return [Part(i, 0, item.size, weight(item))]
    n = -(-item.size // size)
    bounds = [0]
    for at in (item.size * j // n for j in range(1, n)):
        if at > bounds[-1]:  # not so in a line of several units
            bounds.append(_next_break(item, at))
    return [Part(i, a, b, b - a) for a, b in pairwise([*bounds, item.size]) if b > a]


def _next_break(item: Input, at: int) -> int:
    """The first place from `at` on where a line begins, of texts one after a blank line."""
    lines = Stream(item.path, None, at - 1, item.size).lines()
    next(lines)  # the end of the line before
    for line in lines:
        if item.format != discovery.TEXT:
            return line.offset
        if line.item is not None and (not line.item or line.item.isspace()):
            return min(line.offset + len(line.item) + 1, item.size)
    return item.size


def _row_groups(i: int, item: Input, columns: Sequence[str], size: int) -> list[Part]:
    parts: list[Part] = []
    with tables.parquet(item) as file:
        for g in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(g)
            chunks = (group.column(c) for c in range(group.num_columns))
            n_bytes = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.split(".")[0] in columns
            )
            if parts and parts[-1].n_bytes + n_bytes <= size:
                parts[-1] = parts[-1]._replace(end=g + 1, n_bytes=parts[-1].n_bytes + n_bytes)
            else:
                parts.append(Part(i, g, g + 1, n_bytes))
    return parts


def count(item: Input, part: Part, columns: Sequence[str], text_unit: str) -> int:
    """The number of records of a part; raises `InputError` where that would take a download."""
    if item.format == discovery.STREAMED:
        raise InputError(f"{item.path} has to be counted for --mix; download it and give its files")
    if item.format in tables.FORMATS:
        with filesystem.faults_named(item.path):
            return tables.n_rows(item, part.start, part.end)
    alone = [part._replace(input=0)]
    blocks = record_reader.blocks([item], alone, lambda _: columns, text_unit)
    return sum(len(block.records) for block in blocks)
