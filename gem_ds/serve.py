"""Serving a model over HTTP, from loading it to the last answer."""

import signal
import socket
import sys
import time
from typing import Any

from gem_ds.errors import InputError, extra
from gem_ds.serving_config import ServeConfig


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; then what is under way is finished.

    Raises `InputError` where the extra's libraries are missing, the address is taken, or the model
    is no export.
    """
    with extra("serve", "serving"):
        import uvicorn

        from gem_ds.server import application
        from gem_ds.serving_metrics import Metrics
    from gem_ds.inference import GemModel
    from gem_ds.serving_batches import Worker
    from gem_ds.serving_inputs import Inputs

    config.api_key()  # of what is wrong, this and the port show sooner than the model loads
    listening = _listen(config.host, config.port)
    gem = GemModel.from_pretrained(config.model, verify=config.verify)
    gem.encode("Is it ready?")  # before the first request comes
    metrics = Metrics()
    worker = Worker(gem, config, metrics)
    worker.start()
    inputs = Inputs(gem, config)
    app = application(worker, inputs, config, metrics, started=int(time.time()))
    running = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=int(config.timeout_seconds) + 1,
        )
    )
    listening.listen(running.config.backlog)  # from here on nobody is sent away
    host, port = listening.getsockname()[:2]
    print(
        f"serving {config.served_name} on http://{host}:{port}: embeddings of {inputs.width} "
        f"dimensions, texts of up to {inputs.room} tokens",
        flush=True,
    )
    # uvicorn stops at a signal, finishes, and raises the signal again: then that is all.
    signal.signal(signal.SIGTERM, _nothing)
    running.run(sockets=[listening])
    worker.close()
    print("stopped", file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, on which nobody is heard yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise InputError(
            f"cannot listen on port {port} of {host} ({error.strerror}); choose another --port "
            "or --host, or end the program that has it"
        ) from None
    return listening


def _nothing(*_: Any) -> None:
    pass
