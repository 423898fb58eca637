"""Targets for training HuBERT: a label for every frame of a corpus, computed once and cached.

Letters: b batch, t time (samples, then frames), n frames of many recordings, d feature width,
v clusters.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spirit_jax import bucketing, files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.data.progress import watch
from spirit_jax.errors import InputError
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertUnits
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig
from spirit_jax.training import kmeans, recording_cache
from spirit_jax.training.hubert import mfcc
from spirit_jax.training.kmeans import KMeansConfig

BUCKET_SECONDS = (2, 4, 8, 16, 32, 64, 101)  # audio is padded to one of these lengths
PIECE_SECONDS = 100  # longer recordings are split into pieces of this length
BATCH_SECONDS = 64  # of audio in a batch
GROUP = 64  # recordings in memory
FOLDER = "targets"  # of a run: the cache of labels

# From padded (wave_bt, lengths_b) to a value or vector for each frame, and the numbers of frames
# without padding.
FrameFunction = Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and the label of each of its frames, int32 (t,)."""

    item: Item
    labels_t: np.ndarray


def segment_size(seconds: float, trunk: TrunkConfig) -> tuple[int, int]:
    """The number of frames of a segment, at least one, and the number of samples they cover."""
    frames = max(round(seconds * SAMPLE_RATE / trunk.stride), 1)
    return frames, (frames - 1) * trunk.stride + trunk.receptive_field


