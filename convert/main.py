"""What every conversion command shares."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from spirit_jax.errors import InputError


def run_main(main: Callable[[], None]) -> None:
    """Runs a command; an `InputError` is one line on standard error and exit status 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write into that gets the name `output` at the end, or is gone after an error.

    Raises:
      InputError: something exists at `output` already.
    """
    output = Path(output).absolute()
    if output.exists():
        raise InputError(f"{output}: exists already; remove it or choose another output.")
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
