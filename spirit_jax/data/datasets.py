"""Reads the items of a TensorFlow dataset."""

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from spirit_jax import files
from spirit_jax.data.items import Item
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.files import describe, unreadable

T = TypeVar("T")
FIELDS = ("id", "text", "speaker_id")  # read in addition to the audio


def read_dataset(source: str) -> Iterator[Item]:
    """The items of "tfds:NAME[/CONFIG]:SPLIT", where NAME may also be the folder of a dataset.

    Raises:
      InputError: the library is not installed, or the dataset does not exist or has no audio.
    """
    match = re.fullmatch(r"tfds:([^:]+):([^:]+)", source)
    if not match:
        raise InputError(f"'{source}': expected tfds:NAME[/CONFIG]:SPLIT.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{source}: needs tensorflow-datasets; pip install 'spirit-jax[tfds]'."
        ) from error
    name, split = match.groups()
    try:
        load_builder = tfds.builder_from_directory if files.as_path(name).is_dir() else tfds.builder
        builder = load_builder(name)
        records = builder.as_data_source(split=split)
        features = dict(builder.info.features.items())
        audio = [key for key, kind in features.items() if isinstance(kind, tfds.features.Audio)]
    except Exception as error:  # the library raises many kinds for a missing dataset
        raise InputError(f"{source}: cannot be read ({describe(error)}).") from error
    if not audio:
        raise InputError(f"{source}: has no audio.")
    ignored = [key for key in features if key not in (audio[0], *FIELDS)]
    if ignored:
        message = f"{source}: the fields {', '.join(ignored)} are ignored."
        warnings.warn(message, InputWarning, stacklevel=1)
    rate = features[audio[0]].sample_rate or 16_000
    for number, record in enumerate(_read_all(records, source)):
        samples = np.asarray(record[audio[0]])
        if np.issubdtype(samples.dtype, np.integer):
            samples = samples.astype(np.int16)  # datasets store 16-bit samples as wider integers
        texts = {field: _as_text(record.get(field)) for field in FIELDS}
        item_id = texts["id"] or f"{split}-{number}"
        yield Item(item_id, (samples, rate), texts["text"], speaker=texts["speaker_id"])


def _read_all(records: Iterable[T], source: str) -> Iterator[T]:
    """The records; an error of the library becomes an `InputError`."""
    try:
        yield from records
    except GeneratorExit:
        raise
    except Exception as error:
        reason = f"a record cannot be read ({describe(error)})."
        raise unreadable(source, error, reason) from error


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    # Bytes that are not UTF-8 become lone surrogates, for which `check_item` rejects the item.
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