def draw_segment(
    recording: Recording, seconds: float, trunk: TrunkConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a segment of a recording.

    Args:
      recording: with labels; if it is shorter than the segment, all of it is used.
      seconds: length of the segment.
      trunk: its stride and receptive field are used.
      rng: random generator.

    Returns:
      Samples, float32, and labels, int32.
    """
    frames, size = segment_size(seconds, trunk)
    samples_t, labels_t = load_audio(recording.item.audio), recording.labels_t
    # Segments start at a frame of the recording, so that its labels are valid.
    first = int(rng.integers(max(len(labels_t) - frames, 0) + 1))
    return samples_t[first * trunk.stride :][:size], labels_t[first : first + frames]


def mfcc_features(trunk: TrunkConfig) -> FrameFunction:
    """The features of the first iteration: MFCC at the frames of a trunk."""
    return jax.jit(lambda wave_bt, lengths_b: mfcc.mfcc(wave_bt, lengths_b, trunk))


def network_features(trunk: TrunkConfig, params: Any) -> FrameFunction:
    """The features of later iterations: the output of a trunk."""
    apply = jax.jit(lambda params, *audio: Trunk(trunk).apply({"params": params}, *audio))
    params = jax.device_put(params)
    return lambda *audio: apply(params, *audio)


def network_units(model: HubertUnits, params: Any) -> FrameFunction:
    """The units of an encoder and its quantizer, with blanks."""
    apply = jax.jit(lambda params, *audio: model.apply({"params": params}, *audio))
    params = jax.device_put(params)
    return lambda *audio: apply(params, *audio)


def cut(trunk: TrunkConfig, params: Any, layer: int) -> tuple[TrunkConfig, Any]:
    """Removes the layers after an inner layer of a trunk.

    Args:
      trunk: config.
      params: parameters of the trunk.
      layer: the last layer to keep, from 1; 0 for all layers.

    Returns:
      Config and parameters of the shorter trunk.

    Raises:
      InputError: there is no such layer.
    """
    if not 0 <= layer <= trunk.num_layers:
        raise InputError(f"There is no layer {layer}; the network has {trunk.num_layers}.")
    if layer in (0, trunk.num_layers):
        return trunk, params
    kept = {str(number): params["layers"][str(number)] for number in range(layer)}
    params = {**params, "layers": kept}
    # The final norm follows the last layer of pre-norm networks, and precedes post-norm layers.
    if trunk.norm_first:
        params.pop("norm", None)
    final_norm = trunk.final_norm and not trunk.norm_first
    return dataclasses.replace(trunk, num_layers=layer, final_norm=final_norm), params


def compute_features(
    items: Sequence[Item], function: FrameFunction, trunk: TrunkConfig
) -> Iterator[np.ndarray]:
    """Computes the features or units of recordings.

    Recordings of over 100 s are computed in pieces, which together have as many frames as the
    recording.

    Args:
      items: the recordings.
      function: jitted; see `FrameFunction`.
      trunk: its stride and receptive field are used.

    Yields:
      (t, ...) for each recording, in order.
    """
    size = PIECE_SECONDS * SAMPLE_RATE // trunk.stride * trunk.stride
    # The receptive field of the last frame of a piece reaches into the next piece.
    overlap = trunk.receptive_field - trunk.stride
    buckets = [seconds * SAMPLE_RATE for seconds in BUCKET_SECONDS]
    for first in range(0, len(items), GROUP):
        waves = [load_audio(item.audio) for item in items[first : first + GROUP]]
        starts_of = [range(0, max(len(wave), 1), size) for wave in waves]
        pieces = [
            (wave[start : start + size + overlap],)
            for wave, starts in zip(waves, starts_of, strict=True)
            for start in starts
        ]
        rows = lambda bucket: max(1, BATCH_SECONDS * SAMPLE_RATE // bucket)  # noqa: E731
        outputs = iter(bucketing.run(function, pieces, buckets, rows))
        for starts in starts_of:
            yield np.concatenate([next(outputs) for _ in starts])


def find_centroids(
    items: Sequence[Item],
    function: FrameFunction,
    trunk: TrunkConfig,
    clusters: int,
    config: KMeansConfig,
) -> np.ndarray:
    """Fits k-means to the features of randomly chosen recordings.

    Args:
      items: recordings to choose from.
      function, trunk: see `compute_features`.
      clusters: number of clusters.
      config: number of frames to fit to, and settings of k-means.

    Returns:
      Centroids, float32 (v, d).
    """
    order = np.random.default_rng(config.seed).permutation(len(items))
    sample, frames = [], 0
    features = compute_features([items[index] for index in order], function, trunk)
    for values_td in watch(features, "recordings for clusters", len(items)):
        sample.append(values_td)
        frames += len(values_td)
        if frames >= config.frames:
            break
    return kmeans.fit(np.concatenate(sample)[: config.frames], clusters, config)


def label(
    items: Sequence[Item], function: FrameFunction, trunk: TrunkConfig, centroids_vd: np.ndarray
) -> list[np.ndarray]:
    """The cluster of each frame of recordings, int32 (t,); see `compute_features`."""
    features = compute_features(items, function, trunk)
    return [kmeans.assign(values_td, centroids_vd) for values_td in features]


def label_by_units(
    items: Sequence[Item], function: FrameFunction, trunk: TrunkConfig, blank: int
) -> list[np.ndarray]:
    """The unit of each frame of recordings, int32 (t,), without blanks; see `compute_features`."""
    units = compute_features(items, function, trunk)
    return [hubert.fill_blanks(units_t, blank) for units_t in units]


def with_labels(items: Sequence[Item], labels: Sequence[np.ndarray]) -> list[Recording]:
    """The recordings that are long enough for a frame, with labels.

    Raises:
      InputError: all recordings are too short.
    """
    pairs = zip(items, labels, strict=True)
    recordings = [Recording(item, labels_t) for item, labels_t in pairs if len(labels_t)]
    if not recordings:
        raise InputError(f"None of the {len(items)} recordings is long enough to have a frame.")
    return recordings


def cached_labels(
    run_dir: str | Path,
    settings: str,
    items: Sequence[Item],
    label: Callable[[Sequence[Item]], list[np.ndarray]],
    key: Callable[[Item], bytes] = fingerprint,
) -> list[np.ndarray]:
    """The labels of recordings, int32 (t,), from the cache in the run's folder `targets`.

    Args:
      run_dir: folder of the run.
      settings, items, key: see `recording_cache.read`.
      label: computes the labels of some recordings.
    """

    def compute(items: Sequence[Item]) -> list[recording_cache.Arrays]:
        return [{"labels": labels_t} for labels_t in label(items)]

    folder = files.as_path(run_dir) / FOLDER
    rows = recording_cache.read(folder, settings, items, compute, "labels", key=key)
    return [row["labels"] for row in rows]
