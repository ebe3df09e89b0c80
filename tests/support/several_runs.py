"""Several runs in one start of several ranks.

Of a setting with ``"gradients": step`` one step is taken, and its metrics and whole gradients are
saved as they are just before the optimizer uses them, and how many graphs this process has compiled
until then; with ``"noise": size`` the weights get random numbers of this size added before. Other
settings are trained to their end. ``"chunk": n`` makes chunks of reference tokens so small that
there are several.

Ranks are forked from a process that has imported everything, which takes seconds; how runs start is
tested elsewhere.
"""

import contextlib
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from processes import free_port, until
from torch._dynamo.utils import counters

from gem_ds import distributed
from gem_ds.launcher import StopRequest
from gem_ds.model import kl_reference, language_model
from gem_ds.training import setup, trainer
from gem_ds.training.config import TrainConfig

SECONDS = 400.0
# Looking for GPUs loads CUDA's driver else, which does not survive a fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["gem_ds.training.trainer"])


def several_runs(out: Path, ranks: int, settings: dict[str, dict[str, Any]]) -> str:
    """Run each setting; its folder or file of gradients is in `out` by its name.

    Gives back what rank 0 printed.
    """
    out.mkdir(exist_ok=True)
    port = free_port()
    with tempfile.TemporaryDirectory() as logs:
        told = [(rank, ranks, port, Path(logs, str(rank)), settings, out) for rank in range(ranks)]
        processes = [_PROCESSES.Process(target=_be_rank, args=args) for args in told]
        for process in processes:
            process.start()
        try:
            until(lambda: _ended([process.exitcode for process in processes]), SECONDS)
        finally:  # others than one that failed would wait for it
            for process in processes:
                process.kill()
                process.join()
        said = [Path(logs, str(rank)).read_text() for rank in range(ranks)]
    assert [p.exitcode for p in processes] == [0] * ranks, "\n\n".join(x[-3000:] for x in said)
    return said[0]


def _ended(codes: list[int | None]) -> bool:
    return None not in codes or any(codes)


def _be_rank(
    rank: int, ranks: int, port: int, log: Path, settings: dict[str, Any], out: Path
) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name, flags in settings.items():
        _run(out, name, **flags)


def _run(
    out: Path,
    name: str,
    gradients: int | None = None,
    noise: float = 0.0,
    chunk: int = kl_reference.CHUNK,
    **flags: Any,
) -> None:
    kl_reference.CHUNK = chunk
    told = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    config = TrainConfig(**told, output=str(out / name))
    if gradients is None:
        trainer.train(config, StopRequest())
        return
    with contextlib.ExitStack() as stack:
        _record_step(setup.open_run(config, stack), gradients, noise, out / f"{name}.pt")


def _add_noise(module: torch.nn.Module, size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        with language_model.gathered(parameter):
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


def _record_step(run: setup.Run, step: int, noise: float, path: Path) -> None:
    _add_noise(run.engine.module, noise)
    grads = {}
    take_step = run.engine.step

    def record() -> None:
        if run.engine.is_gradient_accumulation_boundary():
            for name, parameter in run.engine.module.named_parameters():
                if parameter.requires_grad:
                    grads[name] = safe_get_full_grad(parameter).clone()
        take_step()

    run.engine.step = record
    values = trainer.train_step(run, step).values
    run.loader.close()
    if distributed.rank() == 0:
        graphs = counters["stats"]["unique_graphs"]
        torch.save({"values": values, "grads": grads, "graphs": graphs}, path)
