"""Serve a model over HTTP: OpenAI's embeddings, completions and chat completions.

    python launch/serve.py --model exports/gem

Then, with any client of that interface: base_url="http://127.0.0.1:8000/v1", model="gem".
"""

import os
import sys

from gem_ds.flags import parser_of
from gem_ds.serving.config import ServeConfig


def parse(arguments: list[str]) -> ServeConfig:
    """The flags are the fields of `ServeConfig`."""
    return ServeConfig(**vars(parser_of(ServeConfig, __doc__).parse_args(arguments)))


def main() -> None:
    config = parse(sys.argv[1:])
    from gem_ds.serving.serve import serve  # after the arguments, so that help comes at once

    serve(config)
    sys.stderr.flush()
    os._exit(0)  # taking down the interpreter takes seconds on a busy machine, and frees nothing
