"""Train a byte-level BPE tokenizer on a corpus, for a model from scratch."""

from gem_ds.commands.train_tokenizer import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
