"""Run by tests under DeepSpeed's launcher: several runs in one launch, which starts slowly.

    several_runs.py <settings.json> <out folder>

Of a setting with ``"gradients": step`` one step is taken, and its metrics and whole gradients are
saved as they are just before the optimizer uses them, and how many graphs this process has compiled
until then; with ``"noise": size`` the weights get random numbers of this size added before. Other
settings are trained to their end. ``"chunk": n`` makes chunks of reference tokens so small that
there are several.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from torch._dynamo.utils import counters

from gem_ds import build, dist, engine, model, reference
from gem_ds.config import TrainConfig
from gem_ds.stopping import StopRequest


def add_noise(module: torch.nn.Module, size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        with model.gathered(parameter):
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


def one_step(config: TrainConfig, step: int, noise: float, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        record_step(build.open_run(config, stack), step, noise, path)


def record_step(run: build.Run, step: int, noise: float, path: Path) -> None:
    add_noise(run.engine.module, noise)
    grads = {}
    take_step = run.engine.step

    def record():
        if run.engine.is_gradient_accumulation_boundary():
            for name, parameter in run.engine.module.named_parameters():
                if parameter.requires_grad:
                    grads[name] = safe_get_full_grad(parameter).clone()
        take_step()

    run.engine.step = record
    values = engine.train_step(run, step).values
    run.loader.close()
    if dist.rank() == 0:
        graphs = counters["stats"]["unique_graphs"]
        torch.save({"values": values, "grads": grads, "graphs": graphs}, path)


def main() -> None:
    settings, out = json.loads(Path(sys.argv[-2]).read_text()), Path(sys.argv[-1])
    for name, flags in settings.items():
        reference.CHUNK = flags.pop("chunk", reference.CHUNK)
        step, noise = flags.pop("gradients", None), flags.pop("noise", 0.0)
        config = TrainConfig(**flags, output=str(out / name))
        if step is None:
            engine.train(config, StopRequest())
        else:
            one_step(config, step, noise, out / f"{name}.pt")


main()
