"""A server of a model in a thread, for tests."""

import contextlib
import threading
import time
from collections.abc import Iterator

from spirit_jax.serving import server
from spirit_jax.serving.service import Service, Settings


@contextlib.contextmanager
def serving(lm, with_page=False, rows=8, slots=512, **settings) -> Iterator[tuple[str, Service]]:
    """Serves a model; yields the address and the service."""
    settings = {"name": "tiny", "max_upload": 2 << 20, **settings}
    service = Service(lm, lm.engine(rows, slots), Settings(**settings))
    running = server.make_server(service, with_page)
    listener = server.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run_in_thread, args=(running, listener))
    thread.start()
    try:
        wait_until(lambda: running.started or not thread.is_alive())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
    finally:
        running.should_exit = True
        thread.join()


def wait_until(is_true, seconds=30.0) -> None:
    """Waits for a condition; fails after a time."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.01)
