"""Named sets of flags for `config`: what a recipe says is the default of each flag it names.

| recipe | |
|---|---|
| paper | arXiv 2506.04344 as it stands: dropout positives, alpha 0 for 100 steps, then 1 |
| keep | all weights learn to embed, next-token prediction stays on: the flags' own defaults |
| lossless | the base is frozen; adapters at summary positions learn to embed |
"""

import argparse
from collections.abc import Sequence
from typing import Any

DEFAULT = "keep"
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
    "keep": {},
    "lossless": {"adapter": "summary"},
}


def named(arguments: Sequence[str]) -> str:
    """The recipe that a command line names, before its other flags are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", choices=RECIPES, default=DEFAULT)
    recipe: str = parser.parse_known_args(arguments)[0].recipe
    return recipe
