"""The DeepSpeed files for real sizes and their plans: the table in docs/performance.md.

    python benchmarks/plan_table.py [--check]

Writes both, as ``launch/plan.py`` plans them. With ``--check`` nothing is written; exit status 1
where they are not what it would write. Needs no GPU and no weights.
"""

import json
import sys
from pathlib import Path

from gem_ds.errors import InputError, run
from gem_ds.flags import Parser
from gem_ds.planning import plan_flags, report
from gem_ds.planning.deepspeed_template import deepspeed_json
from gem_ds.planning.plan import best
from gem_ds.planning.strategy import Plan

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- plans: begin -->\n", "<!-- plans: end -->\n"
HEAD = """\
| file | recipe | GPUs | rows a micro-batch | GiB a GPU | GiB a host | tokens/s and GPU | MFU |
|---|---|---|---|---|---|---|---|
"""
# What each file is for, and what settles it.
FILES = {
    "llama1b_1x24gb": (
        "--model llama3.2-1b --gpu 4090 --gpus 1 --row-length 4096",
        "--zero-stage 3 --offload optimizer",
    ),
    "llama8b_1x141gb": (
        "--model llama3.1-8b --gpu h200 --gpus 1 --row-length 4096",
        "--zero-stage 3 --offload none --bf16-states",
    ),
    "llama8b_8x80gb": (
        "--model llama3.1-8b --gpu h100 --gpus 8 --row-length 8192",
        "--zero-stage 3 --offload none",
    ),
    "llama8b_4x8x80gb": (
        "--model llama3.1-8b --gpu h100 --gpus 32 --row-length 8192 --rows-per-step 128",
        "--zero-stage 3 --offload none",
    ),
    "llama8b_2x24gb_offload": (
        "--model llama3.1-8b --gpu 4090 --gpus 2 --row-length 2048",
        "--zero-stage 3 --offload all",
    ),
}
RECIPES = ("keep", "lossless")


def plan(flags: str) -> Plan:
    """The plan of a command line of ``launch/plan.py``."""
    args = plan_flags.parser("").parse_args(flags.split())
    found = best(plan_flags.job_of(args), plan_flags.fixed_of(args))
    if not found.fits:
        raise InputError(f"{flags}: {found.gib:.1f} GiB do not fit")
    return found


def file_of(name: str) -> str:
    """The text of a DeepSpeed file."""
    about, how = FILES[name]
    found = plan(f"{about} {how} --recipe {RECIPES[0]}")
    raw = deepspeed_json(found.way, found.job.cluster, found.job.shape.hidden)
    return json.dumps(raw, indent=2) + "\n"


def table() -> str:
    """Each file with each recipe, as Markdown."""
    rows = []
    for name, (about, _) in FILES.items():
        for recipe in RECIPES:
            flags = f"{about} --recipe {recipe} --deepspeed {ROOT}/ds_configs/{name}.json"
            cells = report.row(f"{name}.json", plan(flags)).split(" | ")
            cells.insert(1, recipe)
            rows.append(" | ".join(cells))
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []

    def settle(path: Path, text: str) -> None:
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(text)

    for name in FILES:
        settle(ROOT / "ds_configs" / f"{name}.json", file_of(name))
    before, rest = DOCS.read_text().split(BEGIN)
    settle(DOCS, before + BEGIN + table() + END + rest.split(END)[1])
    print(f"{'stale' if args.check else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(int(args.check and bool(stale)))


if __name__ == "__main__":
    run(main)
