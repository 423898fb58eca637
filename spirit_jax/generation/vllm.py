"""A client of vLLM's completions, by token ids: what its answers say, and when to wait.

The interface is that of `vllm serve FOLDER --skip-tokenizer-init` for a folder of `convert.export`.
Everything is plain HTTP and JSON, so neither vLLM nor PyTorch is needed here.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from spirit_jax.errors import InputError, InputWarning

CONNECT_SECONDS = 10
READ_SECONDS = 600  # between two parts of an answer
RETRY_SECONDS = 1.0
AWAY = (502, 503, 504)  # of a proxy whose server is being started
MAX_FAILURES = 3  # answers 500 in a row; vLLM gives one while its engine ends


class Away(Exception):
    """The server does not answer, so the request can be sent again."""


@dataclasses.dataclass(frozen=True)
class Part:
    """New tokens of an answer.

    Attributes:
      ids: token ids.
      log_probs: natural log probability of each.
      has_ended: whether these are the last ones.
    """

    ids: list[int]
    log_probs: list[float]
    has_ended: bool


class Client:
    """The completions of one server.

    Attributes:
      notice: a sentence for users while the server is waited for, otherwise None.
      model: the name of the model at the server.
      max_tokens: of a prompt and its continuation, or None if the server does not say.
    """

    def __init__(self, url: str, wait_seconds: float):
        """Connects; waits for the server if it does not answer.

        Args:
          url: such as "http://127.0.0.1:8000/v1". A user or password in it is sent as a bearer
            token; a fragment (#NAME) chooses one of several models.
          wait_seconds: the longest time to wait for the server.

        Raises:
          InputError: the URL cannot be used, the server does not answer in time, or has no model.
        """
        parts = _split(url)
        self.notice: str | None = None
        self._wait_seconds = wait_seconds
        self._secure, self._path = parts.scheme == "https", parts.path.rstrip("/")
        self._host, self._port = parts.hostname, parts.port
        self.url = f"{parts.scheme}://{self._host}{f':{self._port}' if self._port else ''}"
        self.url += self._path
        key = urllib.parse.unquote(parts.password or parts.username or "")
        self._headers = {"content-type": "application/json"}
        self._headers |= {"authorization": f"Bearer {key}"} if key else {}
        model = self._find_model(parts.fragment)
        self.model, self.max_tokens = model["id"], model.get("max_model_len")

    def generate(self, body: dict[str, Any], is_cancelled: Callable[[], bool]) -> Iterator[Part]:
        """Streams a completion of one prompt.

        Args:
          body: the fields of the request.
          is_cancelled: whether the answer is not wanted any more.

        Raises:
          Away: the server ended before the answer did.
          InputError: the server refuses the request.
        """
        body = body | {"model": self.model, "stream": True, "return_token_ids": True}
        with contextlib.closing(self._connect()) as connection:
            response = self._send(connection, "POST", "/completions", body)
            for line in self._lines(response):
                if is_cancelled():
                    return  # closing the connection ends the request at the server
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    break
                part = _read_part(self._decode(data))
                if part is not None:
                    yield part
        raise Away

    def score(self, prompt: list[int]) -> list[float]:
        """The natural log probability of each token of a prompt but the first, given those before.

        Raises:
          InputError: the server refuses the request, or does not answer in time.
        """
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = self.call("POST", "/completions", body | {"model": self.model})
        try:
            entries = answer["choices"][0]["prompt_logprobs"]
            pairs = zip(prompt[1:], entries[1:], strict=True)
            return [float(entry[str(token)]["logprob"]) for token, entry in pairs]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.url}: gives no log probabilities of the prompt; is it vLLM?"
            ) from error

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer; waits for the server if it is away.

        Raises:
          InputError: the server refuses the request, or does not answer in time.
        """
        waiting = Waiting(self)
        while True:
            try:
                with contextlib.closing(self._connect()) as connection:
                    response = self._send(connection, method, path, body)
                    answer = self._decode(self._read(response))
                waiting.end()
                return answer
            except Away as error:
                waiting.wait(error)

    def _find_model(self, wanted: str) -> dict[str, Any]:
        answer = self.call("GET", "/models")
        models = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(models, list) or not all(
            isinstance(m, dict) and "id" in m for m in models
        ):
            raise InputError(f"{self.url}: does not list its models; is it vLLM?")
        names = [str(model["id"]) for model in models]
        chosen = [model for model in models if wanted in ("", model["id"])]
        if len(chosen) != 1:
            raise InputError(
                f"{self.url}: has the models {', '.join(names) or '(none)'}; choose one with "
                f"{self.url}#NAME."
            )
        return chosen[0]

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except OSError as error:
            raise Away from error
        connection.sock.settimeout(READ_SECONDS)
        return connection

    def _send(self, connection, method: str, path: str, body: Any) -> http.client.HTTPResponse:
        """Sends a request; returns the response if its status is 200."""
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._path + path, data, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Away from error
        if response.status in AWAY:
            raise Away
        if response.status == 500:
            raise Failed(self._message(response))
        if response.status != 200:
            raise InputError(f"{self.url}: {self._message(response)}")
        return response

    def _message(self, response: http.client.HTTPResponse) -> str:
        """The sentence of an error."""
        try:
            error = json.loads(self._read(response))
            error = error.get("error", error)
            message = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, AttributeError):
            message = response.reason
        message = " ".join(str(message).split())[:500].rstrip(".")
        return f"refuses the request with status {response.status} ({message})."

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Away from error

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[str]:
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as error:
                raise Away from error
            if not line:
                return
            yield line.decode("utf-8", "replace")

    def _decode(self, data: str | bytes) -> Any:
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise InputError(f"{self.url}: its answer is not JSON; is it vLLM?") from error
        if isinstance(answer, dict) and answer.get("error"):
            raise Failed(str(answer["error"])[:500])  # in the middle of a stream
        return answer


