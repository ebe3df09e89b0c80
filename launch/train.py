"""Train a language model that embeds and generates."""

from gem_ds.commands.train import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
