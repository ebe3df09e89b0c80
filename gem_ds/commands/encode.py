"""Embed the texts of a file: a .npy of one vector a text, or a .parquet with their ids.

python launch/encode.py --model exports/gem --input texts.txt --output vectors.npy
echo "a text" | python launch/encode.py --model exports/gem > vectors.npy

Interrupted, the same command goes on and does what is missing. Under torchrun each process does
its share: torchrun --nproc-per-node 8 launch/encode.py …
"""

import sys

from gem_ds.errors import InputError
from gem_ds.flags import whole
from gem_ds.inference import text_files


def main() -> None:
    flags = text_files.parser(__doc__)
    add = flags.add_argument
    add("--output", default="-", metavar="FILE", help="default: standard output")
    add("--prompt", metavar="TEXT", help="put before each text")
    add("--precision", choices=["float32", "int8", "binary"], default="float32", help="of vectors")
    add("--truncate-dim", type=whole(1), metavar="N", help="first dimensions kept of a vector; all")
    add("--max-length", type=whole(1), metavar="N", help="tokens kept of a text; all that fit")
    add(
        "--long-texts",
        choices=["cut", "windows"],
        default="cut",
        help="cut what is longer (default), or take the mean over windows",
    )
    args = flags.parse_args()
    if args.output == "-" and sys.stdout.isatty():
        raise InputError("the vectors are binary; name a file with --output or redirect to one")

    from gem_ds.inference import embed_files  # after the arguments, so that help comes at once
    from gem_ds.inference.text_files import TextFile

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
        verify=args.verify,
    )
