"""Train: ``deepspeed launch/train.py --deepspeed ds_configs/zero3.json --model … --shards …``."""

import sys

from gem_ds.launcher import listen

USAGE = """\
Train a language model that embeds and generates.
It needs shards, a base model and a DeepSpeed JSON:

  python data_prep/shard.py --input corpus.jsonl --tokenizer BASE --output shards
  deepspeed launch/train.py --deepspeed ds_configs/zero3.json \\
      --model BASE --shards shards --output runs/first

BASE is a hub name or a folder. All flags: python launch/train.py --help"""


def main() -> None:
    if not [flag for flag in sys.argv[1:] if not flag.startswith("--local_rank")]:
        sys.exit(USAGE)
    request = listen()  # before what takes time
    from gem_ds.flags import parser_of
    from gem_ds.launcher import join
    from gem_ds.training.config import TrainConfig
    from gem_ds.training.recipes import defaults

    join()  # first, so that one rank alone reports a wrong flag
    parser = parser_of(TrainConfig, "Train a language model that embeds and generates.")
    parser.set_defaults(**defaults(sys.argv[1:]))
    config = TrainConfig(**vars(parser.parse_args()))
    from gem_ds.training.trainer import train

    train(config, request)
