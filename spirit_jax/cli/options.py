"""What several commands share. Only in this package is the environment read."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.errors import InputWarning

ModelDir = Annotated[
    Path, typer.Argument(help="Model folder, or a packaged model such as spirit-tiny-base")
]
Distributed = Annotated[
    bool, typer.Option(help="One of several processes, as a pod's or a cluster's says")
]
PeerTimeout = Annotated[
    int, typer.Option(help="Of several processes: seconds until a silent one counts as lost")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist")]


def count_items(source: str, parts: int) -> int | None:
    """About how many items of a source are a part's; None where counting would take long."""
    from spirit_jax.data.manifest import read_source

    if source.startswith("tfds:"):
        return None
    return -(-sum(1 for _ in read_source(source)) // parts)


def prepare_environment() -> None:
    """What JAX and other libraries look at when they are imported, and what they may print.

    Compiled programs are kept on disk for the next start. Warnings of libraries, which a user can
    do nothing about, are not printed, unless PYTHONWARNINGS or -W asks for them.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "spirit_jax" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA and TensorFlow: errors alone
    if not sys.warnoptions and "PYTHONWARNINGS" not in os.environ:
        os.environ["PYTHONWARNINGS"] = "ignore"  # for processes that are started later
        warnings.simplefilter("ignore")
        show_input_warnings()
        logging.disable(logging.WARNING)


def show_input_warnings() -> None:
    """Prints this package's own warnings, which are about the input, as one line each."""

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
