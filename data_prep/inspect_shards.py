"""Look at a finished folder of shards."""

from gem_ds.commands.inspect import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
