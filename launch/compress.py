"""Compress the texts of a file: their summary tokens' keys and values, by the texts' ids."""

from gem_ds.commands.compress import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
