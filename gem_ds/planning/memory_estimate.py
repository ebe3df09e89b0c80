"""What a rank's memory holds, in bytes: states, buffers, activations, and how they add up.

P elements in all, P' of them trained, W ranks, b bytes of a weight (2 in bf16, 4 in fp32), s of a
state (4; 2 with bf16 states), of DeepSpeed 0.19:

| | ZeRO-2 | ZeRO-3 |
|---|---|---|
| weights | b P | b P / W, and b P / g with hpZ in groups of g |
| whole for a while | - | b x (live + persistent elements), see `gathering`; nothing on one rank |
| gradients, added up | 4 P' / W, gone after a step | 4 P' / W |
| master weights | s P' / W | s P' / W |
| AdamW's moments | 2 s P' / W | 2 s P' / W |
| buckets | 3 b x bucket with overlap, else 2 | 2 b x bucket |
| the optimizer's step | 4 bytes an element of a group in fp32 runs | the same in all runs |

The optimizer's rows, with ``offload_optimizer``, and the weights' partition, with
``offload_param``, lie in the host's memory instead. Saving a checkpoint copies into the host's
memory, whether the copy is written in the background or not, what `checkpoints.writer` writes
of a rank:

| | ZeRO-2 | ZeRO-3 |
|---|---|---|
| master weights and moments | 3 s P' / W | the same |
| weights | b P, on rank 0 alone | of frozen ones b (P - P') / W |

DeepSpeed moves frozen weights off a GPU itself before they are copied: all ranks then hold
b (P - P') for a moment under ZeRO-2, and rank 0 a second copy of them; b (P - P') / W under ZeRO-3.

Activations are those of `activations`; three
moments compete, each beside what all layers keep: the head with its loss, the heaviest layer's
backward pass, and a base or text that is computed without a graph.
"""

from dataclasses import dataclass, field

from gem_ds.model.architecture import Shape
from gem_ds.model.flops import StreamCounts
from gem_ds.planning import activations
from gem_ds.planning.communication import Base, Traffic
from gem_ds.planning.zero3_trace import Trace
from gem_ds.planning.zero_settings import Zero

GIB = 2**30
CHUNK = 1024  # reference tokens at once, as `model.kl_reference.CHUNK`
KL = 5  # times 4 V a token of a chunk: logarithms of both models, and three of the divergence


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by what they are for."""

    states: dict[str, float] = field(default_factory=dict)  # always there
    computing: dict[str, float] = field(default_factory=dict)  # in the forward and backward passes
    moments: dict[str, float] = field(default_factory=dict)  # of which the largest counts
    stepping: dict[str, float] = field(default_factory=dict)  # while the optimizer steps
    host: dict[str, float] = field(default_factory=dict)  # in its machine's memory
    first_host: dict[str, float] = field(default_factory=dict)  # of rank 0 beside that

    @property
    def peak(self) -> float:
        """Bytes on the accelerator at the worst moment."""
        computing = sum(self.computing.values()) + max(self.moments.values(), default=0.0)
        return sum(self.states.values()) + max(computing, sum(self.stepping.values()))

    def of_machine(self, ranks: int) -> float:
        """Bytes in the memory of the machine that has rank 0, and so many ranks in all."""
        return ranks * sum(self.host.values()) + sum(self.first_host.values())


@dataclass(frozen=True)
class Work:
    """What a rank computes at once."""

    counts: StreamCounts
    anchors: int = 0
    negatives: int = 1  # kinds of texts that an anchor is told from: views, or anchors too
    checkpoint_every: int = 1  # of so many layers one is computed again; 0 for none


def of_rank(
    shape: Shape,
    trace: Trace,
    zero: Zero,
    ranks: int,
    work: Work,
    traffic: Traffic,
    base: Base | None = None,
) -> Memory:
    """The memory of one of `ranks` that computes `work`."""
    states, host = _states(shape, trace, zero, ranks, base)
    b = zero.weight_bytes
    largest = max(n for n, t in zip(trace.numels, trace.trained, strict=True) if t)
    trained = sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if t)
    buckets = (3 if zero.overlap else 2) if zero.stage == 2 else 2
    bucket = min(zero.reduce_bucket, trained) if zero.stage == 3 else zero.reduce_bucket
    computing = {
        "buckets of gradients": b * (zero.reduce_bucket + (buckets - 1) * bucket),
        "activations that all layers keep": _kept(shape, b, work),
        "contrastive loss": _contrastive(shape, work, ranks),
    }
    if zero.stage == 3 and (ranks > 1 or zero.offload_param):
        computing["weights that are whole for a while"] = b * (traffic.live + traffic.persistent)
    counts = work.counts
    if counts.first_tokens:
        whole = counts.first_tokens + counts.tokens
        kv = 2 * shape.kv_heads * shape.head_dim * b * whole
        computing["keys and values of texts"] = kv * shape.layers
    moments = _moments(shape, trace, b, work, base)
    stepping: dict[str, float] = {}
    if not zero.offload_optimizer:
        # AdamW's two groups, one of them the embedding and what is no matrix, come one by one.
        embedding = trace.numels[1] if trace.trained[1] else 0
        group = max(embedding, trained - embedding) / ranks
        copied = min(group, zero.sub_group + largest / ranks)
        both = zero.accumulation_bytes + (zero.state_bytes if zero.bf16_states else 0)
        if zero.stage == 2:
            both = 0 if zero.bf16 else 4
        stepping["gradients handed to the optimizer"] = max(both * copied, 8 * largest / ranks)
    saved, first_host = _saved(trace, zero, ranks)
    return Memory(states, computing, moments, stepping, host | saved, first_host)


def _states(
    shape: Shape, trace: Trace, zero: Zero, ranks: int, base: Base | None
) -> tuple[dict[str, float], dict[str, float]]:
    """On the accelerator, and in the host's memory."""
    b, s = zero.weight_bytes, zero.state_bytes
    p = float(sum(trace.numels))
    trained = float(sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if t))
    shared = ranks if zero.stage == 3 else 1
    weights = {"weights": b * p / shared}
    if zero.hpz > 1:
        weights["second copy of weights (hpZ)"] = b * p / min(zero.hpz, ranks)
    if base is not None:
        weights["the base's weights"] = b * base.shape.n_parameters / shared
    optimizer = {
        "gradients": zero.accumulation_bytes * trained / ranks,
        "master weights": s * trained / ranks,
        "optimizer's moments": 2 * s * trained / ranks,
    }
    if zero.offload_optimizer:
        optimizer["gradients for the optimizer"] = s * trained / ranks
    states: dict[str, float] = {}
    host: dict[str, float] = {}
    (host if zero.offload_param else states).update(weights)
    (host if zero.offload_optimizer else states).update(optimizer)
    return states, host


