"""Looking at a finished folder of shards: statistics, their picture, and a row as text.

`verify` checks that everything is as it was written.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gem_ds import layout
from gem_ds.corpus.records import place_of
from gem_ds.corpus.tokenization import Ids, Vocabulary, summary_ids
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.layout import END, START, SUFFIX, SUMMARY
from gem_ds.shards import verify
from gem_ds.shards.dataset import Row, Shards
from gem_ds.shards.documents import KINDS
from gem_ds.shards.manifest import Manifest

FULL = 0.99  # of a row's length: emptier rows are counted
# All but newline and tab: a text must not act on the terminal.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _counter() -> Counter[int]:
    return Counter()


@dataclass
class Statistics:
    """What rows hold: how many there are of each length, so that memory does not grow with them.

    Of rows: their tokens and their documents. Of documents: the tokens of plain ones, of those with
    summary tokens (gem) and of their prefixes and suffixes, bos and eos included. `cuts` are what
    prefixes are of prefix and suffix, in thousandths.
    """

    row_tokens: Counter[int] = field(default_factory=_counter)
    row_documents: Counter[int] = field(default_factory=_counter)
    plain: Counter[int] = field(default_factory=_counter)
    gem: Counter[int] = field(default_factory=_counter)
    prefixes: Counter[int] = field(default_factory=_counter)
    suffixes: Counter[int] = field(default_factory=_counter)
    cuts: Counter[int] = field(default_factory=_counter)

    def add(self, row: Row) -> None:
        """Count a row."""
        self.row_tokens[len(row.input_ids)] += 1
        self.row_documents[len(row.bounds)] += 1
        lengths_D = row.bounds[:, END] - row.bounds[:, START]
        gem_D = layout.is_gem(row.bounds)
        prefix_G = (row.bounds[:, SUMMARY] - row.bounds[:, START])[gem_D]
        suffix_G = (row.bounds[:, END] - row.bounds[:, SUFFIX])[gem_D]
        self.plain.update(lengths_D[~gem_D].tolist())
        self.gem.update(lengths_D[gem_D].tolist())
        self.prefixes.update(prefix_G.tolist())
        self.suffixes.update(suffix_G.tolist())
        self.cuts.update(np.rint(1000 * prefix_G / (prefix_G + suffix_G)).astype(int).tolist())

    @property
    def documents(self) -> Counter[int]:
        """The tokens of all documents."""
        return self.plain + self.gem


def read(shards: Shards, n_rows: int) -> Statistics:
    """Statistics of `n_rows` rows, drawn evenly."""
    statistics = Statistics()
    rows = tqdm(
        range(n_rows),
        unit="row",
        desc="reading",
        leave=False,
        delay=2,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    for i in rows:
        statistics.add(shards.read(i * len(shards) // n_rows))
    return statistics


def quantile(values: Counter[int], percent: int) -> int:
    """The least value that so many percent of all do not exceed: 0 the least, 100 the greatest."""
    ordered = sorted(values)
    ends = np.cumsum([values[value] for value in ordered])
    return ordered[int(np.searchsorted(100 * ends, percent * ends[-1]))]


def mean(values: Counter[int]) -> float:
    """Of all values."""
    return sum(value * n for value, n in values.items()) / values.total()


def report(manifest: Manifest, statistics: Statistics) -> str:
    """What the manifest says, and a table of the statistics."""
    return "\n".join([*_counts(manifest), "", *_lengths(manifest, statistics)])


def _counts(manifest: Manifest) -> Iterator[str]:
    counts = manifest.counts
    skipped = counts["skipped"]
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts["documents"].items() if n)
    size = sum(file["bytes"] for file in manifest.files) / 1e6
    yield (
        f"records in  {counts['documents_in']:,} = {counts['records_written']:,} written + "
        f"{sum(skipped.values()):,} skipped"
    )
    for reason, n in skipped.items():
        yield f"            {n:,} {reason}"
    yield f"documents   {manifest.n_documents:,}: {kinds}"
    for name, n in counts["notes"].items():
        yield f"            {n:,} {name.replace('_', ' ')}"
    yield f"tokens      {manifest.n_tokens:,}, of which {manifest.n_targets:,} are targets"
    yield f"rows        {manifest.n_rows:,} of {manifest.row_length:,} tokens"
    yield f"files       {len(manifest.files):,}, {size:,.1f} MB"
    rows = ", ".join(f"{n:,}" for n in manifest.epoch_rows)
    yield f"epochs      {manifest.epochs:,}, of {rows} rows"


def _lengths(manifest: Manifest, statistics: Statistics) -> Iterator[str]:
    n_rows = statistics.row_tokens.total()
    some = "all" if n_rows == manifest.n_rows else f"{n_rows:,} of the"
    yield f"in {some} {manifest.n_rows:,} rows" + (", drawn evenly" if some != "all" else "")
    percents = {"min": 0, "median": 50, "90%": 90, "99%": 99, "max": 100}
    yield " " * 26 + "".join(f"{title:>10}" for title in ("number", "mean", *percents))
    rows = {
        "tokens of documents": statistics.documents,
        "  plain": statistics.plain,
        "  with summary tokens": statistics.gem,
        "    prefix": statistics.prefixes,
        "    suffix": statistics.suffixes,
        "tokens of rows": statistics.row_tokens,
        "documents of rows": statistics.row_documents,
    }
    for name, values in rows.items():
        if values:
            cells = [f"{values.total():,}", f"{mean(values):,.1f}"]
            cells += [f"{quantile(values, percent):,}" for percent in percents.values()]
            yield f"{name:26}" + "".join(f"{cell:>10}" for cell in cells)
    tokens, length = statistics.row_tokens, manifest.row_length
    under = sum(n for value, n in tokens.items() if value < FULL * length) / n_rows
    yield (
        f"rows are {mean(tokens) / length:.2%} filled on average, {min(tokens) / length:.2%} at "
        f"least; {under:.2%} of them less than {FULL:.0%}"
    )
    if statistics.cuts:
        deciles = " ".join(f"{quantile(statistics.cuts, p) / 1000:.0%}" for p in range(10, 100, 10))
        yield f"prefix / (prefix + suffix), deciles: {deciles}"


def draw(statistics: Statistics, row_length: int, path: Path) -> None:
    """Four histograms as a PNG of 1000 x 700 pixels."""
    from matplotlib.figure import Figure  # takes a second to load

    documents, rows = statistics.documents, statistics.row_documents
    by_length = np.geomspace(min(documents), max(documents) + 1, 60)
    per_row = np.linspace(min(rows), max(rows) + 1, 50)
    panels: list[tuple[str, Counter[int], float, Any]] = [
        ("tokens in a document", documents, 1, np.unique(by_length.astype(int))),
        ("prefix, % of prefix + suffix", statistics.cuts, 0.1, np.linspace(0, 100, 51)),
        ("tokens in a row, % of its length", statistics.row_tokens, 100 / row_length, 50),
        ("documents in a row", rows, 1, np.unique(per_row.astype(int)) - 0.5),
    ]
    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    for axes, (label, values, scale, bins) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        axes.hist([scale * value for value in values], bins, weights=list(values.values()))
        axes.set_xlabel(label)
        axes.set_ylabel(f"how many of {values.total():,}")
    figure.axes[0].set_xscale("log")
    figure.axes[2].set_yscale("log")  # nearly all rows are full
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def describe(shards: Shards, row_id: int, chars: int | None = None) -> Iterator[str]:
    """A row for people: a line on each document, then its text, control tokens in ⟦⟧.

    Of each plain text, prefix and suffix only the first `chars` characters. Raises `InputError` if
    there is no such row, or not the tokenizer that wrote it.
    """
    if not 0 <= row_id < len(shards):
        raise InputError(f"{shards.folder} has rows 0 to {len(shards) - 1}; there is no {row_id}")
    vocab = verify.tokenizer(shards)
    names = _control_names(vocab)
    ids_T, bounds_D4, records_D, kinds_D = shards.read(row_id)
    yield (
        f"row {row_id:,} of {len(shards):,}: {len(bounds_D4):,} documents, {len(ids_T):,} of "
        f"{shards.manifest.row_length:,} tokens"
    )
    for d, (start, summary, suffix, end) in enumerate(bounds_D4.tolist()):
        number, offset = place_of(int(records_D[d]))
        name = shards.manifest.config["input"][number]["name"]
        kind = KINDS[kinds_D[d]]
        parts = {"": ids_T[start:end]}
        if suffix > summary:
            kind += f" ({summary - start:,} prefix + {suffix - summary:,} summary + "
            kind += f"{end - suffix:,} suffix)"
            parts = {"--- prefix": ids_T[start:summary], "--- summary": ids_T[summary:suffix]}
            parts["--- suffix"] = ids_T[suffix:end]
        yield ""
        yield (
            f"=== document {d}: {kind}, {end - start:,} tokens, record at {offset:,} of input "
            f"{number} ({name})"
        )
        for title, part in parts.items():
            text = _text(part, names, vocab)
            more = len(text) - len(text[:chars])
            yield from [title] if title else []
            yield text[:chars] + (f"… ({more:,} more characters)" if more else "")


def _control_names(vocab: Vocabulary) -> dict[int, str]:
    """What control tokens are shown as, by id."""
    tokens = vocab.backend.get_added_tokens_decoder()
    names = {i: str(token.content) for i, token in tokens.items() if token.special}
    names |= {token: f"summary {i}" for i, token in enumerate(summary_ids(vocab))}
    roles = {"bos": vocab.bos_token_id, "eos": vocab.eos_token_id}
    for token in set(roles.values()) - {None}:
        names[token] = "/".join(role for role in roles if roles[role] == token)
    return names


def _text(ids: Ids, names: dict[int, str], vocab: Vocabulary) -> str:
    """Decoded, control tokens in ⟦⟧, what would act on a terminal escaped."""
    pieces: list[str] = []
    for is_control, group in groupby(ids.tolist(), names.__contains__):
        if is_control:
            pieces += [f"⟦{names[token]}⟧" for token in group]
        else:
            text = vocab.backend.decode(list(group), skip_special_tokens=False)
            pieces.append(UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text))
    return "".join(pieces)
