"""Named sets of flags for `config`: what a recipe says is the default of each flag it names.

| recipe | |
|---|---|
| paper | arXiv 2506.04344 as it stands: dropout positives, alpha 0 for 100 steps, then 1 |
| keep | all weights learn to embed; next-token prediction and the KL to the base stay on |
| lossless | the base is frozen; adapters at summary positions learn to embed |
"""

import argparse
from collections.abc import Sequence
from typing import Any

DEFAULT = "lossless"
FROM_SCRATCH = "keep"  # without a base there is nothing to freeze
_EMBED: dict[str, Any] = {"positives": "auto", "negatives": "all", "alpha_start": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "learning_rate": 1e-4,
        "contrastive_learning_rate": 1e-5,
        "alpha": 1.0,
        "alpha_start": 100,
        "alpha_ramp": 0,
        "positives": "dropout",
        "negatives": "views",
    },
    "keep": {**_EMBED, "alpha": 0.5, "kl_to_base": 2.0},
    "lossless": {**_EMBED, "alpha": 1.0, "adapter": "summary", "lora_rank": 32},
}


def defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """The defaults of a command line, before its other flags are parsed.

    They are those of the recipe that it names. A model from scratch (``--config``) has no base to
    be held to.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--recipe", "--config"):
        parser.add_argument(flag, nargs="?")  # what is wrong with it, the parser of all flags says
    found = parser.parse_known_args(arguments)[0]
    recipe = FROM_SCRATCH if found.config else DEFAULT
    if found.recipe in RECIPES:
        recipe = found.recipe
    without = {"kl_to_base"} if found.config else set()
    flags = {flag: value for flag, value in RECIPES[recipe].items() if flag not in without}
    return {"recipe": recipe, **flags}
