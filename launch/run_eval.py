"""Score a model on the packages the field uses, and compare scores."""

from gem_ds.commands.eval import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
