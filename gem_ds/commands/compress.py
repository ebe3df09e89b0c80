"""Compress the texts of a file: their summary tokens' keys and values, by the texts' ids.

python launch/compress.py --model exports/gem --input texts.txt --output memories

Writes a folder of files of up to 4,096 memories, or one file if --output ends in .safetensors.
gem_ds.memory_files.read gives what is in a file. Interrupted, the same command goes on
and does what is missing; torchrun shares it among processes.
"""

from gem_ds.inference import text_files


def main() -> None:
    flags = text_files.parser(__doc__)
    flags.add_argument("--output", required=True, metavar="PATH", help="folder, or .safetensors")
    args = flags.parse_args()

    from gem_ds.inference import embed_files  # after the arguments, so that help comes at once
    from gem_ds.inference.text_files import TextFile

    embed_files.compress(
        args.model,
        TextFile.find(args.input, args.format, args.field, args.id_field),
        args.output,
        args.dtype,
        args.batch_tokens,
        verify=args.verify,
    )
