"""Options and settings that several commands share."""

import glob
import logging
import os
import re
import sys
import warnings
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.errors import InputError, InputWarning

TPU_DEVICES = "/dev/accel*", "/dev/vfio"
ModelDir = Annotated[
    Path,
    typer.Argument(
        help="Model folder, a packaged model (spirit-tiny-base), or ORG/NAME on the hub"
    ),
]
Distributed = Annotated[
    bool, typer.Option(help="Join a run of several processes on a TPU pod or cluster")
]
PeerTimeout = Annotated[
    int, typer.Option(help="Seconds without heartbeat after which another process is lost")
]
Speaker = Annotated[str | None, typer.Option(help="Speaker, by name or number")]
RemoteModel = Annotated[
    str | None,
    typer.Option("--lm", help="URL of vLLM with the exported model, such as http://HOST:8000/v1"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files")]


def count_items(source: str, parts: int) -> int | None:
    """About how many items each of `parts` parts has; None if counting would take too long."""
    from spirit_jax.data.manifest import read_source

    if source.startswith("tfds:"):
        return None
    return -(-sum(1 for _ in read_source(source)) // parts)


def parse_shard(shard: str) -> tuple[int, int]:
    """(part, parts) of "I/N"; raises `InputError` for others."""
    numbers = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", shard)
    if not numbers or int(numbers[1]) > int(numbers[2]):
        raise InputError(f"--shard is '{shard}'; expected I/N with I from 1 to N, such as 1/4.")
    return int(numbers[1]), int(numbers[2])


def prepare_environment() -> None:
    """Sets environment variables that JAX and other libraries read, and hides their warnings.

    Compiled programs are cached on disk. Warnings of libraries are only printed if PYTHONWARNINGS
    or -W asks for them.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "spirit_jax" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA and TensorFlow: only errors
    # Orbax's library for paths would read buckets by TensorFlow where that is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    avoid_libtpu()
    if not sys.warnoptions and "PYTHONWARNINGS" not in os.environ:
        os.environ["PYTHONWARNINGS"] = "ignore"  # for child processes
        warnings.simplefilter("ignore")
        show_input_warnings()
        logging.disable(logging.WARNING)


def avoid_libtpu() -> None:
    """Chooses the CPU where JAX would choose it after an attempt to start a TPU.

    Where libtpu is installed, JAX asks it for a TPU at every start. Without one, libtpu prints a
    page of errors. Nothing is chosen if the user did, or if there is anything but a CPU.
    """
    chosen = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "PJRT_NAMES_AND_LIBRARY_PATHS")
    if any(name in os.environ for name in chosen) or not find_spec("libtpu"):
        return
    has_plugin = find_spec("jax_plugins") or entry_points(group="jax_plugins")
    if not has_plugin and not any(glob.glob(device) for device in TPU_DEVICES):
        os.environ["JAX_PLATFORMS"] = "cpu"


def show_input_warnings() -> None:
    """Prints each `InputWarning` as one line, and each only once."""

    def show(message, category, *rest):
        if issubclass(category, InputWarning):
            if str(message) not in shown:  # a source is counted before it is read
                print(f"warning: {message}", file=sys.stderr)
            shown.add(str(message))
        else:
            show_other(message, category, *rest)

    shown: set[str] = set()
    show_other = warnings.showwarning
    warnings.showwarning = show
    warnings.simplefilter("default", InputWarning)
