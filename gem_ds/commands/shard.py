"""Raw text in, packed shards with summary tokens out."""

import sys

from gem_ds.flags import parser_of
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.prepare import prepare

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
    return PrepareConfig(**vars(parser_of(PrepareConfig, __doc__).parse_args(arguments)))


def main() -> None:
    """Shard what the command line names."""
    if len(sys.argv) == 1:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    prepare(parse(sys.argv[1:]))
