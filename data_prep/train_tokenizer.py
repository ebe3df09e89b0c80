"""Train a byte-level BPE tokenizer on a corpus, for a model from scratch.

    python data_prep/train_tokenizer.py --input demo/corpus/train.jsonl \\
        --vocab-size 8192 --output demo/tokenizer
"""

import argparse
import sys
from pathlib import Path

from gem_ds import bpe
from gem_ds.errors import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files or folders"
    )
    parser.add_argument("--vocab-size", type=int, default=8192, metavar="TOKENS")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()
    tokenizer = bpe.train(bpe.texts_in(args.input), args.vocab_size)
    bpe.save(tokenizer, args.output)
    print(f"{args.output}: {tokenizer.get_vocab_size():,} tokens")


if __name__ == "__main__":
    run(main)
