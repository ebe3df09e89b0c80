"""Embed the texts of a file: a .npy of one vector a text, or a .parquet with their ids.

python launch/encode.py --model exports/gem --input texts.txt --output vectors.npy
echo "a text" | python launch/encode.py --model exports/gem > vectors.npy

Interrupted, the same command goes on and does what is missing. Under torchrun each process does
its share: torchrun --nproc-per-node 8 launch/encode.py …
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
    parser.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--format",
        choices=["text", "jsonl", "parquet"],
        help="of the input: a text a line, or the field of a row; by its ending",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--id-field", metavar="NAME", help="default: the text's number, from 0")
    parser.add_argument("--prompt", metavar="TEXT", help="put before each text")
    parser.add_argument(
        "--precision", choices=["float32", "int8", "binary"], default="float32", help="of vectors"
    )
    parser.add_argument(
        "--truncate-dim", type=int, metavar="N", help="first dimensions kept of a vector; all"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens kept of a text; all that fit"
    )
    parser.add_argument(
        "--long-texts",
        choices=["cut", "windows"],
        default="cut",
        help="cut what is longer (default), or take the mean over windows",
    )
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
    if args.output == "-" and sys.stdout.isatty():
        raise InputError("the vectors are binary; name a file with --output or redirect to one")
    if args.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {args.batch_tokens}, it must be at least 1")

    from gem_ds import embed_files  # after the arguments, so that help comes at once
    from gem_ds.text_files import TextFile

    embed_files.embed(
        args.model,
        TextFile.find(args.input, args.format, args.field, args.id_field),
        args.output,
        embed_files.Settings(
            dtype=args.dtype,
            max_length=args.max_length,
            prompt=args.prompt,
            truncate_dim=args.truncate_dim,
            precision=args.precision,
            long_texts=args.long_texts,
        ),
        args.batch_tokens,
    )


if __name__ == "__main__":
    run(main)
