"""Checks of paths and names that need neither JAX nor a model, so that errors appear at once."""

from pathlib import Path

from spirit_jax.errors import InputError


def existing_file(path: Path) -> Path:
    """The path; raises `InputError` unless there is a file."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a file was expected.")
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    return path


def existing_folder(path: Path) -> Path:
    """The path; raises `InputError` unless there is a folder."""
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder.")
    return path


def new_file(path: Path, overwrite: bool = False) -> Path:
    """The path of a file to write.

    Raises:
      InputError: it is a folder, lies below a file, or exists and `overwrite` is not set.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write.")
    output_folder(path.absolute().parent)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name, or give --overwrite.")
    return path


def output_folder(path: Path) -> Path:
    """The path of a folder to write to; raises `InputError` where a file is in its place."""
    for place in (path, *path.absolute().parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"{place}: is a file; a folder was expected.")
            break
    return path


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """The first of STEM-0, STEM-1, ... that does not exist in a folder."""
    number = 0
    while (path := folder / f"{stem}-{number}{suffix}").exists():
        number += 1
    return path


def refuse_idle(reason: str, **options: object) -> None:
    """Raises an `InputError` that names the options which are given and would do nothing.

    Args:
      reason: why, such as "--greedy draws nothing".
      options: value by name; None, False, "" and empty lists are not given.
    """
    idle = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if value or value == 0 and value is not False
    ]
    if idle:
        raise InputError(f"{reason}: {' and '.join(idle)} would do nothing; leave it out.")
