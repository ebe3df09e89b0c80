"""What a run needs before it starts: memory, traffic, time and cost, from a model's shape alone.

python launch/plan.py --model llama3.1-8b --gpus 16 --gpu h100 --row-length 8192
python launch/plan.py --model base --gpus 2 --gpu 4090 --tokens 1e9 --write my.json

Exit status 1 where it does not fit. docs/performance.md has what is counted.
"""

import json
import sys
from pathlib import Path

from gem_ds.errors import run
from gem_ds.plan_flags import fixed_of, job_of, parser


def main() -> None:
    flags = parser(__doc__ or "")
    args = flags.parse_args()
    from gem_ds import plan_files, plan_report
    from gem_ds.plan import best

    job, fixed = job_of(args), fixed_of(args)
    plan = best(job, fixed)
    if args.json:
        print(json.dumps(plan_files.as_dict(plan), indent=1))
    else:
        print(plan_report.text(plan, fixed))
    if plan.fits and args.write:
        plan_files.write_json(plan, Path(args.write))
    if plan.fits and args.write_sbatch:
        deepspeed = args.write or args.deepspeed or f"ds_configs/zero{plan.way.stage}.json"
        Path(args.write_sbatch).write_text(plan_files.sbatch(plan, deepspeed))
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    run(main)
