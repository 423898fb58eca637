"""Checks of paths and names that need neither JAX nor a model, so that errors appear at once."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer

from spirit_jax import config, files, model_folder
from spirit_jax.errors import ExistsError, InputError
from spirit_jax.models.vocoder_configs import HifiGanConfig


def existing_file(path: Path) -> Path:
    """The path; raises `InputError` unless it is that of a file."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file.")
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    return path


def existing(path: Path) -> Path:
    """The path; raises `InputError` unless it is that of a file or a folder."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder.")
    return path


def empty_folder(path: Path) -> Path:
    """The path of a folder to fill; raises `InputError` if it is not empty."""
    output_folder(path)
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: is not empty; choose another folder.")
    return path


def new_file(path: Path, overwrite: bool | None = None) -> Path:
    """The path of a file to write.

    Args:
      path: to check.
      overwrite: whether --overwrite is given; None for a command without this option.

    Returns:
      The path.

    Raises:
      InputError: the path is a folder, a parent of it is a file, or it exists and `overwrite` is
        not set.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write.")
    output_folder(path.absolute().parent)
    if path.exists() and not overwrite:
        if overwrite is None:
            raise InputError(f"{path}: exists already; remove it or choose another name.")
        raise InputError(f"{path}: exists already; choose another name, or give --overwrite.")
    return path


def output_folder(path: Path) -> Path:
    """The path of a folder to write to; raises `InputError` if it or a parent is a file."""
    parents = () if files.is_bucket(path) else path.absolute().parents
    for folder in (path, *parents):
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"{folder}: is a file; expected a folder.")
            break
    return path


def voice(model: Path, speaker: str | None, style: str | None = None) -> None:
    """Checks a speaker and a style before the networks are loaded.

    Args:
      model: model or speech tokenizer, by folder or name.
      speaker, style: by name or number; None for the default.

    Raises:
      InputError: the model has no vocoder, or this has no such speaker or style.
    """
    folder = model_folder.find_speech_tokenizer(model)
    network = model_folder.find_network(folder, "hifigan")
    if not network.is_dir():
        raise InputError(f"{folder}: has no vocoder, so it cannot decode units.")
    config.read(HifiGanConfig, network / "config.json").find_voice(speaker, style)


def write_numbered(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Writes the first of STEM-0, STEM-1, ... that does not exist in a folder.

    Args:
      folder, stem, suffix: of the file.
      write: writes a file; raises `ExistsError` if another process wrote that one meanwhile.

    Returns:
      The path of the file.
    """
    for number in itertools.count():
        path = folder / f"{stem}-{number}{suffix}"
        if not path.exists():
            with contextlib.suppress(ExistsError):
                write(path)
                return path
    raise AssertionError  # not reached


@contextlib.contextmanager
def naming_options(context: typer.Context) -> Iterator[None]:
    """Within this context "top_p is 2" in an `InputError` becomes "--top-p is 2"."""
    try:
        yield
    except InputError as error:
        name, _, rest = str(error).partition(" ")
        if name in context.params:
            raise InputError(f"--{name.replace('_', '-')} {rest}") from error
        raise


def refuse_idle(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raises an `InputError` if options are given that would have no effect.

    Args:
      context: of the command.
      names: parameters, such as "top_p".
      reason: why they have no effect, such as "--greedy samples no token".

    Raises:
      InputError: one of the options is given; the message names all that are.
    """
    idle = [f"--{name.replace('_', '-')}" for name in names if is_given(context, name)]
    if idle:
        raise InputError(f"{reason}, so {' and '.join(idle)} would do nothing; leave it out.")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter is given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
