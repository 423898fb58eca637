"""Programs of Debian's that corpora are made with."""

import subprocess

from spirit_jax.errors import InputError


def run(command: list[str], package: str) -> bytes:
    """What a program writes to standard output.

    Args:
      command: the program and its arguments.
      package: of Debian, that has it.

    Raises:
      InputError: it is not there, or fails.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: is not there; apt-get install {package}.") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"status {error.returncode}"
        raise InputError(f"{command[0]}: fails ({reason}).") from error
