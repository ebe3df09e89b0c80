"""gem_ds.ranks: how many ranks a machine has, by whoever started them."""

import pytest

from gem_ds import ranks


@pytest.mark.parametrize(
    ("env", "n"),
    [
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),  # torchrun, srun
        ({"LOCAL_SIZE": "2", "WORLD_SIZE": "8"}, 2),  # DeepSpeed's launcher
        ({"WORLD_SIZE": "3"}, 3),
    ],
)
def test_ranks_of_a_machine(env, n):
    assert ranks.local_size(env) == n
