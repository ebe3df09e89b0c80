"""Run by test_engine under DeepSpeed's launcher: one training step for each of several settings.

    gradients.py <settings.json> <out folder>

Saves each setting's metrics and whole gradients, read just before the optimizer would use them.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad

from gem_ds import dist, engine
from gem_ds.config import TrainConfig


def main() -> None:
    settings, out = json.loads(Path(sys.argv[-2]).read_text()), Path(sys.argv[-1])
    for name, flags in settings.items():
        run = engine.open_run(TrainConfig(**flags))
        grads = {}
        take_step = run.engine.step

        def record(run=run, grads=grads, take_step=take_step):
            if run.engine.is_gradient_accumulation_boundary():
                for parameter_name, parameter in run.engine.module.named_parameters():
                    grads[parameter_name] = safe_get_full_grad(parameter).clone()
            take_step()

        run.engine.step = record
        values, _ = engine.train_step(run, flags["alpha_start"])
        run.loader.close()
        if dist.rank() == 0:
            torch.save({"values": values, "grads": grads}, out / f"{name}.pt")


main()