class Failed(Away):
    """The server answered with an error of its own."""


class Waiting:
    """Waits for a server that is away, and says so once."""

    def __init__(self, client: Client):
        self._client = client
        self._until: float | None = None
        self._failures = 0

    def wait(self, error: Away) -> None:
        """Waits a little; raises `InputError` if the server has been away for too long."""
        client, now = self._client, time.monotonic()
        self._failures = self._failures + 1 if isinstance(error, Failed) else 0
        if self._failures >= MAX_FAILURES:
            raise InputError(f"{client.url}: fails again and again: {error}")
        if self._until is None:
            self._until = now + client._wait_seconds
            message = f"{client.url}: does not answer; waiting for it."
            if client.notice is None:
                warnings.warn(message, InputWarning, stacklevel=2)
            client.notice = message
        if now >= self._until:
            raise InputError(
                f"{client.url}: does not answer since {client._wait_seconds:g} s; is vLLM running?"
            )
        time.sleep(min(RETRY_SECONDS, max(self._until - now, 0.01)))

    def end(self) -> None:
        """The server has answered."""
        self._until, self._failures, self._client.notice = None, 0, None


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises for one that is not a number
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise InputError(f"'{url[:80]}' is not a URL such as http://127.0.0.1:8000/v1.")
    return parts


def _read_part(answer: dict[str, Any]) -> Part | None:
    """The part of an event; None for one without a choice, such as usage."""
    try:
        if not answer["choices"]:
            return None
        (choice,) = answer["choices"]
        ids = [int(token) for token in choice.get("token_ids") or []]
        details = choice.get("logprobs") or {}
        log_probs = [float(each) for each in details.get("token_logprobs") or []]
        has_ended = choice.get("finish_reason") is not None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("vLLM's answer has no token ids; its version is too old.") from error
    log_probs += [math.nan] * (len(ids) - len(log_probs))
    return Part(ids, log_probs[: len(ids)], has_ended)