def _saved(trace: Trace, zero: Zero, ranks: int) -> tuple[dict[str, float], dict[str, float]]:
    """Host memory that saving a checkpoint takes: of each rank, and of rank 0 besides."""
    b = zero.weight_bytes
    trained = sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if t)
    frozen = b * (sum(trace.numels) - trained)
    optimizer = 3 * zero.state_bytes * trained / ranks
    if zero.stage == 2:
        first = {"weights in the copy of a checkpoint": float(b * sum(trace.numels) + frozen)}
        kept, moved = 0.0, float(frozen)
    else:
        first = {}
        kept = frozen / ranks
        moved = 0.0 if zero.offload_param else kept
    # What is moved is gone when the optimizer's states are copied.
    return {
        "copy of a checkpoint": kept + optimizer,
        "frozen weights on their way into it": max(moved - optimizer, 0.0),
    }, first


def _kept(shape: Shape, b: int, work: Work) -> float:
    """What all decoder layers keep, and the rotation that they share."""
    rotation = 2 * b * shape.head_dim
    return work.counts.tokens * (activations.kept(shape, b, work.checkpoint_every) + rotation)


def _behind_layers(shape: Shape, b: int, counts: StreamCounts) -> float:
    """What the last norm keeps, the hidden states of targets and, of a stream in two passes, the
    whole stream's: gone when the layers' backward passes begin."""
    whole = counts.first_tokens and counts.first_tokens + counts.tokens
    norm = (4 + 2 * b) * shape.hidden * counts.tokens
    return norm + b * shape.hidden * (counts.targets + 2 * whole)


def _contrastive(shape: Shape, work: Work, ranks: int) -> float:
    """Embeddings of all ranks in fp32, gathered, joined and normalised; cosines with masks."""
    everywhere = work.anchors * ranks
    embeddings = 2 * 4 * shape.hidden * everywhere * 4
    return embeddings + 4 * 4 * work.anchors * everywhere * work.negatives**2


def _moments(shape: Shape, trace: Trace, b: int, work: Work, base: Base | None) -> dict[str, float]:
    counts = work.counts
    whole = trace.trained[1]  # the embedding, parameter 1, and with it all
    head_gradient = b * shape.hidden * shape.vocab if whole else 0
    matrix = max(module.matrices for module in shape.layer())
    layer = activations.layer(shape, b) if work.checkpoint_every else 0.0
    # With the gradient of its output.
    of_layer = counts.tokens * (layer + activations.backward(shape, b) + b * shape.hidden)
    if counts.first_tokens:
        keys = counts.first_tokens * 2 * shape.kv_heads * shape.head_dim * b
        of_layer += 2 * keys  # with those of the texts beside its own, and their gradients
    head = _behind_layers(shape, b, counts) + head_gradient
    moments = {
        "head and loss": activations.logits(shape, b, counts.targets) + head,
        "backward pass of a layer": of_layer + b * matrix * whole,
    }
    if counts.first_tokens:
        moments["texts without a graph"] = counts.first_tokens * _passing(shape, b)
    if base is not None:
        moments["the base's forward pass"] = counts.reference * _passing(shape, b)
        chunk = min(CHUNK, max(counts.reference, 1))
        compared = (
            chunk * (KL * 4.0 + 2 * b) * shape.vocab + 2 * b * shape.hidden * counts.reference
        )
        moments["comparison with the base"] = compared + head
    return moments


def _passing(shape: Shape, b: int) -> float:
    """Bytes a token of a layer's forward pass that keeps nothing."""
    return b * (3 * shape.mlp + 2 * shape.hidden) + 4 * shape.hidden
