"""What a plan is about and what it says: a job, a way to do it, and the figures of both.

Computing them is the business of `plan`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from gem_ds import hardware
from gem_ds.communication import Traffic
from gem_ds.expected import Data, Views
from gem_ds.memory import GIB, Memory
from gem_ds.shapes import Shape
from gem_ds.speed import Cluster, Speed

Offload = Literal["none", "optimizer", "all"]
OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "all")


@dataclass(frozen=True)
class Job:
    """What is trained, on what data, on which machines."""

    shape: Shape  # of the base
    cluster: Cluster
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    adapter: str = "none"
    lora_rank: int = 0
    alpha: float = 0.5
    alpha_start: int = 0
    kl_to_base: float = 0.0
    negatives: str = "all"
    rows_per_step: int = 32
    host_memory: float = 0.0  # GiB of a machine; 0 is not limited
    tokens: float = 0.0  # of the whole run
    price: float = 0.0  # of a GPU for an hour

    @property
    def frozen_text(self) -> bool:
        return self.adapter == "summary"


@dataclass(frozen=True)
class Way:
    """How it is trained."""

    stage: int = 3
    offload: Offload = "none"
    rows_per_micro_batch: int = 1
    checkpoint_every: int = 1
    bf16_states: bool = False
    bf16: bool = True
    file: dict[str, Any] | None = None  # a DeepSpeed JSON that settles stage, offload and states


@dataclass(frozen=True)
class Plan:
    """What a way to do a job needs."""

    job: Job
    way: Way
    deepspeed: dict[str, Any]  # resolved
    memory: Memory
    traffic: Traffic
    speed: Speed
    micro_batches: int
    stream_tokens: int  # that the model computes for the rows of a micro-batch, views and all

    @property
    def gib(self) -> float:
        """GiB of the busiest moment."""
        return self.memory.peak / GIB

    @property
    def host_gib(self) -> float:
        """GiB of a machine's own memory."""
        cluster = self.job.cluster
        return self.memory.of_host * min(cluster.gpus, cluster.per_node) / GIB

    @property
    def fits(self) -> bool:
        on_gpu = self.gib <= hardware.MEMORY * self.job.cluster.gpu.memory
        return on_gpu and (not self.job.host_memory or self.host_gib <= self.job.host_memory)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rows, of all GPUs."""
        return self.job.rows_per_step * self.job.data.row_length / self.speed.seconds

    @property
    def hours(self) -> float:
        return self.job.tokens / self.tokens_per_second / 3600

    @property
    def cost(self) -> float:
        return self.hours * self.job.price * self.job.cluster.gpus
