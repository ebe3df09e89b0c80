"""Serve a model over HTTP: OpenAI's embeddings, completions and chat completions.

    python launch/serve.py --model exports/gem

Then, with any client of that interface: base_url="http://127.0.0.1:8000/v1", model="gem".
"""

import argparse
import sys
from dataclasses import MISSING, fields

from gem_ds.errors import run
from gem_ds.serving_config import ServeConfig


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parse(arguments: list[str]) -> ServeConfig:
    """The flags are the fields of `ServeConfig`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    for field in fields(ServeConfig):
        required = field.default is MISSING
        several = field.default == ()
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            required=required,
            default=argparse.SUPPRESS if required or several else field.default,
            type=str if required or several else type(field.default),
            **field.metadata,
        )
    if not arguments:
        parser.print_help()
        sys.exit(2)
    return ServeConfig(**vars(parser.parse_args(arguments)))


def main() -> None:
    config = parse(sys.argv[1:])
    from gem_ds.serve import serve  # after the arguments, so that help comes at once

    serve(config)


if __name__ == "__main__":
    run(main)
