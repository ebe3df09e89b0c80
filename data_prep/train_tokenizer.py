"""Train a byte-level BPE tokenizer on the `text` of JSONL lines, for a model from scratch.

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
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="JSONL")
    parser.add_argument("--vocab-size", type=int, default=8192, metavar="TOKENS")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()
    texts = (text for path in args.input for text in bpe.texts_in(path))
    tokenizer = bpe.train(texts, args.vocab_size)
    bpe.save(tokenizer, args.output)
    print(f"{args.output}: {tokenizer.get_vocab_size():,} tokens")


if __name__ == "__main__":
    run(main)
