"""`spirit-jax serve`: OpenAI-compatible endpoints and a page for one model."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli import options
from spirit_jax.cli.running import EXTRAS, describe_missing
from spirit_jax.errors import InputError

KEY_VARIABLE = "SPIRIT_API_KEY"
DEFAULT_SLOTS = 2048


def serve(
    model: options.ModelDir,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of the machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the key that clients must give (or set {KEY_VARIABLE})"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model for clients; by default the folder's"),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=4096, help="Generations that decode together")
    ] = 16,
    slots: Annotated[
        int | None, typer.Option(min=2, help="Maximum tokens of a prompt and its continuation")
    ] = None,
    max_upload: Annotated[
        float, typer.Option(min=0.001, max=4096, help="Maximum size of a request in MiB")
    ] = 25,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Maximum time of a request in seconds")
    ] = 600,
    max_concurrent: Annotated[
        int, typer.Option(min=1, max=100_000, help="Maximum generations that wait or run at once")
    ] = 256,
    root_path: Annotated[
        str, typer.Option(help="Path under which a proxy publishes the server, such as /spirit")
    ] = "",
    remote: options.RemoteModel = None,
    page: Annotated[bool, typer.Option(help="Serve the page at /")] = True,
) -> None:
    """Serve a model over HTTP: OpenAI-compatible endpoints, and a page.

    Endpoints: /v1/completions, /v1/audio/speech, /v1/audio/transcriptions, /v1/models, /health and
    /metrics. The page is at /. Ctrl-C ends the server when running requests have finished, after at
    most 10 s.
    """
    require_packages()
    folder = model_folder.find_language_model(model)
    key = read_key(api_key_file)
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise InputError(f"--root-path is '{root_path}'; write it as /spirit.")
    from spirit_jax.serving import server
    from spirit_jax.serving.service import Settings
    from spirit_jax.spiritlm import SpiritLM

    # The cache folder of a model from the hub is not named after the model.
    name = name or (folder.resolve().name if model.is_dir() else str(model))
    settings = Settings(name, key, int(max_upload * (1 << 20)), timeout, max_concurrent, root_path)
    listener = server.listen(host, port)
    lm = SpiritLM.from_pretrained(model, lm=remote)
    engine = lm.engine(rows, slots or min(lm.max_tokens, DEFAULT_SLOTS))
    server.run(lm, engine, settings, listener, page)


def require_packages() -> None:
    """Raises an `InputError` if a package of the extra `serve` is not installed."""
    missing = [package for package in EXTRAS["serve"] if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(describe_missing(missing, "serve"))


def read_key(path: Path | None) -> str | None:
    """The key of a file, or that of the environment, or None.

    Raises:
      InputError: the file cannot be read, or the key is empty or has characters that a header
        cannot have.
    """
    source = KEY_VARIABLE if path is None else str(path)
    key = os.environ.get(KEY_VARIABLE) if path is None else files.read_text(path).strip()
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{source}: has no usable key; it must be printable ASCII without spaces.")
    return key
