"""In what order a step visits the modules that have parameters, and how often.

ZeRO-3 gathers a module's parameters when it is visited, in the forward pass, in a recomputation and
in the backward pass, so this order is what `gathering` computes traffic and live parameters from.
It is that of `model.GemModel.forward` and of autograd behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gem_ds.shapes import Module, Shape


class Visit(NamedTuple):
    """A module at work, with the numbers of its parameters."""

    parameters: tuple[int, ...]
    released: bool = True  # whether DeepSpeed learns when it ends


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
        self,
        shape: Shape,
        trained: Trained,
        checkpoint_every: int = 1,
        head_visits: int = 1,
    ) -> None:
        """Of every `checkpoint_every`-th layer the forward pass is repeated in the backward pass;
        0 repeats none. `head_visits` counts the chunks that go through the head."""
        self.numels: list[int] = []
        self.trained: list[bool] = []
        self.shape, self.about, self.every = shape, trained, checkpoint_every
        all_trained = trained.adapter == "none"
        own = self._add(Module("log_scale", ((1,),)), True)
        self.rows: tuple[int, ...] = ()
        self.embedding = self._add(shape.embedding, all_trained)
        self.layers = [list(self._layer(all_trained)) for _ in range(shape.layers)]
        self.norm = self._add(shape.norm, all_trained)
        head = Module("lm_head", shape.embedding.shapes)
        self.head = self.embedding if shape.tied else self._add(head, all_trained)
        if not all_trained:
            rows = Module("summary_rows", ((trained.summary_tokens, shape.hidden),))
            self.rows = self._add(rows, True)
        self.visits = [Visit(own, False), *self._forward(head_visits), *self._backward(head_visits)]

    def _add(self, module: Module, trained: bool) -> tuple[int, ...]:
        first = len(self.numels)
        for shape in module.shapes:
            size = 1
            for n in shape:
                size *= n
            self.numels.append(size)
            self.trained.append(trained)
        return tuple(range(first, len(self.numels)))

    def _layer(self, all_trained: bool) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Parameters of a layer's modules, and whether each is an adapter's."""
        rank = self.about.lora_rank
        for module in self.shape.layer():
            yield self._add(module, all_trained), False
            matrix = next((s for s in module.shapes if len(s) > 1), None)
            if not all_trained and matrix is not None:
                outputs, inputs = matrix
                yield self._add(Module("lora_A", ((rank, inputs),)), True), True
                yield self._add(Module("lora_B", ((outputs, rank),)), True), True

    def _forward(self, head_visits: int) -> Iterator[Visit]:
        if self.about.adapter == "summary":  # the texts, without a graph and without adapters
            yield Visit(self.embedding)
            for layer in self.layers:
                yield from (Visit(ids) for ids, adapter in layer if not adapter)
            yield Visit(self.norm)
        if self.rows:
            yield Visit(self.rows)
        yield Visit(self.embedding)
        for layer in self.layers:
            yield from (Visit(ids) for ids, _ in layer)
        yield Visit(self.norm)
        yield from [Visit(self.head)] * head_visits

    def _backward(self, head_visits: int) -> Iterator[Visit]:
        yield from [Visit(self.head)] * head_visits
        yield Visit(self.norm)
        for i in reversed(range(len(self.layers))):
            layer = [ids for ids, _ in self.layers[i]]
            if self.every and (i + 1) % self.every == 0:
                yield Visit(layer[-1], False)  # which finds that its input is gone
                yield from (Visit(ids) for ids in layer[:-1])
                yield Visit(layer[-1], False)
                yield from (Visit(ids) for ids in reversed(layer[:-1]))
            else:
                yield from (Visit(ids) for ids in reversed(layer))
        if self.rows:
            yield Visit(self.rows, False)
        else:
            yield Visit(self.embedding, False)  # its input has no gradient, so no hook tells of it
