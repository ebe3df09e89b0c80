"""``gem``: the commands of this project under one name."""

import importlib
import sys

from gem_ds import errors
from gem_ds.errors import InputError

# The modules of this room, and what each does.
COMMANDS = {
    "shard": "raw text in, packed shards with summary tokens out",
    "inspect": "look at a finished folder of shards",
    "plan": "what a run needs before it starts: memory, traffic, time and cost",
    "train": "train a language model that embeds and generates",
    "export": "write a checkpoint as folders that stock libraries load",
    "encode": "embed the texts of a file",
    "compress": "the memories of the texts of a file",
    "serve": "serve a model over HTTP",
    "eval": "score a model on the packages the field uses, and compare scores",
}
USAGE = "usage: gem COMMAND [FLAGS]\n\n" + "\n".join(
    [
        *(f"  {name:9} {what}" for name, what in COMMANDS.items()),
        "",
        "gem COMMAND --help tells a command's flags. On several GPUs or machines:",
        "  deepspeed $(command -v gem) train --deepspeed my.json --model BASE ...",
    ]
)


def main() -> None:
    """Do what the first word of the command line says."""
    # DeepSpeed's launcher puts its own flag before the words of a script.
    rank = [word for word in sys.argv[1:] if word.startswith("--local_rank")]
    words = [word for word in sys.argv[1:] if word not in rank]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    name, *rest = words
    if name not in COMMANDS:
        raise InputError(f"there is no command {name!r}; gem has {', '.join(COMMANDS)}")
    sys.argv = [f"gem {name}", *rest, *rank]
    importlib.import_module(f"gem_ds.commands.{name}").main()


def gem() -> None:
    """The console script."""
    errors.run(main)
