"""Write the docstrings of this environment as a corpus: train.jsonl and dev.jsonl.

    python data_prep/docstrings.py --output demo/corpus

Lines have `id`, `title` (the first sentence), `text` and `rest` (the text without its title);
entries of a title alone are left out. Those of dev.jsonl are held out to measure perplexity, and
retrieval of a rest by its title.
"""

import os
from pathlib import Path

from gem_ds.corpus import docstrings
from gem_ds.flags import Parser, whole


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--held-out", type=whole(0), default=500, metavar="ENTRIES", help="for dev.jsonl"
    )
    parser.add_argument(
        "--workers", type=whole(1, 10**4), default=min(4, os.cpu_count() or 1), help="processes"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    entries = docstrings.collect(docstrings.source_files(), args.workers)
    train, dev = docstrings.split(entries, args.held_out)
    train = [entry for entry in train if entry.text]
    n_train = docstrings.write(train, args.output / "train.jsonl")
    n_dev = docstrings.write(dev, args.output / "dev.jsonl")
    print(
        f"{args.output}/train.jsonl: {len(train):,} entries, {n_train / 1e6:.1f} MB of text\n"
        f"{args.output}/dev.jsonl: {len(dev):,} entries, {n_dev / 1e6:.1f} MB of text"
    )
