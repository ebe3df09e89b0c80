"""The laboratory's runs: an entry is a run. What they are measured by is in `lab_measures`.

An entry has a name, the flags of data_prep/shard.py, launch/train.py and launch/export.py beside
those that all runs share, and how often it is done with other seeds.
"""

from dataclasses import dataclass

SHARD = "--row-length 512"
# 100 steps are 3,200 rows, a third of openstax. All rows of a step are one micro-batch, so that all
# its pairs are negatives of each other.
TRAIN = (
    "--steps 100 --rows-per-step 32 --rows-per-micro-batch 32 --gradient-checkpointing false "
    "--save-every 20 --keep-last 1"
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


# A section of a textbook and its title are a pair.
PAIRS = "--kinds plain=0.2,pair=0.8 --context-field text --answer-field title"
PAPER = "--recipe paper --alpha-start 33"  # of 100 steps, as the paper's 100 of a longer run
ALL_ROWS = "--steps 302"

TABLE = Table(
    [
        Run("lossless", PAIRS, seeds=3, note="the default recipe"),
        Run("paper", "--summary-tokens 1", PAPER, seeds=3, note="the paper's recipe"),
        Run("keep", PAIRS, "--recipe keep"),
        Run("keep, merged", PAIRS, "--recipe keep", "--merge-base 0.3"),
        # The paper's rates hardly move so small a model.
        Run(
            "paper, rate 3e-4",
            "--summary-tokens 1",
            f"{PAPER} --learning-rate 3e-4 --contrastive-learning-rate 3e-4",
        ),
        # What the default is made of.
        Run("k = 1", f"{PAIRS} --summary-tokens 1"),
        Run("k = 4", f"{PAIRS} --summary-tokens 4"),
        Run("k = 16", f"{PAIRS} --summary-tokens 16"),
        Run("crops", train="--positives crops"),
        Run("continuation", "--kinds continuation=1", "--positives continuation"),
        Run("dropout", "--kinds continuation=1", "--positives dropout"),
        Run(
            "lossless, alpha 0.5",
            "--kinds pair=0.7,continuation=0.3 --context-field text --answer-field title",
            "--alpha 0.5",
            note="suffixes are learned from the summary too",
        ),
        # Table 2 of the paper: what each loss adds.
        Run("paper, ntp only", "--summary-tokens 1", f"{PAPER} --alpha 0"),
        Run("paper, alpha 0.5", "--summary-tokens 1", f"{PAPER} --alpha 0.5"),
        # Table 3: the share p of plain rows.
        Run("paper, p = 0", "--summary-tokens 1 --kinds continuation=1", f"{PAPER} --alpha 0"),
        Run(
            "paper, p = 0.4",
            "--summary-tokens 1 --kinds plain=0.4,continuation=0.6",
            f"{PAPER} --alpha 0",
        ),
        # Table 4: the number k of summary tokens.
        Run("paper, k = 2", "--summary-tokens 2", PAPER),
        Run("paper, k = 5", "--summary-tokens 5", PAPER),
        # What Appendix B needs to give texts back.
        Run(
            "paper, reconstruction",
            "--kinds plain=0.5,reconstruction=0.5",
            f"{PAPER} --alpha 0 --learning-rate 1e-3",
        ),
        # Once over all 9,672 rows.
        Run("lossless, all rows", PAIRS, ALL_ROWS),
        Run("paper, all rows", "--summary-tokens 1", f"--recipe paper {ALL_ROWS}"),
    ]
)
