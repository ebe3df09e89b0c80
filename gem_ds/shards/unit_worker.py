"""The work of one unit: its records in, its shards and its receipt out.

Any process on any machine can do it, given the folder: what comes out depends on the plan and the
unit's number alone. A unit is done when its receipt is there, which is written last.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from gem_ds.corpus import discovery, record_reader
from gem_ds.corpus.records import Record, Skip
from gem_ds.errors import InputError
from gem_ds.shards import dataset, documents, unit_context
from gem_ds.shards.documents import Document
from gem_ds.shards.manifest import FileEntry, Quarantine, Tally
from gem_ds.shards.packing import Packer
from gem_ds.shards.unit_context import Job, Text

WINDOW_TOKENS = 1 << 20  # packed together, which bounds memory: 4 MiB
WINDOW_TEXTS = 1 << 15

Progress = Callable[[int], None]


def write_unit(number: int, progress: Progress, *, folder: Path, digest: str) -> None:
    """Do a unit; `progress` is told of bytes as they are read.

    Raises `InputError` for what is wrong with its part of the corpus, or the disk; then nothing of
    it stands that looks finished.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker is one core
    try:
        (folder / unit_context.UNITS).mkdir(exist_ok=True)
        _Unit(unit_context.load(folder, digest), number, progress).write()
    except MemoryError as error:
        raise InputError(
            f"unit {number} ran out of memory; run the same command again with fewer --workers"
        ) from error
    except OSError as error:
        if unit_context.receipt(
            folder, unit_context.load(folder, digest).plan, number
        ):  # by another process
            return
        raise InputError(
            f"{folder} could not be written ({error.strerror or error}); it is not finished: "
            "make room and run the same command again"
        ) from error


class _Unit:
    """A unit under way."""

    def __init__(self, work: Job, number: int, progress: Progress) -> None:
        self.job = work
        self.number = number
        self.progress = progress
        self.parts = work.plan.units[number]
        self.epochs = range(work.plan.asked["epochs"])
        self.n_lines = [0] * len(self.parts)
        self.tally = Tally()
        self.quarantine = Quarantine(unit_context.skipped_path(work.folder, number))

    def write(self) -> None:
        """Shards, then the list of records left out, then the receipt."""
        with self.quarantine:
            entries = self._write_shards()
        assert sum(entry["n_documents"] for entry in entries) == self.tally.documents.total()
        unit_context.save_receipt(
            self.job.folder,
            self.number,
            {
                "plan": self.job.plan.digest,
                "unit": self.number,
                "files": entries,
                "counts": self.tally.counts(),
                "lines": self.n_lines,
                "n_listed": self.quarantine.n,
            },
        )

    def _write_shards(self) -> list[FileEntry]:
        seed, row_length = (self.job.plan.asked[name] for name in ("seed", "row_length"))
        packers = [Packer(row_length, f"{seed} {self.number} {epoch}") for epoch in self.epochs]
        names = [
            unit_context.shard_name(self.job.plan, self.number, epoch) for epoch in self.epochs
        ]
        with ExitStack() as stack:
            writers = [
                stack.enter_context(dataset.writing(self.job.folder / name, row_length, epoch))
                for epoch, name in enumerate(names)
            ]
            for window, is_last in self._windows():
                for epoch in self.epochs:
                    made = self._documents(window, epoch)
                    for row in packers[epoch].rows(made, is_last):
                        writers[epoch].add(row)
            self._check_inputs()
        return [writer.entry for writer in writers if writer.entry]

    def _check_inputs(self) -> None:
        for number in sorted({part.input for part in self.parts}):
            item = self.job.plan.inputs[number]
            if not discovery.unchanged(item):
                raise InputError(
                    f"{item.path} has changed since the plan was made; put it back as it was, or "
                    f"{dataset.AGAIN}"
                )

    def _windows(self) -> Iterator[tuple[list[Text], bool]]:
        """Texts in the groups that are packed together, and whether it is the last."""
        window: list[Text] = []
        size = 0
        for text in self._texts():
            window.append(text)
            size += text.n_tokens
            if len(window) >= WINDOW_TEXTS or size >= WINDOW_TOKENS:
                yield window, False
                window, size = [], 0
        yield window, True

    def _texts(self) -> Iterator[Text]:
        """The encoded texts of all records that are drawn."""
        plan = self.job.plan
        done = 0
        starts = [sum(part.n_bytes for part in self.parts[:i]) for i in range(len(self.parts))]
        for block in record_reader.blocks(
            plan.inputs, self.parts, self.job.fields, plan.asked["text_unit"]
        ):
            part = self.parts[block.part]
            drawn = [(record, self.job.draws(record, part)) for record in block.records]
            self.tally.records += sum(len(draws) for _, draws in drawn)
            recipe = self.job.recipes[plan.inputs[part.input].source]
            yield from unit_context.encode(drawn, recipe, self.job, self._skip)
            self.n_lines[block.part] = block.n_lines
            at = starts[block.part] + block.position
            self.progress(at - done)
            done = at

    def _documents(self, window: list[Text], epoch: int) -> list[Document]:
        """The documents of a window in one epoch."""
        found: list[Document] = []
        notes = self.tally.notes
        for text in window:
            for draw in text.draws:
                if draw.epoch != epoch:
                    continue
                try:
                    if isinstance(text.ids, list):
                        made = documents.of_pairs(text.ids, draw, text.recipe, notes)
                    else:
                        made = documents.of_text(text.ids, draw, text.recipe, notes)
                except Skip as reason:
                    self._skip(text.record, reason, 1)
                    continue
                self.tally.written += 1
                if text.has_negatives:
                    notes["records_whose_negatives_are_not_used"] += 1
                self.tally.documents.update(document.kind for document in made)
                found += made
        return found

    def _skip(self, record: Record, reason: Skip, times: int) -> None:
        """Leave out a record that is drawn so many times."""
        self.tally.skipped[str(reason)] += times
        self.quarantine.add(record, reason)
        if self.tally.is_hopeless():
            path = self.job.plan.inputs[self.parts[record.part].input].path
            raise InputError(
                f"{self.job.plan.where(self.number)}: none of the first {self.tally.records:,} "
                f"records could be read, the last ({path}, line {record.line}) for the reason: "
                f"{reason.told}; correct them or the options"
            )
