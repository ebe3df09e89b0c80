"""Raw text in, packed shards with summary tokens out: the command for `gem_ds.prepare`."""

import argparse
import sys
from dataclasses import MISSING, fields

from gem_ds import errors
from gem_ds.prepare import prepare
from gem_ds.prepare_config import PrepareConfig

USAGE = """\
shard.py packs a corpus into rows of tokens, with summary tokens, for training. It needs
  --input      files or folders: .jsonl, .json, .csv, .txt (also compressed), .parquet, .arrow
  --tokenizer  the model's tokenizer: a folder, or a name on the hub
  --output     a new folder
for example
  python data_prep/shard.py --input corpus.jsonl --tokenizer models/llama --output shards/
--help lists the other options."""


def parse(arguments: list[str]) -> PrepareConfig:
    """The flags are the fields of `PrepareConfig`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for field in fields(PrepareConfig):
        required = field.default is MISSING
        name = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(name, action="store_true", **field.metadata)
            continue
        parser.add_argument(
            name,
            required=required,
            default=None if required else field.default,
            type=str if required else type(field.default),
            nargs="+" if field.name == "input" else None,
            **field.metadata,
        )
    return PrepareConfig(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Shard what the command line names."""
    if len(sys.argv) == 1:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    prepare(parse(sys.argv[1:]))


if __name__ == "__main__":
    errors.run(main)
