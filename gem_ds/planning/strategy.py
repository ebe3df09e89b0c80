"""What a plan is about and what it says: a job, a way to do it, and the figures of both.

Computing them is in `plan`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gem_ds import hardware
from gem_ds.model.architecture import Shape
from gem_ds.planning.communication import Traffic
from gem_ds.planning.expected_batch import Data, Views
from gem_ds.planning.memory_estimate import GIB, Memory
from gem_ds.planning.speed import Cluster, Speed
from gem_ds.training.config import TrainConfig

Offload = Literal["none", "optimizer", "all"]
OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "all")


@dataclass(frozen=True)
class Job:
    """What is trained, on what data, on which machines."""

    shape: Shape  # of the base
    cluster: Cluster
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    config: TrainConfig = field(default_factory=lambda: TrainConfig("", "", "", model=""))
    host_memory: float = 0.0  # GiB of a machine; 0 is not limited
    price: float = 0.0  # of a GPU for an hour

    @property
    def frozen_text(self) -> bool:
        return self.config.adapter == "summary"

    @property
    def tokens(self) -> int:
        """Tokens of rows, of the whole run."""
        return self.config.steps * self.config.rows_per_step * self.data.row_length


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
    def config(self) -> TrainConfig:
        """The flags of the run: the job's and the way's."""
        every = self.way.checkpoint_every
        return replace(
            self.job.config,
            rows_per_micro_batch=self.way.rows_per_micro_batch,
            gradient_checkpointing=every > 0,
            checkpoint_every=every or 1,
        )

    @property
    def gib(self) -> float:
        """GiB of the busiest moment."""
        return self.memory.peak / GIB

    @property
    def host_gib(self) -> float:
        """GiB of a machine's own memory."""
        return self.memory.of_machine(self.job.cluster.here) / GIB

    @property
    def room(self) -> float:
        """GiB of a GPU that can be filled."""
        return hardware.MEMORY * self.job.cluster.gpu.memory

    @property
    def fits_gpu(self) -> bool:
        return self.gib <= self.room

    @property
    def fits_host(self) -> bool:
        return not self.job.host_memory or self.host_gib <= self.job.host_memory

    @property
    def fits(self) -> bool:
        return self.fits_gpu and self.fits_host

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rows, of all GPUs."""
        return self.job.config.rows_per_step * self.job.data.row_length / self.speed.seconds

    @property
    def hours(self) -> float:
        return self.job.config.steps * self.speed.seconds / 3600

    @property
    def cost(self) -> float:
        return self.hours * self.job.price * self.job.cluster.gpus
