"""The web application: endpoints, page, health and metrics."""

import contextlib
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from spirit_jax.errors import InputError
from spirit_jax.serving import completions, metrics, speech
from spirit_jax.serving.errors import describe_invalid, respond
from spirit_jax.serving.guard import Guard, check_key
from spirit_jax.serving.service import Service


def make_app(service: Service, with_page: bool = True) -> FastAPI:
    """The application of a server.

    Args:
      service: the model behind it, which is started and stopped with the application.
      with_page: whether there is a page at "/"; it needs Gradio.
    """

    @contextlib.asynccontextmanager
    async def run(app: FastAPI):
        service.start()
        yield
        service.stop()

    app = FastAPI(lifespan=run, openapi_url=None)
    _add_handlers(app)

    @app.get("/health")
    async def health() -> Any:
        if service.notice is not None:
            return JSONResponse({"status": "waiting", "reason": service.notice}, 503)
        return {"status": "ok"}

    @app.get("/metrics")
    async def read_metrics(request: Request) -> Any:
        check_key(request.scope, service.settings.api_key)
        return Response(service.metrics.render(), media_type=metrics.CONTENT_TYPE)

    app.mount("/v1", _make_endpoints(service))
    if not with_page:
        return app
    from spirit_jax.serving.page import mount_page

    return mount_page(app, service)


def _make_endpoints(service: Service) -> FastAPI:
    """The application below /v1."""
    app = FastAPI(openapi_url=None)
    app.state.service = service
    _add_handlers(app)
    app.add_middleware(Guard, service=service)
    app.include_router(completions.router)
    app.include_router(speech.router)
    started = int(time.time())

    def describe() -> dict[str, Any]:
        name = service.settings.name
        return {"id": name, "object": "model", "created": started, "owned_by": "spirit-jax"}

    @app.get("/models")
    async def list_models() -> Any:
        return {"object": "list", "data": [describe()]}

    @app.get("/models/{name:path}")
    async def get_model(name: str) -> Any:
        service.check_model(name)
        return describe()

    return app


def _add_handlers(app: FastAPI) -> None:
    """Errors become responses in OpenAI's form."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return respond(error)

    async def handle_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(describe_invalid(error.errors()))

    for kind in (HTTPException, InputError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(RequestValidationError, handle_invalid)
