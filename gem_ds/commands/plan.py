"""What a run needs before it starts: memory, traffic, time and cost, from a model's shape alone.

python launch/plan.py --model llama3.1-8b --gpus 16 --gpu h100 --row-length 8192
python launch/plan.py --model base --gpus 2 --gpu 4090 --tokens 1e9 --write my.json

Exit status 1 where it does not fit. docs/performance.md has what is counted.
"""

import json
import sys
from pathlib import Path

from gem_ds.planning.plan_flags import parser, plan_of


def main() -> None:
    flags = parser(__doc__ or "")
    args = flags.parse_args()
    from gem_ds.planning import deepspeed_template, report

    plan, write = plan_of(args), args.write
    if args.write_sbatch and not args.deepspeed:  # its run needs one
        write = write or f"{args.write_sbatch}.json"
    deepspeed = write or args.deepspeed or "JSON"
    if args.json:
        print(json.dumps(deepspeed_template.as_dict(plan, deepspeed), indent=1))
    else:
        print(report.text(plan, args, deepspeed))
    if plan.fits and write:
        deepspeed_template.write_json(plan, Path(write))
    if plan.fits and args.write_sbatch:
        deepspeed_template.write_sbatch(plan, deepspeed, Path(args.write_sbatch))
    written = [name for name in (write, args.write_sbatch) if name]
    if written:
        done = "wrote" if plan.fits else "does not fit, so not written:"
        print(done, " and ".join(written), file=sys.stderr)
    sys.exit(0 if plan.fits else 1)
