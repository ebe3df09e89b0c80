"""How long a step takes, predicted: operations, bytes and bandwidths, and shares that are reached.

    a micro-batch = matrices / (0.6 peak) + attention / (0.35 peak) + elementwise bytes / (0.4 HBM)
    traffic       = the slower of the network inside a machine and the one between machines
    a step        = micro-batches x max(computing, traffic) + what follows them

With ``overlap_comm`` false the two are added up. What follows is AdamW, which reads and writes its
states once (30 bytes an element in fp32), ZeRO-2's gather of the weights, and with offload the
transfers and the host's AdamW. Elementwise bytes are those of norms, rotations, activations and
losses, which Transformers computes operation by operation: each tensor that a layer keeps is taken
as moved three times in the forward pass and four in the backward pass.

Nothing of this was measured on a GPU here. `tests/planning/test_speed.py` holds it to what others
published.

MFU = model operations / (seconds x peak): attention by the pairs that the mask has, no
recomputation (`flops`).
"""

from dataclasses import dataclass, replace

from gem_ds import hardware
from gem_ds.hardware import Gpu
from gem_ds.model import flops
from gem_ds.model.architecture import Shape
from gem_ds.model.flops import Flops, StreamCounts, Trained
from gem_ds.planning import activations
from gem_ds.planning.communication import Traffic, Volume
from gem_ds.planning.zero3_trace import Trace
from gem_ds.planning.zero_settings import Zero

MOVED_FORWARD, MOVED_BACKWARD, MOVED_LOGITS = 3.0, 4.0, 32.0
ADAMW = 30.0  # bytes read and written a trained element


@dataclass(frozen=True)
class Cluster:
    """GPUs and the machines that they are in."""

    gpu: Gpu
    gpus: int
    per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    @property
    def here(self) -> int:
        """GPUs of a machine that are used."""
        return min(self.gpus, self.per_node)

    def seconds(self, volume: Volume) -> float:
        """Of a volume that all ranks take part in."""
        inside = volume.wire(self.here) / self.gpu.inside
        outside = volume.wire(self.nodes) / (self.gpu.outside * self.here)
        return max(inside, outside) / hardware.NETWORK


@dataclass(frozen=True)
class Speed:
    """Of one optimizer step, in seconds, and what follows from it."""

    computing: float  # of all micro-batches
    traffic: float  # of all micro-batches, overlapped or not
    after: float
    seconds: float
    mfu: float
    model_flops: float  # of all ranks
    hardware_flops: float


def predict(
    shape: Shape,
    trace: Trace,
    zero: Zero,
    cluster: Cluster,
    counts: StreamCounts,
    micro_batches: int,
    traffic: Traffic,
    trained: Trained,
    lora_rank: int,
    checkpoint_every: int,
) -> Speed:
    """The speed of a step of `micro_batches` with `counts` each on every rank."""
    again = activations.recomputed(shape.layers, checkpoint_every) / shape.layers
    how = trained, lora_rank, again
    all_of_it = flops.of_stream(shape, counts, *how)
    none = replace(counts, pairs=0, first_pairs=0, reference_pairs=0)
    matrices = flops.of_stream(shape, none, *how)
    gpu = cluster.gpu
    seconds = _seconds(gpu, matrices, all_of_it)
    seconds += _moved(shape, zero.weight_bytes, counts, again) / (gpu.hbm * hardware.ELEMENTWISE)
    computing = micro_batches * seconds
    network = cluster.seconds(traffic.contrastive) + cluster.seconds(traffic.gradients)
    weights = cluster.seconds(traffic.weights)
    if zero.stage == 3:
        network += weights
    groups = replace(cluster, gpus=min(cluster.gpus, zero.hpz), per_node=cluster.per_node)
    network += groups.seconds(traffic.weights_inside)
    elements, changed = sum(trace.numels), _trained(trace)
    part = changed / cluster.gpus
    after = weights if zero.stage == 2 else 0.0
    if zero.offload_param:
        fetched = traffic.gathers_each * micro_batches * zero.weight_bytes * elements
        network += fetched / cluster.gpus / gpu.host
    if zero.offload_optimizer:
        network += micro_batches * 2 * zero.accumulation_bytes * part / gpu.host
        after += ADAMW * part / gpu.host_memory + zero.weight_bytes * part / gpu.host
    else:
        after += ADAMW * part / (gpu.hbm * hardware.ELEMENTWISE)
    together = max(computing, network) if zero.overlap else computing + network
    step = together + after
    return Speed(
        computing,
        network,
        after,
        step,
        micro_batches * all_of_it.model / (step * gpu.peak),
        micro_batches * cluster.gpus * all_of_it.model,
        micro_batches * cluster.gpus * all_of_it.hardware,
    )


def _seconds(gpu: Gpu, matrices: Flops, all_of_it: Flops) -> float:
    attention = all_of_it.hardware - matrices.hardware
    at = matrices.hardware / hardware.MATRICES + attention / hardware.ATTENTION
    return at / gpu.peak


def _moved(shape: Shape, b: int, counts: StreamCounts, again: float) -> float:
    """Bytes that elementwise operations read and write in a micro-batch."""
    layer = shape.layers * activations.layer(shape, b)
    times = MOVED_FORWARD * (1 + again) + MOVED_BACKWARD
    forward_only = counts.first_tokens + counts.reference
    of_layers = layer * (times * counts.tokens + MOVED_FORWARD * forward_only)
    return of_layers + MOVED_LOGITS * shape.vocab * (counts.targets + 2 * counts.reference)


def _trained(trace: Trace) -> int:
    return sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if t)
