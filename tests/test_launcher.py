"""gem_ds.launcher: how many ranks there are, by whoever started them."""

import contextlib
import socket

import pytest

from gem_ds import launcher


@pytest.mark.parametrize(
    ("env", "n"),
    [
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),  # torchrun, srun
        ({"LOCAL_SIZE": "2", "WORLD_SIZE": "8"}, 2),  # DeepSpeed's launcher
        ({"WORLD_SIZE": "3"}, 3),
    ],
)
def test_ranks_of_a_machine(env, n):
    assert launcher.local_size(env) == n


def test_a_process_alone_takes_a_port_that_is_free():
    ports = set()
    with contextlib.ExitStack() as taken:
        for _ in range(3):
            env = {}
            launcher.join(env)
            assert (launcher.size(env), launcher.local_size(env)) == (1, 1)
            ports.add(env["MASTER_PORT"])
            listener = taken.enter_context(socket.socket())
            listener.bind(("127.0.0.1", int(env["MASTER_PORT"])))
            listener.listen()
    assert len(ports) == 3
