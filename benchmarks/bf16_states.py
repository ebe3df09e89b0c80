"""Loss curves with master weights and AdamW's moments in bf16, beside those with both in fp32.

    python benchmarks/bf16_states.py [--steps 100] [--rates 3e-3 1e-4] [--json out.json]

The same small Llama from scratch, the same rows, all else in bf16: of the two DeepSpeed files only
the keys differ that `docs/performance.md` speaks of. Hardware that only emulates bf16 takes minutes
for it and computes the same.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from planned import ROOT, script
from trainer import prepare

from gem_ds import errors
from gem_ds.flags import Parser, whole

STATES = {"fp32": "zero3.json", "bf16": "llama8b_1x141gb.json"}
LAST = 20  # steps whose mean loss is compared
SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 16}


def files(folder: Path) -> None:
    """The model's configuration, and DeepSpeed files that compute in bf16 whatever the hardware."""
    llama = json.loads((ROOT / "examples" / "demo_llama.json").read_text())
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "llama.json").write_text(json.dumps({**llama, **SIZES, **heads}))
    for states, name in STATES.items():
        settings: dict[str, Any] = json.loads((ROOT / "ds_configs" / name).read_text())
        settings["bf16"]["enabled"] = True
        (folder / f"{states}.json").write_text(json.dumps(settings))


def curve(folder: Path, states: str, rate: str, steps: int) -> list[float]:
    """The next-token loss of every step."""
    run = folder / f"{states}-{rate}"
    how = "--recipe keep --kl-to-base 0 --alpha 0 --rows-per-step 2 --rows-per-micro-batch 2"
    given = ("--config", folder / "llama.json", "--shards", folder / "shards", "--output", run)
    told = (*given, "--deepspeed", folder / f"{states}.json", *how.split())
    script(
        "launch/train.py", *told, "--learning-rate", rate, "--steps", steps, "--warmup-steps", 10
    )
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss/ntp"] for line in lines]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=whole(1), default=100, help="of training")
    parser.add_argument("--rates", nargs="+", default=["3e-3", "1e-4"], help="learning rates")
    parser.add_argument("--json", type=Path, help="file for all losses")
    args = parser.parse_args()
    curves: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        files(folder)
        print(f"| learning rate | steps | {' | '.join(STATES)} |\n|---|---|---|---|", flush=True)
        for rate in args.rates:
            found = {states: curve(folder, states, rate, args.steps) for states in STATES}
            curves[rate] = found
            for last in sorted({*range(LAST, args.steps, LAST), args.steps}):
                means = (
                    statistics.mean(each[max(last - LAST, 0) : last]) for each in found.values()
                )
                cells = " | ".join(f"{mean:.3f}" for mean in means)
                print(f"| {rate} | {max(last - LAST, 0) + 1} to {last} | {cells} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "losses": curves}, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
