"""The laboratory's runs: an entry is a run. What they are measured by is in `lab_measures`.

An entry has a name, the flags of data_prep/shard.py, launch/train.py and launch/export.py beside
those that all runs share, and how often it is done with other seeds.
"""

from dataclasses import dataclass

SHARD = "--row-length 512"
# 302 steps are once over the 9,672 rows of openstax. All rows of a step are one micro-batch, so
# that all its pairs are negatives of each other.
TRAIN = (
    "--steps 302 --rows-per-step 32 --rows-per-micro-batch 32 --gradient-checkpointing false "
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
PAPER = "--recipe paper"
THIRD = "--steps 100"  # of the rows that the deciding runs read
SHORT = f"{PAPER} {THIRD} --alpha-start 33"

TABLE = Table(
    [
        Run("lossless", PAIRS, seeds=3, note="the default recipe"),
        Run("paper", "--summary-tokens 1", PAPER, seeds=3, note="the paper's recipe"),
        # The recipes on a third of the rows, against each other and against what follows.
        Run("lossless, a third", PAIRS, THIRD),
        Run("keep, a third", PAIRS, f"--recipe keep {THIRD}"),
        Run("keep, merged", PAIRS, f"--recipe keep {THIRD}", "--merge-base 0.3"),
        Run("paper, a third", "--summary-tokens 1", SHORT),
        # The paper's rates hardly move so small a model.
        Run(
            "paper, rate 3e-4",
            "--summary-tokens 1",
            f"{SHORT} --learning-rate 3e-4 --contrastive-learning-rate 3e-4",
        ),
        # What the default is made of.
        Run("k = 1", f"{PAIRS} --summary-tokens 1", THIRD),
        Run("k = 4", f"{PAIRS} --summary-tokens 4", THIRD),
        Run("k = 16", f"{PAIRS} --summary-tokens 16", THIRD),
        Run("crops", train=f"{THIRD} --positives crops"),
        Run("continuation", "--kinds continuation=1", f"{THIRD} --positives continuation"),
        Run("dropout", "--kinds continuation=1", f"{THIRD} --positives dropout"),
        Run(
            "lossless, alpha 0.5",
            "--kinds pair=0.7,continuation=0.3 --context-field text --answer-field title",
            f"{THIRD} --alpha 0.5",
            note="suffixes are learned from the summary too",
        ),
        # Table 2 of the paper: what each loss adds.
        Run("paper, ntp only", "--summary-tokens 1", f"{SHORT} --alpha 0"),
        Run("paper, alpha 0.5", "--summary-tokens 1", f"{SHORT} --alpha 0.5"),
        # Table 3: the share p of plain rows.
        Run("paper, p = 0", "--summary-tokens 1 --kinds continuation=1", f"{SHORT} --alpha 0"),
        Run(
            "paper, p = 0.4",
            "--summary-tokens 1 --kinds plain=0.4,continuation=0.6",
            f"{SHORT} --alpha 0",
        ),
        # Table 4: the number k of summary tokens.
        Run("paper, k = 2", "--summary-tokens 2", SHORT),
        Run("paper, k = 5", "--summary-tokens 5", SHORT),
        # What Appendix B needs to give texts back.
        Run(
            "paper, reconstruction",
            "--kinds plain=0.5,reconstruction=0.5",
            f"{SHORT} --alpha 0 --learning-rate 1e-3",
        ),
    ]
)
