"""Embed the texts of a file: a .npy of one vector a text, or a .parquet with their ids."""

from gem_ds.commands.encode import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
