"""Embed texts, one a line, as a .npy of one float32 unit vector a line.

python launch/encode.py --model exports/gem --input texts.txt --output vectors.npy
echo "a text" | python launch/encode.py --model exports/gem > vectors.npy
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
        "--batch-tokens", type=int, default=8192, metavar="N", help="tokens at once"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens kept of a text; all that fit"
    )
    parser.add_argument(
        "--truncate-dim", type=int, metavar="N", help="first dimensions kept of a vector; all"
    )
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()
    if args.output == "-" and sys.stdout.isatty():
        raise InputError("the vectors are binary; name a file with --output or redirect to one")
    if args.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {args.batch_tokens}, it must be at least 1")

    from gem_ds import encode  # after the arguments, so that help comes at once

    texts = encode.read_lines(args.input)
    encoder = encode.Encoder.from_pretrained(args.model)
    vectors = encoder.encode(
        texts,
        args.batch_tokens,
        args.max_length,
        show_progress=sys.stderr.isatty(),
        truncate_dim=args.truncate_dim,
    )
    encode.save(vectors, args.output)


if __name__ == "__main__":
    run(main)
