"""Serve a model over HTTP: OpenAI's embeddings, completions and chat completions."""

from gem_ds.commands.serve import main
from gem_ds.errors import run

if __name__ == "__main__":
    run(main)
