"""Accelerators as their makers state them, and what of it is assumed to be reached.

Peaks are dense bf16, FLOP/s; bandwidths in bytes a second. Between the GPUs of a machine it is that
of NVLink in one direction (PCIe where there is none), between machines that of one network card of
the usual kind for each GPU. All of it can be overridden by flags of ``launch/plan.py``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One accelerator, and the machine around it."""

    name: str
    memory: float  # GiB
    peak: float  # FLOP/s
    hbm: float
    inside: float  # to the GPUs of the same machine
    outside: float  # to other machines
    host: float  # to and from the host's memory
    host_memory: float = 60e9  # the host's memory bandwidth, for each GPU


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 80, 989e12, 3.35e12, 450e9, 50e9, 55e9),
        Gpu("h200", 141, 989e12, 4.8e12, 450e9, 50e9, 55e9),
        Gpu("a100", 80, 312e12, 2.0e12, 300e9, 25e9, 25e9),
        Gpu("4090", 24, 165e12, 1.0e12, 25e9, 3e9, 25e9),
    )
}

# Shares of what is stated that Transformers' code is taken to reach: chosen so that predictions lie
# near what others published of 7B and 8B models on H100s, see `tests/planning/test_speed.py`.
MATRICES = 0.6
ATTENTION = 0.35
ELEMENTWISE = 0.4  # of the memory's bandwidth
NETWORK = 0.75
MEMORY = 0.92  # of a GPU's memory, that tensors can fill: the rest is CUDA's and fragments
