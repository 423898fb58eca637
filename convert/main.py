"""What every conversion command shares."""

import sys
from collections.abc import Callable

from spirit_jax.errors import InputError


def run_main(main: Callable[[], None]) -> None:
    """Runs a command; an `InputError` is one line on standard error and exit status 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
