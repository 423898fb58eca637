"""The limits of every request: key, size, time; and its end when the client leaves.

ASGI is used directly, since Starlette's middleware for functions hides from a handler that its
client has left.
"""

import asyncio
import contextlib
import hmac
import time
from typing import Any

from starlette.responses import Response

from spirit_jax.serving.errors import ApiError, respond
from spirit_jax.serving.service import Service

MAX_DROPPED, DROP_SECONDS = 1 << 30, 60  # bytes and seconds of a body that nobody wants
MAX_JSON = 4 << 20  # bytes of a JSON body, which is parsed in the event loop


class Guard:
    """Wraps the application of the endpoints."""

    def __init__(self, app: Any, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles a connection; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._most_bytes(scope))
        started = time.monotonic()
        reader = asyncio.create_task(exchange.read())
        try:
            check_key(scope, self._service.settings.api_key)
            await self._run(exchange)
        except ApiError as error:
            await exchange.respond(respond(error))
        finally:
            reader.cancel()
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            metrics = self._service.metrics
            metrics.requests.labels(endpoint, exchange.status or "left").inc()
            metrics.seconds.labels(endpoint).observe(time.monotonic() - started)

    def _most_bytes(self, scope: Any) -> int:
        is_form = _header(scope, b"content-type").startswith(b"multipart/")
        most = self._service.settings.max_upload
        return most if is_form else min(most, MAX_JSON)

    async def _run(self, exchange: "_Exchange") -> None:
        """Runs the handler until it ends, its time is over or the client leaves."""
        seconds = self._service.settings.timeout
        handler = asyncio.create_task(
            self._app(exchange.scope, exchange.receive_for_handler, exchange.send)
        )
        exchange.left.add_done_callback(lambda _: handler.cancel())
        try:
            async with asyncio.timeout(seconds):
                await handler
        except TimeoutError:
            if not exchange.status:
                message = f"The request took longer than the server's limit of {seconds:g} s."
                raise ApiError(503, message, "timeout") from None
            raise  # the connection is closed without the end of the response
        except asyncio.CancelledError:
            if not exchange.left.done():
                raise  # the server ends


def check_key(scope: Any, key: str | None) -> None:
    """Raises `ApiError` unless a request has the key, if there is one."""
    if key is None:
        return
    scheme, _, given = _header(scope, b"authorization").partition(b" ")
    if not given:
        raise ApiError(401, "No API key was given; send it as a bearer token.", "no_api_key")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
        raise ApiError(401, "The API key is wrong.", "invalid_api_key")


class _Exchange:
    """A request and its response.

    A client reads the response only after it has sent its body. So whatever the handler does not
    read, and what is too much, is read and dropped before the response begins.

    Attributes:
      scope: of ASGI.
      status: of the response; None before it begins.
      left: done when the client has closed the connection.
    """

    def __init__(self, scope: Any, receive: Any, send: Any, most: int):
        self.scope, self._receive, self._send = scope, receive, send
        self.status: int | None = None
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._most = most
        announced = _header(scope, b"content-length")
        self._is_too_large = announced.isdigit() and int(announced) > most
        # Without this header the client sends its body at once.
        self._waits = _header(scope, b"expect").lower() == b"100-continue" and self._is_too_large
        self._messages: asyncio.Queue[Any] = asyncio.Queue(1)
        self._is_read = False

    async def read(self) -> None:
        """Reads the body for the handler, then waits for the client to leave."""
        if self._waits:
            await self._messages.put(self._too_large())
            return
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if not self.left.done():
                    self.left.set_result(None)
                return
            size += len(message.get("body", b""))
            self._is_too_large |= size > self._most
            if not self._is_too_large:
                await self._messages.put(message)
            elif not message.get("more_body") or size > MAX_DROPPED:
                await self._messages.put(self._too_large())

    async def receive_for_handler(self) -> Any:
        """The next part of the body; raises `ApiError` if it is too large."""
        message = await self._messages.get()
        if isinstance(message, Exception):
            self._is_read = True
            raise message
        self._is_read = not message.get("more_body")
        return message

    async def send(self, message: Any) -> None:
        """Sends a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._drop_body()
        await self._send(message)

    async def respond(self, response: Response) -> None:
        """Sends a response, unless one has begun."""
        if self.status is None:
            await response(self.scope, self._receive, self.send)

    async def _drop_body(self) -> None:
        """Waits until the body is read, but not for ever."""
        with contextlib.suppress(TimeoutError, ApiError):
            async with asyncio.timeout(DROP_SECONDS):
                while not self._is_read and not self.left.done():
                    await self.receive_for_handler()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request is larger than {_show(self._most)}.", "too_large")


def _show(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"


def _header(scope: Any, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
