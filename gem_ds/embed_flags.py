"""The flags that launch/encode.py and launch/compress.py share: texts, and what reads them."""

import argparse
import sys

from gem_ds.errors import InputError


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--model", required=True, metavar="FOLDER", help="what launch/export.py wrote")
    add("--input", default="-", metavar="FILE", help="default: standard input")
    add(
        "--format",
        choices=["text", "jsonl", "csv", "parquet", "arrow"],
        help="of the input: a text a line, or the field of a record; by its ending",
    )
    add("--field", default="text", metavar="NAME", help="default: %(default)s")
    add("--id-field", metavar="NAME", help="default: the text's number, from 0")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="what the model computes in; a GPU the weights' own, a CPU float32",
    )
    add("--batch-tokens", type=int, default=8192, metavar="N", help="tokens at once")
    return found


def parse(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given on the command line; without anything, the help. Raises `InputError`."""
    if len(sys.argv) == 1:
        flags.print_help()
        sys.exit(2)
    args = flags.parse_args()
    if args.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {args.batch_tokens}, it must be at least 1")
    return args
