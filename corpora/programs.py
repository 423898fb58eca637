"""Runs the Debian programs that corpora are built with."""

import subprocess

from spirit_jax.errors import InputError


def run(command: list[str], package: str) -> bytes:
    """Runs a program and returns its standard output.

    Args:
      command: the program and its arguments.
      package: the Debian package that has it.

    Raises:
      InputError: the program is not installed, or it fails.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: is not there; apt-get install {package}.") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"status {error.returncode}"
        raise InputError(f"{command[0]}: fails ({reason}).") from error
