"""Train a byte-level BPE tokenizer on a corpus, for a model from scratch.

    python data_prep/train_tokenizer.py --input demo/corpus/train.jsonl \\
        --vocab-size 8192 --output demo/tokenizer
"""

from pathlib import Path

from gem_ds.corpus import train_tokenizer
from gem_ds.flags import Parser, whole


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files or folders"
    )
    parser.add_argument(
        "--vocab-size",
        type=whole(257, 10**7),
        default=8192,
        metavar="TOKENS",
        help="of the tokenizer",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    tokenizer = train_tokenizer.train(train_tokenizer.texts_in(args.input), args.vocab_size)
    train_tokenizer.save(tokenizer, args.output)
    print(f"{args.output}: {tokenizer.get_vocab_size():,} tokens")
