"""gem_ds.planning.zero3_trace: what DeepSpeed's coordinator does, in
cases told by hand.

That it is what DeepSpeed itself does is counted by benchmarks/communication.py, see
tests/planning/test_communication.py.
"""

from collections import Counter
from dataclasses import replace

import pytest
from plans import SHAPE

from gem_ds.model import architecture
from gem_ds.planning import zero3_trace
from gem_ds.planning.zero3_trace import BaseTrace, Trace, Trained, Visit
from gem_ds.planning.zero_settings import Zero

PATIENT = Zero(persistence=0, max_reuse=10**9, max_live=10**9, prefetch_bucket=0)
HASTY = replace(PATIENT, max_reuse=0)
LAYER = replace(PATIENT, max_reuse=150_000)  # less than a layer


def test_every_parameter_is_visited():
    for trained in (Trained(), Trained("summary", 8, 2), Trained("everywhere", 8, 2)):
        trace = Trace(SHAPE, trained)
        visited = {p for visit in trace.visits for p in visit.parameters}
        assert visited == set(range(len(trace.numels)))
        adapters = SHAPE.lora(8) + 2 * 128 if trained.lora_rank else 0
        assert sum(trace.numels) == 1 + SHAPE.n_parameters + adapters
        counted = sum(n for n, t in zip(trace.numels, trace.trained, strict=True) if t)
        assert counted == 1 + (adapters or SHAPE.n_parameters)


def test_a_tied_head_is_the_embedding():
    trace = Trace(replace(SHAPE, tied=True), Trained())
    assert sum(trace.numels) == 1 + replace(SHAPE, tied=True).n_parameters


def test_what_is_used_again_soon_is_gathered_once():
    trace = Trace(SHAPE, Trained())
    found = zero3_trace.micro_batch(trace, PATIENT)
    assert sorted(found.parameters) == list(range(len(trace.numels)))
    assert found.peak == sum(trace.numels)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_what_is_not_kept_is_gathered_for_every_use(every):
    trace = Trace(SHAPE, Trained(), every)
    times = Counter(zero3_trace.micro_batch(trace, HASTY).parameters)
    for i, layer in enumerate(trace._layers):
        again = bool(every) and i % every == 0
        visits = Counter(p for v in layer.forward() for p in v.parameters)
        # The last projection is kept from its backward pass' beginning through the recomputation.
        last = layer.children[-1].children[-1].parameters[0]
        for p in visits:
            assert times[p] == (2 if p == last or not again else 3), (i, p)


def test_a_large_model_gathers_a_layer_for_each_pass():
    """Prefetching runs ahead until as much is whole as may be, which is what the peak comes to."""
    trace = Trace(architecture.BUILT_IN["llama3.1-8b"], Trained())
    zero = Zero(persistence=2**20, prefetch_bucket=15_000_000)
    found = zero3_trace.micro_batch(trace, zero)
    gathered = sum(trace.numels[p] for p in found.parameters)
    assert 1.8 * sum(trace.numels) < gathered < 2 * sum(trace.numels)
    assert 1e9 < found.peak < 1.6e9
    less = replace(zero, max_live=3 * 10**8, max_reuse=3 * 10**8)
    assert zero3_trace.micro_batch(trace, less).peak < 1.1e9


def test_persistent_parameters_are_not_gathered_in_a_micro_batch():
    trace = Trace(SHAPE, Trained())
    zero = replace(PATIENT, persistence=10_000)
    kept = zero3_trace.persistent(trace, zero)
    assert kept == [p for p, n in enumerate(trace.numels) if n <= 10_000]
    assert not set(kept) & set(zero3_trace.micro_batch(trace, zero).parameters)


def test_frozen_layers_are_gathered_once_more_after_their_recomputation():
    trained = Trained("everywhere", 8, 2)
    frozen, not_again = Trace(SHAPE, trained), Trace(SHAPE, trained, 0)
    zero = replace(LAYER, max_reuse=10**9)
    again, once = (
        Counter(zero3_trace.micro_batch(t, zero).parameters) for t in (frozen, not_again)
    )
    gate = frozen._layers[1].children[-1].children[0].children[0].parameters[0]
    assert (again[gate], once[gate]) == (2, 1)


def test_a_base_is_visited_forward_alone():
    trace = BaseTrace(SHAPE, chunks=3)
    heads = [v for v in trace.visits if v.parameters == trace._head.parameters]
    assert len(heads) == 6
    assert not any(trace.trained)
    whole = zero3_trace.micro_batch(trace, PATIENT).parameters
    assert sorted(whole) == list(range(1, len(trace.numels)))


def test_prefetching_passes_what_is_whole_and_keeps_it():
    trace = Trace(SHAPE, Trained())
    trace.numels, trace.visits = [10, 10, 10], [Visit((p,)) for p in (0, 1, 0, 2)]
    zero = Zero(persistence=0, max_reuse=0, prefetch_bucket=20)
    # Visit 0 fetches 0, and ahead 1 and 2; between them it passes 0, which is whole, and keeps it.
    assert zero3_trace.micro_batch(trace, zero).parameters == [0, 1, 2]
    alone = zero3_trace.micro_batch(trace, replace(zero, prefetch_bucket=0))
    assert alone.parameters == [0, 1, 0, 2]
    assert alone.peak == 10
