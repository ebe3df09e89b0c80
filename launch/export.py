"""Write a trained checkpoint as folders that stock libraries load."""

from gem_ds.commands.export import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
