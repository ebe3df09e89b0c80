"""Compress the texts of a file: their summary tokens' keys and values, by the texts' ids.

python launch/compress.py --model exports/gem --input texts.txt --output memories

Writes a folder of files of up to 4,096 memories, or one file if --output ends in .safetensors.
gem_ds.memory_files.read gives what is in a file. Interrupted, the same command goes on and does
what is missing; torchrun shares it among processes.
"""

import argparse
import sys

from gem_ds.errors import InputError, run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="what launch/export.py wrote"
    )
    parser.add_argument("--input", default="-", metavar="FILE", help="default: standard input")
    parser.add_argument("--output", required=True, metavar="PATH", help="folder, or .safetensors")
    parser.add_argument(
        "--format",
        choices=["text", "jsonl", "parquet"],
        help="of the input: a text a line, or the field of a row; by its ending",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--id-field", metavar="NAME", help="default: the text's number, from 0")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="what the model computes in; a GPU the weights' own, a CPU float32",
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=8192, metavar="N", help="tokens at once"
    )
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()
    if args.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {args.batch_tokens}, it must be at least 1")

    from gem_ds import embed_files  # after the arguments, so that help comes at once
    from gem_ds.text_files import TextFile

    embed_files.compress(
        args.model,
        TextFile.find(args.input, args.format, args.field, args.id_field),
        args.output,
        args.dtype,
        args.batch_tokens,
    )


if __name__ == "__main__":
    run(main)
