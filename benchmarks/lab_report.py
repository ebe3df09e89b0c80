"""The laboratory's results as Markdown."""

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from lab_measures import LENGTHS, MAX_TOKENS, N_RECONSTRUCTED
from lab_runs import Run, Table

from gem_ds.evaluation.evaluate import table

Result = dict[str, Any]  # as `lab` writes it

HEADER = [
    *("STS-B dev", "retrieval", "ppl openstax", "to base", "ppl books", "to base"),
    "same logits",
    *(f"back {n}" for n in LENGTHS),
]


def text(
    command: Sequence[str], runs: Table, base: Result, results: dict[str, list[Result]]
) -> str:
    """The whole report. `results` has those of a run, one a seed, by its name."""
    shown = [run for run in runs.runs if results.get(run.name)]
    missing = "; ".join(run.name for run in runs.runs if run not in shown)
    note = f"\nNot run yet as they are defined now: {missing}.\n" if missing else ""
    language = base["figures"]["mean"]
    without = [
        [name, *_cells([figures], language)] for name, figures in sorted(base["figures"].items())
    ]
    trained = [
        [
            run.name,
            *_cells([result["figures"] for result in results[run.name]], language),
            _spread([result["training_seconds"] for result in results[run.name]], 0),
            f"{statistics.mean(result['training_gib'] for result in results[run.name]):.1f}",
            str(len(results[run.name])),
        ]
        for run in shown
    ]
    made = [_made(run, results[run.name]) for run in shown]
    return f"""# Results

Written by

```
python {shlex.join(command)}
```

which goes on where it was interrupted and does anew what changed in `benchmarks/lab_runs.py`.
Every text is cut to {MAX_TOKENS} tokens and computed in float32.

- **STS-B dev**: Spearman x 100 of cosines.
- **retrieval**: of a text by its title among {base["n_sections"]} held-out sections, nDCG@10 x 100.
- **ppl**: perplexity of held-out plain text, and how far above the base's.
- **same logits**: the share, in %, of plain texts' tokens at which the exported model's logits are
  the base's, bit for bit, both in stock Transformers.
- **back n**: the share, in %, of tokens that the model gives back greedily from the summary tokens'
  keys and values alone, of {N_RECONSTRUCTED} held-out texts cut to n tokens.

Where a run has several seeds: mean ± standard deviation. A seed changes the order of rows and what
is random in training; the shards are the same.

## Without training

{table(["embedding", *HEADER], without)}

Of the base's last hidden states: their mean, their mean weighted by position, the last one, the
mean over the second of two copies of the text (echo, without an instruction), and one at a summary
token whose row is the mean of the embedding's. {base["hardware"]}, {base["date"]}.

## Trained

{table(["run", *HEADER, "seconds", "GiB", "seeds"], trained)}

Seconds are those of the training steps, GiB the most memory of a process that trains. All runs:
`data_prep/shard.py {runs.shard}`, `launch/train.py {runs.train}`, and beside these

{table(["run", "shard.py", "train.py", "export.py", "processes", "note", "on"], made)}
{note}"""


def _cells(seeds: Sequence[dict[str, float]], language: dict[str, float]) -> list[str]:
    """A row's figures, over its seeds."""

    def of(name: str, digits: int = 2, scale: float = 1.0) -> str:
        found = [scale * figures[name] for figures in seeds if name in figures]
        return _spread(found, digits)

    cells = [of("sts"), of("retrieval")]
    for name in ("perplexity openstax", "perplexity books"):
        ratio = statistics.mean(figures[name] for figures in seeds) / language[name]
        cells += [of(name), f"{100 * (ratio - 1):+.1f} %"]
    cells.append(of("same logits", 0, 100))
    return cells + [of(f"given back {n}", 1, 100) for n in LENGTHS]


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _made(run: Run, results: Sequence[Result]) -> list[str]:
    flags = [f"`{part}`" if part else "" for part in (run.shard, run.train, run.export)]
    where = sorted({f"{x['hardware']}, {x['precision']}, {x['date']}" for x in results})
    return [run.name, *flags, str(run.ranks), run.note, "; ".join(where)]
