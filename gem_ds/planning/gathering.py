"""ZeRO-3's fetching and releasing of parameters, step by step: what is gathered and what is live.

DeepSpeed learns the order of modules in the first steps and follows it from then on: it gathers
what a module lacks, then what the next ones lack up to ``stage3_prefetch_bucket_size`` elements,
and releases a module's parameters after it unless they are used again within
``stage3_max_reuse_distance`` elements (`PartitionedParameterCoordinator`). So a large model gathers
every layer twice a micro-batch, before its forward and before its recomputation, which keeps it for
the backward pass; a model below the distance gathers each parameter once; and small ones, up to
``stage3_param_persistence_threshold``, once a step.
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from gem_ds.planning.zero3_trace import Trace, Visit
from gem_ds.planning.zero_settings import Zero


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
