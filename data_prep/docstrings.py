"""Write the docstrings of this environment as a corpus: train.jsonl and dev.jsonl."""

from gem_ds.commands.docstrings import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
