"""What a run needs before it starts: memory, traffic, time and cost, from a model's shape alone."""

from gem_ds.commands.plan import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
