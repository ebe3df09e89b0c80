"""A trace of some steps, for TensorBoard, Perfetto or chrome://tracing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

FOLDER = "profile"
WARM = 2  # steps before: the first allocate, compile and fill caches


@contextmanager
def profiled(run: Path, n_steps: int, name: str) -> Iterator[Callable[[], None]]:
    """Within it, call what it yields after every step: `n_steps` of them, from the third on, are
    traced into ``profile/`` of the run's folder. With 0 nothing is."""
    if not n_steps:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=WARM - 1, warmup=1, active=n_steps, repeat=1),
        on_trace_ready=tensorboard_trace_handler(str(run / FOLDER), name),
        record_shapes=True,
    ) as profiler:
        yield profiler.step
