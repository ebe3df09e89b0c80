"""How a corpus is cut into units of work, and the plan that freezes it.

A unit is a list of parts of at most some 256 MB in all, done by one worker at a stretch: its shards
depend on the plan and its number alone. ``plan.json`` holds what every unit needs to know, so that
any process on any machine can do any unit, and a run that goes on finds that nothing has changed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from gem_ds import inputs, sources
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.inputs import Input
from gem_ds.mixture import Source
from gem_ds.records import OFFSET_BITS
from gem_ds.sources import Part, Reader

PLAN = "plan.json"
PLAN_VERSION = 1
MIN_UNIT = 1 << 23  # bytes of text; smaller ones fill their rows less well
SHARE = 32  # a small corpus is cut into as many units, so that several workers have something to do
EXPANSION = 4  # bytes of text in a byte of compressed corpus


@dataclass(frozen=True)
class Plan:
    """What a folder of shards is made from and how.

    asked: all settings that the shards depend on. inputs, units: see `inputs.Input` and
    `sources.Part`. mixture: the sources' `mixture.Source`. versions: of the libraries whose change
    may change a shard.
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
            f"{path} has changed (it had {before[path].size:,} bytes and has {now[path].size:,})"
            for path in now
            if path in before and now[path] != before[path]
        ]
        if not changed and found != self.inputs:
            changed = ["the order of the inputs has changed"]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise InputError(
                f"{folder} was begun with something else: {'; '.join(changed[:5])}{more}; "
                "give another --output, or remove the folder"
            )


def cut(found: Sequence[Input], columns: Any, text_unit: str, largest: int) -> list[list[Part]]:
    """The units of a corpus, in its order: depends on nothing but the corpus and `largest`, bytes.

    Files of lines are cut at line breaks, those of paragraphs at blank lines, tables between row
    groups. A compressed file cannot be cut. Small parts share a unit.
    """
    if len(found) >= 1 << (63 - OFFSET_BITS):
        raise InputError(f"there are {len(found):,} inputs; join them into fewer files")
    total = sum(weight(item) for item in found)
    size = min(largest, max(MIN_UNIT, -(-total // SHARE)))
    units: list[list[Part]] = []
    room = 0
    for i, item in enumerate(found):
        for part in _parts(i, item, columns(item), text_unit, size):
            if part.n_bytes > room or not units:
                units.append([])
                room = size
            units[-1].append(part)
            room -= part.n_bytes
    return units


def weight(item: Input) -> int:
    """About how many bytes of text an input holds."""
    return item.size * (EXPANSION if item.compression or item.format == inputs.PARQUET else 1)


def uncut(found: Sequence[Input], largest: int) -> list[Input]:
    """The compressed inputs that make units of more than `largest` bytes."""
    return [item for item in found if item.compression and weight(item) > largest]


def _parts(i: int, item: Input, columns: Sequence[str], text_unit: str, size: int) -> list[Part]:
    if item.format == inputs.PARQUET:
        return _row_groups(i, item, columns, size)
    if item.format == inputs.SAVED:
        n = len(sources.saved_dataset(item))
        rows = max(1, n * size // max(item.size, 1))
        bounds = [*range(0, n, rows), n]
        return [Part(i, a, b, item.size * (b - a) // n) for a, b in pairwise(bounds)]
    if item.format == inputs.STREAMED:
        return [Part(i, n, n + 1, size) for n in range(sources.streamed_dataset(item).num_shards)]
    if item.compression or (item.format == inputs.TEXT and text_unit == "file"):
        return [Part(i, 0, item.size, weight(item))]
    n = max(1, -(-item.size // size))
    bounds = [0, *(_next_break(i, item, item.size * j // n) for j in range(1, n)), item.size]
    return [Part(i, a, b, b - a) for a, b in pairwise(bounds) if b > a]


def _next_break(i: int, item: Input, at: int) -> int:
    """The first place from `at` on where a line begins, of texts one after a blank line."""
    reader = Reader(item, Part(i, at - 1, item.size, 0))
    lines = reader.lines()
    with sources.faults_named(item, reader):
        next(lines)  # the end of the line before
        for line in lines:
            if item.format != inputs.TEXT:
                return line.offset
            if line.item is not None and (not line.item or line.item.isspace()):
                return min(line.offset + len(line.item) + 1, item.size)
    return item.size


def _row_groups(i: int, item: Input, columns: Sequence[str], size: int) -> list[Part]:
    with sources.parquet(item) as file:
        metadata = file.metadata
        weights = []
        for g in range(metadata.num_row_groups):
            group = metadata.row_group(g)
            chunks = (group.column(c) for c in range(group.num_columns))
            weights.append(
                sum(
                    chunk.total_uncompressed_size
                    for chunk in chunks
                    if chunk.path_in_schema.split(".")[0] in columns
                )
            )
    parts: list[Part] = []
    for g, n_bytes in enumerate(weights):
        if parts and parts[-1].n_bytes + n_bytes <= size:
            parts[-1] = parts[-1]._replace(end=g + 1, n_bytes=parts[-1].n_bytes + n_bytes)
        else:
            parts.append(Part(i, g, g + 1, n_bytes))
    return parts


def count(item: Input, part: Part, text_unit: str) -> int:
    """The number of records of a part; raises `InputError` where that would take a download."""
    if item.format == inputs.STREAMED:
        raise InputError(f"{item.path} has to be counted for --mix; download it and give its files")
    if item.format == inputs.SAVED:
        return part.end - part.start
    if item.format == inputs.PARQUET:
        with sources.parquet(item) as file:
            groups = range(part.start, part.end)
            return sum(file.metadata.row_group(g).num_rows for g in groups)
    alone = [part._replace(input=0)]
    return sum(len(b.records) for b in sources.blocks([item], alone, lambda _: [], text_unit))
