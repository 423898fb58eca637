"""Reads audio of any format, rate and number of channels as mono at 16 kHz, and writes WAV."""

import dataclasses
import functools
import io
import numbers
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from spirit_jax import files
from spirit_jax.audio_decoding import SUFFIXES as SUFFIXES
from spirit_jax.audio_decoding import decode
from spirit_jax.errors import InputError
from spirit_jax.files import unreadable, whole_file

SAMPLE_RATE = 16_000
MIN_SAMPLES = 1_280  # a shorter chunk (80 ms) has no units
MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; others are errors, and low rates need much memory

MAX_LEVEL = 100.0  # full scale is 1; larger floats are unscaled integers, such as -32768 to 32767

PIECE_TOLERANCE = 0.05  # seconds; lengths in manifests are rounded


@dataclasses.dataclass(frozen=True)
class AudioPiece:
    """A segment of a recording.

    Attributes:
      path: of the whole recording.
      start: in seconds.
      seconds: length; None up to the end. If `start` is 0 and the length differs from that of the
        recording by at most `PIECE_TOLERANCE`, the segment is the whole recording.
    """

    path: str | Path
    start: float = 0.0
    seconds: float | None = None


Audio = str | Path | bytes | np.ndarray | tuple[np.ndarray, int] | AudioPiece


def load_audio(audio: Audio, channel: int | None = None) -> np.ndarray:
    """Reads audio as mono at 16 kHz.

    Args:
      audio: a path; the bytes of a file; an array at 16 kHz; (array, rate); or a segment of a file.
        An array is (samples,), or its shorter axis is the channels; integers are scaled by the
        range of their type.
      channel: index of a channel; by default the mean of all.

    Returns:
      float32 (t,) samples in -1..1.

    Raises:
      InputError: the audio cannot be read, is truncated, has NaN or infinite samples or samples
        beyond `MAX_LEVEL`, or has no such channel.
    """
    try:
        return _load(audio, channel)
    except MemoryError as error:
        name = audio if isinstance(audio, str | Path) else "the audio"
        raise unreadable(name, error, "") from error


def _load(audio: Audio, channel: int | None) -> np.ndarray:
    if isinstance(audio, AudioPiece):
        return _load_piece(audio, channel)
    if isinstance(audio, str | Path | bytes):
        name, samples_tc, rate = decode(audio)
    else:
        name = "the array"
        if isinstance(audio, tuple) and len(audio) != 2:
            raise InputError(f"The audio is a tuple of {len(audio)}; expected (samples, rate).")
        array, rate = audio if isinstance(audio, tuple) else (audio, SAMPLE_RATE)
        samples_tc = _as_channels(array)
    if not isinstance(rate, numbers.Real) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name}: has a sampling rate of {rate}; expected Hz, such as 16000.")
    if not np.isfinite(samples_tc).all():
        raise InputError(f"{name}: has samples that are NaN or infinite.")
    loudest = max(samples_tc.max(initial=0), -samples_tc.min(initial=0))
    if loudest > MAX_LEVEL:
        raise InputError(
            f"{name}: has samples as large as {loudest:.6g}; expected -1..1 for samples that are "
            "not integers."
        )
    is_number = isinstance(channel, numbers.Integral) and not isinstance(channel, bool)
    if channel is not None and not is_number:
        raise InputError(f"A channel is a whole number from 0, not {channel!r}.")
    if channel is None:
        samples_t = samples_tc.mean(axis=1)
    elif 0 <= channel < samples_tc.shape[1]:
        samples_t = samples_tc[:, channel]
    else:
        raise InputError(f"{name}: has {samples_tc.shape[1]} channels, and no channel {channel}.")
    if rate != SAMPLE_RATE:
        samples_t = soxr.resample(samples_t, rate, SAMPLE_RATE, quality="VHQ")
    return np.ascontiguousarray(samples_t, dtype=np.float32)


def seconds(audio: str | Path | bytes) -> float:
    """The length of a recording, from its decoded samples (headers may be wrong).

    Raises:
      InputError: see `load_audio`.
    """
    _, samples_tc, rate = decode(audio)
    return len(samples_tc) / rate


def chunks(samples_t: np.ndarray, seconds: float = 100.0) -> Iterator[np.ndarray]:
    """Splits audio into chunks of `seconds`; a last chunk under 80 ms is dropped.

    Raises:
      InputError: `seconds` is under 80 ms.
    """
    size = round(seconds * SAMPLE_RATE)
    if size < MIN_SAMPLES:
        raise InputError(f"Audio cannot be split into chunks of {seconds} s; 80 ms is the least.")
    for start in range(0, len(samples_t), size):
        if len(chunk := samples_t[start : start + size]) >= MIN_SAMPLES:
            yield chunk


def write_wav(path: str | Path, samples_t: np.ndarray, overwrite: bool = True) -> None:
    """Writes mono samples at 16 kHz as 16-bit WAV, clipped to -1..1, with `files.whole_file`.

    Args:
      path: the file to write.
      samples_t: float samples.
      overwrite: whether an existing file is replaced.

    Raises:
      ExistsError: the file exists, and `overwrite` is not set.
      InputError: the file cannot be written.
    """
    path = files.as_path(path)
    if not path.name:
        raise InputError(f"'{path}': is not a name for an audio file.")
    data = io.BytesIO()  # libsndfile does not report why it cannot write a file
    soundfile.write(data, samples_t, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    with whole_file(path, overwrite) as unfinished:
        unfinished.write_bytes(data.getvalue())


def _load_piece(piece: AudioPiece, channel: int | None) -> np.ndarray:
    try:
        stat = files.as_path(piece.path).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise unreadable(piece.path, error, "there is no such file.") from error
    samples_t = _load_whole(str(piece.path), channel, stat.st_size, stat.st_mtime_ns)
    total = len(samples_t) / SAMPLE_RATE
    start = piece.start
    seconds = total - start if piece.seconds is None else piece.seconds
    if not (start >= 0 and 0 < seconds <= total - start + PIECE_TOLERANCE):
        raise InputError(
            f"{piece.path}: has {total:.2f} s; there is no segment of {seconds:.2f} s at "
            f"{start:.2f} s in it."
        )
    if start == 0 and abs(seconds - total) <= PIECE_TOLERANCE:
        return samples_t.copy()
    return samples_t[round(start * SAMPLE_RATE) : round((start + seconds) * SAMPLE_RATE)].copy()


@functools.lru_cache(maxsize=4)  # the segments of a recording are usually read in sequence
def _load_whole(path: str, channel: int | None, size: int, modified: int) -> np.ndarray:
    """A recording; `size` and `modified` are part of the cache key, since a file may change."""
    return load_audio(path, channel)


def _as_channels(array: np.ndarray) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:  # rows of unequal length
        raise InputError("The array has rows of unequal length.") from error
    if array.dtype.kind == "u":
        middle = (np.iinfo(array.dtype).max + 1) / 2
        array = (array.astype(np.float64) - middle) / middle
    elif array.dtype.kind == "i":
        array = array.astype(np.float64) / -float(np.iinfo(array.dtype).min)
    elif array.dtype.kind != "f":
        raise InputError(f"The array has values of type {array.dtype}; expected numbers.")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2 or min(array.shape) > MAX_CHANNELS:
        raise InputError(
            f"The array has shape {array.shape}; expected (samples,) or with channels."
        )
    if not array.size:  # the empty axis is time
        return np.zeros((0, max(1, *array.shape)))
    return array if array.shape[0] >= array.shape[1] else array.T
