"""In what order a step visits the modules of a model, and what ZeRO-3 gathers and releases then.

ZeRO-3 gathers a module's parameters when it is visited, in the forward pass, in a recomputation and
in the backward pass, and at each visit of whatever module it gathers ahead. `Trace` is that order,
of `model.language_model.TrainingModel.forward`, of Transformers' Llama and its kin, and of
autograd. DeepSpeed learns it in the first steps and follows it from then on: it gathers what a
module lacks, then what the next ones lack up to ``stage3_prefetch_bucket_size`` elements, and
releases a module's parameters after it unless they are used again within
``stage3_max_reuse_distance`` elements (`PartitionedParameterCoordinator`). So a large model gathers
every layer twice a micro-batch, before its forward and before its recomputation, which keeps it for
the backward pass; a model below the distance gathers each parameter once; and small ones, up to
``stage3_param_persistence_threshold``, once a step.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gem_ds.model.architecture import Module, Shape
from gem_ds.planning.zero_settings import Zero


class Visit(NamedTuple):
    """A module at work, with the numbers of its own parameters."""

    parameters: tuple[int, ...]
    released: bool = True  # whether it ends before the next one begins, and DeepSpeed learns of it
    dropped: frozenset[int] = frozenset()  # parameters that are released at its end, whatever comes


NOTHING = Visit(())  # a module without parameters


class Node(NamedTuple):
    """A module and those that it calls, in order."""

    parameters: tuple[int, ...]
    children: tuple["Node", ...] = ()
    is_adapter: bool = False

    def forward(self, adapters: bool = True) -> Iterator[Visit]:
        yield Visit(self.parameters)
        for child in self.children:
            if adapters or not child.is_adapter:
                yield from child.forward(adapters)

    def backward(self) -> Iterator[Visit]:
        yield Visit(self.parameters)
        for child in reversed(self.children):
            yield from child.backward()


@dataclass(frozen=True)
class Trained:
    """What of a model is trained. Without an adapter it is all of it."""

    adapter: str = "none"  # none, summary or everywhere
    lora_rank: int = 0
    summary_tokens: int = 0


class Trace:
    """The parameters of a model and the visits of one micro-batch.

    `numels` are the elements of each parameter, `trained` whether it is.
    """

    def __init__(
        self, shape: Shape, trained: Trained, checkpoint_every: int = 1, chunks: int = 0
    ) -> None:
        """Of every `checkpoint_every` layers the first repeats its forward pass in the backward
        pass; 0 repeats none. `chunks` count those that go through the head for a comparison with a
        base, which are computed again."""
        self.numels: list[int] = []
        self.trained: list[bool] = []
        self._about, self._every, self._chunks = trained, checkpoint_every, chunks
        whole = trained.adapter == "none"
        self._scale = self._add([(1,)], True)
        self._embedding = Node(self._add(shape.embedding.shapes, whole))
        self._layers = [self._layer(shape, whole) for _ in range(shape.layers)]
        self._norm = Node(self._add(shape.norm.shapes, whole))
        tied = self._embedding.parameters
        self._head = Node(tied if shape.tied else self._add(shape.embedding.shapes, whole))
        rows = [] if whole else [(trained.summary_tokens, shape.hidden)]
        self._rows = Node(self._add(rows, True), (self._embedding,))
        self.visits = [*self._forward(), *self._backward()]

    def _add(self, shapes: Sequence[tuple[int, ...]], trained: bool) -> tuple[int, ...]:
        first = len(self.numels)
        for shape in shapes:
            size = 1
            for n in shape:
                size *= n
            self.numels.append(size)
            self.trained.append(trained)
        return tuple(range(first, len(self.numels)))

    def _layer(self, shape: Shape, whole: bool) -> Node:
        nodes = {module.name: self._module(module, whole) for module in shape.layer()}
        attention = Node((), tuple(n for name, n in nodes.items() if name.startswith("self_attn.")))
        gate, up, down = (n for name, n in nodes.items() if name.startswith("mlp."))
        mlp = Node((), (gate, Node(()), up, down))  # the second is the activation
        norms = nodes["input_layernorm"], nodes["post_attention_layernorm"]
        return Node((), (norms[0], attention, norms[1], mlp))

    def _module(self, module: Module, whole: bool) -> Node:
        matrix = next((s for s in module.shapes if len(s) > 1), None)
        own = Node(self._add(module.shapes, whole))
        if whole or matrix is None:
            return own
        outputs, inputs = matrix
        rank = self._about.lora_rank
        parts = [self._add([s], True) for s in ((rank, inputs), (outputs, rank))]
        read = parts[0]  # `peft` looks at its type
        if self._about.adapter == "everywhere":
            parts.insert(0, ())  # peft's dropout
        return Node(read, (own, *(Node(part, is_adapter=True) for part in parts)))

    def _forward(self) -> Iterator[Visit]:
        yield Visit(self._scale, False)
        if self._about.adapter == "summary":  # the texts, without a graph and without adapters
            yield NOTHING
            yield from self._embedding.forward()
            yield NOTHING  # the rotation
            for layer in self._layers:
                yield from layer.forward(adapters=False)
            yield from self._norm.forward()
        if self._rows.parameters:
            yield from self._rows.forward()
            yield NOTHING
        else:
            yield NOTHING
            yield from self._embedding.forward()
        yield NOTHING
        for layer in self._layers:
            yield from layer.forward()
        yield from self._norm.forward()
        for _ in range(1 + self._chunks):
            yield from self._head.forward()

    def _backward(self) -> Iterator[Visit]:
        yield from [Visit(self._scale, False)] * (3 if self._chunks else 2)  # of each loss
        for _ in range(self._chunks):
            yield from self._head.forward()
            yield from self._head.backward()
        # DeepSpeed counts uses since the latest forward pass: of the first it sees no end then.
        yield Visit(self._head.parameters)
        yield NOTHING
        yield from self._norm.backward()
        for i in reversed(range(len(self._layers))):
            visits = list(self._layers[i].backward())
            if self._every and i % self._every == 0:
                # The layer, its MLP and the last projection find that what they kept is gone.
                *outer, last = visits[:3]
                yield from [*outer, last._replace(released=False)]
                again = list(self._layers[i].forward())[1:]
                yield from again
                visits = visits[3:]
                # Frozen parameters leave with the module for which they were computed again.
                ended = len(list(self._layers[i].children[-1].children[-1].backward())) - 2
                frozen = {p for visit in again for p in visit.parameters if not self.trained[p]}
                if frozen:
                    visits[ended] = visits[ended]._replace(dropped=frozenset(frozen))
            yield from visits
        # Their inputs have no gradient, so DeepSpeed does not learn when they end.
        for node in (self._rows, self._embedding) if self._rows.parameters else (self._embedding,):
            yield Visit(node.parameters, False)


class BaseTrace(Trace):
    """The visits of a base that a trained model is compared with: one forward pass, and its head
    for each chunk, in both passes of the trained model."""

    def __init__(self, shape: Shape, chunks: int) -> None:
        super().__init__(shape, Trained(), 0)
        forward = list(self._forward())
        self.trained = [False] * len(self.trained)
        heads = list(self._head.forward()) * (2 * chunks - 1)
        self.visits = [NOTHING, *forward[1:], *heads]


class Gathered(NamedTuple):
    """Of one micro-batch."""

    parameters: list[int]  # numbers of those that were gathered, as often as they were
    peak: int  # most elements that were whole at once, persistent ones apart


def persistent(trace: Trace, zero: Zero) -> list[int]:
    """Parameters that are gathered once a step and stay whole until it ends."""
    return [p for p, numel in enumerate(trace.numels) if numel <= zero.persistence]


@lru_cache(maxsize=1024)  # a search for a plan asks for the same again and again
def micro_batch(trace: Trace, zero: Zero) -> Gathered:
    """What a micro-batch gathers, once the order of the modules is known."""
    return _Coordinator(trace, set(persistent(trace, zero)), zero).run()


class _Coordinator:
    def __init__(self, trace: Trace, kept: set[int], zero: Zero) -> None:
        self.visits, self.numels, self.zero = trace.visits, trace.numels, zero
        uses = ((p, step) for step, v in enumerate(self.visits) for p in sorted(v.parameters))
        self.queue = deque(uses)
        self.looked_at = dict.fromkeys(range(len(self.numels)), -1)  # the latest use in the queue
        self.kept = kept
        self.whole = set(kept)
        self.gathered: list[int] = []
        self.live = self.peak = 0

    def run(self) -> Gathered:
        for step, visit in enumerate(self.visits):
            self._fetch(step, visit)
            if visit.released:
                self._release(step + 1, visit)
        return Gathered(self.gathered, self.peak)

    def _fetch(self, step: int, visit: Visit) -> None:
        self._gather([p for p in visit.parameters if p not in self.whole])
        waiting = {p for p in visit.parameters if self.looked_at[p] < step}
        while waiting:
            p, used = self.queue.popleft()
            self.looked_at[p] = used
            waiting.discard(p)
        ahead: list[int] = []
        room = min(self.zero.max_live - self.live, self.zero.prefetch_bucket)
        n = 0
        while self.queue and n < room:
            p, used = self.queue.popleft()
            self.looked_at[p] = max(self.looked_at[p], used)
            if p not in self.whole and p not in ahead:
                ahead.append(p)
                n += self.numels[p]
        self._gather(ahead)

    def _gather(self, parameters: Sequence[int]) -> None:
        self.whole.update(parameters)
        self.gathered += parameters
        self.live += sum(self.numels[p] for p in parameters)
        self.peak = max(self.peak, self.live)

    def _release(self, step: int, visit: Visit) -> None:
        """After a visit; `step` is that of the next one."""
        dropped = set(visit.dropped - self.kept)
        free = {p for p in visit.parameters if p not in self.kept and self.looked_at[p] <= step}
        passed = 0
        for later in self.visits[step:]:
            if passed >= self.zero.max_reuse or not free:
                break
            free.difference_update(later.parameters)
            passed += sum(self.numels[p] for p in later.parameters)
        for p in (free | dropped) & self.whole:
            self.whole.discard(p)
            self.live -= self.numels[p]
