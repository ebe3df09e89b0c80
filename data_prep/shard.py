"""Raw text in, packed shards with summary tokens out."""

from gem_ds.commands.shard import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
