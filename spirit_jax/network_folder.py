"""The two forms in which a network folder stores its arrays. Importing this does not import JAX.

safetensors   config.json, model.safetensors    one file, the form in which models are published
orbax         config.json, params/              a folder, written in parallel by many hosts
"""

from pathlib import Path

from spirit_jax import files
from spirit_jax.errors import InputError

FORMS = {"safetensors": "model.safetensors", "orbax": "params"}  # name of the arrays in each form
DEFAULT_FORM = "safetensors"


def check_form(form: str) -> str:
    """The form, if it is one of `FORMS`; raises `InputError` otherwise."""
    if form not in FORMS:
        raise InputError(f"The format is '{form}'; expected {' or '.join(FORMS)}.")
    return form


def has_arrays(folder: str | Path) -> bool:
    """Whether a folder has the arrays of a network, in either form."""
    return any((files.as_path(folder) / name).exists() for name in FORMS.values())


def find_arrays(folder: str | Path) -> tuple[str, Path]:
    """The form in which a network folder stores its arrays, and their absolute path.

    Raises:
      InputError: the folder has no arrays, or has them in both forms.
    """
    folder = files.as_path(folder).absolute()  # Orbax wants an absolute path
    present = [(form, folder / name) for form, name in FORMS.items() if (folder / name).exists()]
    names = " and ".join(FORMS.values())
    if not present:
        raise InputError(f"{folder}: is not a whole network folder ({names} are both absent).")
    if len(present) > 1:
        raise InputError(f"{folder}: has both {names}; remove the one that is out of date.")
    return present[0]
