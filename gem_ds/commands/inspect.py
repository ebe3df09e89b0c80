"""Look at a finished folder of shards: statistics, a row, its mask, whether all is as written."""

import argparse
import io
import signal
import sys
from pathlib import Path

from gem_ds import process_pool
from gem_ds.flags import Parser, whole
from gem_ds.shards import inspect, verify
from gem_ds.shards.dataset import Shards

USAGE = """\
inspect_shards.py looks at a folder of shards that shard.py has finished. It needs
  the folder
for example
  python data_prep/inspect_shards.py shards/                   statistics
  python data_prep/inspect_shards.py shards/ --png shards.png  and their histograms
  python data_prep/inspect_shards.py shards/ --row 0           a row as text
  python data_prep/inspect_shards.py shards/ --row 0 --mask mask.png  who attends whom in it
  python data_prep/inspect_shards.py shards/ --verify          is all as it was written?
--help lists the other options."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(description="Look at a finished folder of shards.")
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="the folder")
    parser.add_argument(
        "--rows", type=whole(1), metavar="N", help="statistics of N rows, drawn evenly"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the statistics, too")
    parser.add_argument("--row", type=whole(0), metavar="N", help="print row N instead, as text")
    parser.add_argument("--chars", type=whole(1), metavar="N", help="with --row: most of each text")
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="with --row: draw who attends whom instead"
    )
    parser.add_argument(
        "--summary-attention",
        choices=("isolated", "causal"),
        default="isolated",
        help="with --mask (default: %(default)s)",
    )
    parser.add_argument("--verify", action="store_true", help="check every file and row instead")
    parser.add_argument(
        "--workers",
        type=whole(1, 10**4),
        default=process_pool.cores(),
        metavar="N",
        help="with --verify: processes that read (default: one a core)",
    )
    args = parser.parse_args(arguments)
    of_statistics = args.rows is not None or args.png is not None
    if of_statistics + (args.row is not None) + args.verify > 1:
        parser.error("give one of --verify, --row, and --rows or --png")
    for flag, value in (("--chars", args.chars), ("--mask", args.mask)):
        if value is not None and args.row is None:
            parser.error(f"{flag} is of --row; give that too")
    if args.mask is None and "summary_attention" in parser.given:
        parser.error("--summary-attention is of --mask; give that too")
    return args


def main() -> None:
    """Look at what the command line names."""
    if len(sys.argv) == 1:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    args = parse(sys.argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal has every character
        sys.stdout.reconfigure(errors="replace")
    if args.verify:
        print(verify.verify(args.shards, args.workers))
        return
    shards = Shards(args.shards)
    if args.mask is not None:
        from gem_ds.shards import mask_image  # which loads torch

        print(mask_image.draw(shards, args.row, args.mask, args.summary_attention))
        return
    if args.row is not None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that | head is no error
        for line in inspect.describe(shards, args.row, args.chars):
            print(line)
        return
    statistics = inspect.read(shards, min(args.rows or len(shards), len(shards)))
    print(inspect.report(shards.manifest, statistics))
    if args.png:
        inspect.draw(statistics, shards.manifest.row_length, args.png)
        print(f"{args.png}: histograms of these rows")
