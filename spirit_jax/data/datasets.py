"""A TensorFlow dataset as a source."""

import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spirit_jax.data.items import Item
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.files import describe, unreadable

T = TypeVar("T")
FIELDS = ("id", "text", "speaker_id")  # that items are made of, beside the audio


def read_dataset(source: str) -> Iterator[Item]:
    """The records of "tfds:NAME[/CONFIG]:SPLIT", or of the folder of a dataset in place of a name.

    Raises:
      InputError: the library or the dataset is not there, or the dataset has no audio.
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
        make = tfds.builder_from_directory if Path(name).is_dir() else tfds.builder
        builder = make(name)
        records = builder.as_data_source(split=split)
        features = dict(builder.info.features.items())
        audio = [key for key, one in features.items() if isinstance(one, tfds.features.Audio)]
    except Exception as error:  # whatever the library raises for a corpus that is not there
        raise InputError(f"{source}: cannot be read ({describe(error)}).") from error
    if not audio:
        raise InputError(f"{source}: has no audio.")
    others = [key for key in features if key not in (audio[0], *FIELDS)]
    if others:
        warnings.warn(f"{source}: does not read {', '.join(others)}.", InputWarning, stacklevel=1)
    rate = features[audio[0]].sample_rate or 16_000
    for number, record in enumerate(_read_all(records, source)):
        samples = np.asarray(record[audio[0]])
        if np.issubdtype(samples.dtype, np.integer):
            samples = samples.astype(np.int16)  # the datasets keep 16 bits in wider integers
        texts = {field: _as_text(record.get(field)) for field in FIELDS}
        item_id = texts["id"] or f"{split}-{number}"
        yield Item(item_id, (samples, rate), texts["text"], speaker=texts["speaker_id"])


def _read_all(records: Iterable[T], source: str) -> Iterator[T]:
    """The records, and an `InputError` for whatever the library raises for one."""
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
    # Bytes that are no UTF-8 become lone surrogates, with which the item is refused.
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
