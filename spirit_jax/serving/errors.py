"""Errors of the HTTP interface, in the form of OpenAI's."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from spirit_jax.errors import InputError, ResourceError

# OpenAI's client repeats a request by itself after 408, 409, 429 and 5xx, unless a header says no.
RETRY_HEADER = "x-should-retry"
BUSY = (429, 503)  # nothing was generated, so a repetition makes sense


class ApiError(HTTPException):
    """An error with an HTTP status.

    Attributes:
      status_code: of the response.
      detail: one sentence.
      code: a short name for programs, such as "model_not_found".
      param: the field of the request that is to blame, or None.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(status, message)
        self.code, self.param = code, param


def describe(status: int, message: str, code: str | None = None, param: str | None = None) -> dict:
    """The JSON object of an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if status == 429 else kind
    message = " ".join(message.split())
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(error: Exception) -> JSONResponse:
    """The response for an error."""
    status, message, code, param = 500, "The server failed; its log has the cause.", None, None
    headers: dict[str, Any] = {}
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        code, param = getattr(error, "code", None), getattr(error, "param", None)
        headers |= error.headers or {}
    elif isinstance(error, ResourceError):
        status, message = 503, str(error)
    elif isinstance(error, InputError):
        status, message = 400, str(error)
    if status in BUSY and code != "timeout":
        headers["retry-after"] = "1"
    else:
        headers[RETRY_HEADER] = "false"
    return JSONResponse(describe(status, message, code, param), status, headers)


def describe_invalid(errors: list[dict[str, Any]]) -> ApiError:
    """The error for a body that does not have the expected fields.

    Args:
      errors: of pydantic's validation.
    """
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    name = place[0] if place else None
    if first["type"] == "json_invalid":
        return ApiError(400, "The body of the request is not valid JSON.")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"'{name}' is not a field of this endpoint; leave it out.", None, name)
    if first["type"] == "missing":
        return ApiError(400, f"The field '{name or 'body'}' is missing.", None, name)
    detail = first["msg"].removeprefix("Value error, ")
    if name is None:
        return ApiError(400, f"The body of the request is not usable: {detail}.")
    return ApiError(400, f"The field '{name}' is not usable: {detail}.", None, name)
