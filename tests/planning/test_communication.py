"""gem_ds.planning.communication: volumes by hand, and those of a real run
(benchmarks/communication.py)."""

import communication as benchmark
import pytest
from planned import prepare
from plans import SHAPE

from gem_ds.planning import communication
from gem_ds.planning.communication import Volume
from gem_ds.planning.zero3_trace import Trace, Trained
from gem_ds.planning.zero_settings import Zero

ZERO3 = Zero(persistence=0, prefetch_bucket=0)
TRACE = Trace(SHAPE, Trained())
P = sum(TRACE.numels)


def test_a_ring_moves_what_it_must():
    volume = Volume(gathered=80, scattered=40, reduced=20)
    assert volume.wire(4) == 0.75 * (80 + 40 + 2 * 20)
    assert volume.wire(1) == 0
    assert volume.plus(volume, 2) == Volume(240, 120, 60)


def test_zero3_gathers_and_scatters_every_micro_batch():
    one = communication.step(TRACE, ZERO3, 2, 1, 0, 128)
    three = communication.step(TRACE, ZERO3, 2, 3, 0, 128)
    padded = P + sum(n % 2 for n in TRACE.numels)
    assert one.weights.gathered == one.gradients.scattered == 2 * padded
    assert three.gradients.scattered == 3 * one.gradients.scattered
    assert three.weights.gathered == 3 * one.weights.gathered
    assert one.gradients.reduced == 0


def test_zero2_gathers_once_a_step():
    found = communication.step(TRACE, Zero(stage=2, bf16=False), 2, 3, 0, 128)
    assert found.weights.gathered == 4 * P
    assert found.gradients.reduced == 3 * 4 * P
    by_rank = communication.step(TRACE, Zero(stage=2, multi_rank_allreduce=False), 2, 3, 0, 128)
    assert (by_rank.gradients.scattered, by_rank.gradients.reduced) == (3 * 2 * P, 0)


def test_hpz_crosses_machines_once_a_step():
    flat = communication.step(TRACE, ZERO3, 4, 3, 0, 128)
    grouped = communication.step(TRACE, Zero(**{**vars(ZERO3), "hpz": 2}), 4, 3, 0, 128)
    assert grouped.weights.gathered == flat.weights.gathered / 3
    assert grouped.weights_inside.gathered == flat.weights.gathered * 2 / 3
    adapters = Trace(SHAPE, Trained("summary", 8, 2))
    frozen = communication.step(adapters, Zero(**{**vars(ZERO3), "hpz": 2}), 4, 3, 0, 128)
    assert frozen.weights.gathered < 0.1 * frozen.weights_inside.gathered


def test_one_rank_sends_nothing():
    for stage in (2, 3):
        found = communication.step(TRACE, Zero(stage=stage), 1, 4, 10, 128)
        assert sum(found.all_ranks) + sum(found.weights_inside) == 0


def test_embeddings_are_gathered_and_their_gradients_reduced():
    found = communication.step(TRACE, ZERO3, 4, 2, 5, 128).contrastive
    both = 2 * 4 * 128 * 5 * 4
    assert found == Volume(gathered=2 * (both + 3 * 8 * 5 * 4), reduced=2 * both)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """One launch of two CPU ranks: bytes of a step, counted and planned."""
    folder = tmp_path_factory.mktemp("communication")
    prepare(folder)
    names = ("zero3", "lossless", "kl", "zero2")
    shared = {**benchmark.SHARED, "rows_per_step": 8}  # two micro-batches
    asked = {name: {**shared, **benchmark.SETTINGS[name]} for name in names}
    return benchmark.launch("communication.py", folder, asked, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", "lossless", "kl", "zero2"])
def test_the_plan_is_what_a_run_sends(counted, name):
    found = counted[name]
    assert sum(found["counted"].values()) > 10_000_000
    for kind, difference in benchmark.differences(found).items():
        assert abs(difference) < benchmark.TOLERANCE, (kind, found)
