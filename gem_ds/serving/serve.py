"""Serving a model over HTTP, from loading it to the last answer."""

import gc
import os
import signal
import socket
import sys
from contextlib import closing
from typing import Any

from gem_ds.errors import InputError, extra
from gem_ds.serving.config import ServeConfig

# The model takes the lock of Python again after each operation. While the loop is busy, each
# waits this long for it: by Python's default of 5 ms, a small model is ten times slower.
SWITCH_SECONDS = 0.0002
BACKLOG = 2048  # connections that the system holds until they are accepted
# Of the time in which the server ends: when requests end that are under way, and when connections.
REQUESTS_END, CONNECTIONS_END = 0.7, 0.8


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; then what is under way is finished.

    Raises `InputError` where the extra's libraries are missing, the address is taken, or the model
    is no export; `SystemExit` with status 1 if the model fails for good.
    """
    # Before torch starts its threads: on few cores, those that spin keep the server's from running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with extra("serve", "serving"):
        import uvicorn

        from gem_ds.serving.connections import Listener
        from gem_ds.serving.metrics import Metrics, limit_log
        from gem_ds.serving.server import Server, application
    from gem_ds.attention.hf_config import longest_document
    from gem_ds.inference.gem_model import GemModel
    from gem_ds.serving.deadlines import Deadlines
    from gem_ds.serving.reader_processes import Readers
    from gem_ds.serving.request_tokens import ModelSizes
    from gem_ds.serving.scheduler import Worker

    config.api_key()  # of what is wrong, this and the port show sooner than the model loads
    with (
        _listen(config.host, config.port) as listening,
        closing(Readers(config)) as readers,
    ):
        gem = GemModel.from_pretrained(config.model, verify=config.verify)
        gem.encode("Is it ready?")  # before the first request comes
        sizes = ModelSizes(
            gem.folder,
            gem.encoder.summary_tokens,
            gem.max_tokens,
            longest_document(gem.lm.config),
            gem.encoder.width,
        )
        readers.begin(sizes)
        metrics = Metrics()
        worker = Worker(gem, config, metrics)
        deadlines = Deadlines(config.timeout_seconds)
        app = application(Server(worker, readers, deadlines, config), config, metrics)
        running = Listener(
            uvicorn.Config(
                app,
                ws="none",
                log_level="warning",
                lifespan="off",
                # `Listener` closes what is idle, and what takes as long with a body or an answer.
                timeout_keep_alive=int(config.idle_seconds + config.body_seconds) + 2,
                # A fraction is as good to asyncio.
                timeout_graceful_shutdown=config.stop_seconds * CONNECTIONS_END,  # type: ignore
            ),
            listening,
            config,
            metrics,
            ended=lambda: worker.failed,
            stopping=lambda: deadlines.stop(config.stop_seconds * REQUESTS_END),
        )
        limit_log(metrics)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()  # what is loaded stays; to look through it all again takes half a second
        worker.start()
        host, port = listening.getsockname()[:2]
        print(
            f"serving {config.served_name} on http://{host}:{port}: embeddings of {sizes.width} "
            f"dimensions, texts of up to {sizes.room} tokens",
            flush=True,
        )
        # uvicorn stops at a signal, finishes, and raises the signal again: then that is all.
        signal.signal(signal.SIGTERM, _nothing)
        running.run()
        worker.close(config.stop_seconds * (1 - CONNECTIONS_END))
    if worker.failed:
        sys.exit("error: the model works no more, see above; start the server again")
    if worker.is_alive():
        sys.exit("error: stopped, though the model was stuck at something")
    print("stopped", file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address: who calls while the model loads waits for that."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By the protocol's number, asyncio knows those that send answers at once from those that wait.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen on port {port} of {host} ({error.strerror}); choose another --port "
            "or --host, or end the program that has it"
        ) from None
    return listening


def _nothing(*_: Any) -> None:
    pass
