"""Run by tests under DeepSpeed's launcher: several runs in one launch, which starts slowly.

    several_runs.py <settings.json> <out folder>

Of a setting with ``"gradients": step`` one step is taken, and its metrics and whole gradients are
saved as they are just before the optimizer uses them. Other settings are trained to their end.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad

from gem_ds import build, dist, engine
from gem_ds.config import TrainConfig


def one_step(config: TrainConfig, step: int, path: Path) -> None:
    run = build.open_run(config)
    grads = {}
    take_step = run.engine.step

    def record():
        if run.engine.is_gradient_accumulation_boundary():
            for name, parameter in run.engine.module.named_parameters():
                if parameter.requires_grad:
                    grads[name] = safe_get_full_grad(parameter).clone()
        take_step()

    run.engine.step = record
    values, _ = engine.train_step(run, step)
    run.loader.close()
    if dist.rank() == 0:
        torch.save({"values": values, "grads": grads}, path)


def main() -> None:
    settings, out = json.loads(Path(sys.argv[-2]).read_text()), Path(sys.argv[-1])
    for name, flags in settings.items():
        step = flags.pop("gradients", None)
        config = TrainConfig(**flags, output=str(out / name))
        if step is None:
            engine.train(config)
        else:
            one_step(config, step, out / f"{name}.pt")


main()
