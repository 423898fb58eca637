"""Runs the application until a signal ends it."""

import asyncio
import signal
import socket
import sys
from typing import Any

import uvicorn

from spirit_jax.errors import InputError
from spirit_jax.generation.engine import Engine
from spirit_jax.serving.app import make_app
from spirit_jax.serving.service import Service, Settings
from spirit_jax.spiritlm import SpiritLM

GRACE_SECONDS = 10  # for requests that run when the server is stopped
BACKLOG = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `InputError` if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host}:{port}: the server cannot listen there ({reason}).") from error


def run(
    lm: SpiritLM, engine: Engine, settings: Settings, listener: socket.socket, with_page: bool
) -> None:
    """Serves a model until SIGINT or SIGTERM.

    Args:
      lm: the model.
      engine: of the model; nothing else may run it.
      settings: of the server.
      listener: from `listen`.
      with_page: whether the page is served.
    """
    print("compiling", file=sys.stderr, flush=True)
    service = Service(lm, engine, settings)
    service.warm_up()
    server = make_server(service, with_page)
    # The signals that uvicorn catches are raised again when it has ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    host, port, *_ = listener.getsockname()
    host = f"[{host}]" if ":" in host else host
    print(f"{settings.name} is served at http://{host}:{port}{settings.root_path}", flush=True)
    server.run([listener])
    print("stopped", file=sys.stderr)


def make_server(service: Service, with_page: bool = True) -> uvicorn.Server:
    """A server that is not running yet."""
    config = uvicorn.Config(
        make_app(service, with_page),
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        root_path=service.settings.root_path,
        backlog=BACKLOG,
        ws="none",
        loop="asyncio",
    )
    return uvicorn.Server(config)


def run_in_thread(server: uvicorn.Server, listener: socket.socket) -> Any:
    """Runs a server in this thread; for tests and notebooks."""
    asyncio.run(server.serve([listener]))
