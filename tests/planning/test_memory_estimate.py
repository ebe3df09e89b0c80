"""gem_ds.planning.memory_estimate and gem_ds.planning.activations, against tensors counted in a
real run."""

import memory_plan as benchmark
import pytest
from planned import prepare

from gem_ds.model import architecture
from gem_ds.planning import activations


def test_bytes_a_token_of_a_layer():
    """Of Llama 3.1 8B in bf16: norms, attention, MLP."""
    shape = architecture.BUILT_IN["llama3.1-8b"]
    norms = 2 * 8 * 4096
    attention = 2 * (2 * 4096 + 2 * 1024) + 4 * 32
    assert activations.layer(shape, 2) == norms + attention + 8 * 14336
    kept = [activations.kept(shape, 2, every) for every in (1, 2, 4, 0)]
    assert kept[0] == 32 * 2 * 4096
    assert kept == sorted(kept)
    assert kept[-1] == 32 * activations.layer(shape, 2)
    few = 10 * (6 * shape.vocab + 2 * 4096)
    assert activations.logits(shape, 2, 10) == few
    block = 2**28 // shape.vocab
    piece = block * (2**25 // block)
    many = 2 * block * shape.vocab + 4 * piece + 16384 * 2 * 4096
    assert activations.logits(shape, 2, 16384) == many
    assert activations.logits(shape, 4, 16384) == 2 * many - 4 * piece


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """One launch of two CPU ranks."""
    folder = tmp_path_factory.mktemp("memory")
    prepare(folder)
    names = ("zero3", "zero2", "lossless", "lossless-zero2")
    asked = {name: {**benchmark.SHARED, **benchmark.SETTINGS[name]} for name in names}
    return benchmark.launch("memory_plan.py", folder, asked, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", "zero2", "lossless", "lossless-zero2"])
def test_the_plan_is_what_a_rank_holds(counted, name):
    found = counted[name]
    for moment, n in found["counted"].items():
        assert found["planned"][moment] == pytest.approx(n, rel=benchmark.TOLERANCE), moment
