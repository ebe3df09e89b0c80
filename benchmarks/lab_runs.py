"""The laboratory's runs: an entry is a run. What they are measured by is in `lab_measures`.

An entry has a name, the flags of data_prep/shard.py, launch/train.py and launch/export.py beside
those that all runs share, and how often it is done with other seeds.
"""

from dataclasses import dataclass

SHARD = "--row-length 512"
# 302 steps are once over the 9,672 rows of openstax; the rates are the paper's by default.
TRAIN = (
    "--steps 302 --rows-per-step 32 --rows-per-micro-batch 4 --gradient-checkpointing false "
    "--alpha-start 100 --save-every 100 --keep-last 1"
)


@dataclass(frozen=True)
class Run:
    """One recipe. Its flags come after those that all runs share, and so win."""

    name: str
    shard: str = ""
    train: str = ""
    export: str = ""
    seeds: int = 1
    ranks: int = 1  # processes that train
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Runs, and the flags that they share."""

    runs: list[Run]
    shard: str = SHARD
    train: str = TRAIN


ALL_CUT = "--kinds continuation=1"

TABLE = Table(
    [
        # Table 2: what the contrastive loss adds, and what the paper's alpha of 1 costs.
        Run("paper", train="--alpha 1", seeds=3, note="the paper's recipe"),
        Run("ntp only", train="--alpha 0", note="mixed next-token prediction alone"),
        Run("dropout", train="--alpha 0.5", note="next-token prediction kept on"),
        Run("continuation", train="--alpha 0.5 --positives continuation"),
        Run("continuation, alpha 1", train="--alpha 1 --positives continuation"),
        # At the paper's rate the contrastive loss hardly moves so small a model.
        Run(
            "continuation, rate 3e-4",
            train="--alpha 0.5 --positives continuation --learning-rate 3e-4 "
            "--contrastive-learning-rate 3e-4",
        ),
        # Table 3: the share p of plain rows.
        Run("p = 0", ALL_CUT, "--alpha 0", note="no plain texts"),
        Run("p = 0.4", "--kinds plain=0.4,continuation=0.6", "--alpha 0"),
        # Table 4: the number k of summary tokens.
        Run("k = 2", "--summary-tokens 2", "--alpha 1"),
        Run("k = 5", "--summary-tokens 5", "--alpha 1"),
        # What Appendix B needs to give texts back.
        Run("reconstruction", "--kinds plain=0.5,reconstruction=0.5", "--alpha 0"),
    ]
)
