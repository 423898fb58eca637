"""What a training of units aims at: a label for every frame of a corpus, made once and kept.

Letters: b batch, t time (samples, then frames), n frames of many recordings, d feature width,
v clusters.
"""

import dataclasses
import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from spirit_jax.training import kmeans
from spirit_jax.training.hubert import mfcc
from spirit_jax.training.kmeans import KMeansConfig

BUCKET_SECONDS = (2, 4, 8, 16, 32, 64, 101)  # audio is padded to these
PIECE_SECONDS = 100  # longer recordings are taken in pieces of this length
BATCH_SECONDS = 64  # of audio that a network hears at once
GROUP = 64  # recordings in memory
LABELLED = "recordings labelled"

# Jitted, of padded (wave_bt, lengths_b): a value or a vector a frame, and true numbers of frames.
Heard = Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and the label of every frame that a trunk gives for it, int32 (t,)."""

    item: Item
    labels_t: np.ndarray


def segment_size(seconds: float, trunk: TrunkConfig) -> tuple[int, int]:
    """Frames of a segment, at least one, and the samples that they are made of."""
    frames = max(round(seconds * SAMPLE_RATE / trunk.stride), 1)
    return frames, (frames - 1) * trunk.stride + trunk.receptive_field


def draw_segment(
    recording: Recording, seconds: float, trunk: TrunkConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and labels of a segment from a place drawn at random; all where there is no more."""
    frames, size = segment_size(seconds, trunk)
    samples_t, labels_t = load_audio(recording.item.audio), recording.labels_t
    # Segments begin where a frame does, so that the recording's labels are theirs.
    first = int(rng.integers(max(len(labels_t) - frames, 0) + 1))
    return samples_t[first * trunk.stride :][:size], labels_t[first : first + frames]


def spectral(trunk: TrunkConfig) -> Heard:
    """The features of a first iteration: MFCC and differences, where `trunk` has its frames."""
    return jax.jit(lambda wave_bt, lengths_b: mfcc.mfcc(wave_bt, lengths_b, trunk))


def inner(trunk: TrunkConfig, params: Any) -> Heard:
    """The features of a later iteration: a network's last layer."""
    apply = jax.jit(lambda params, *audio: Trunk(trunk).apply({"params": params}, *audio))
    params = jax.device_put(params)
    return lambda *audio: apply(params, *audio)


def units_of(model: HubertUnits, params: Any) -> Heard:
    """The units of an encoder and its quantizer, blanks as they come."""
    apply = jax.jit(lambda params, *audio: model.apply({"params": params}, *audio))
    params = jax.device_put(params)
    return lambda *audio: apply(params, *audio)


def cut(trunk: TrunkConfig, params: Any, layer: int) -> tuple[TrunkConfig, Any]:
    """The trunk that ends with the output of a layer, counted from 1; 0 leaves it whole.

    Raises:
      InputError: it has no such layer.
    """
    if not 0 <= layer <= trunk.num_layers:
        raise InputError(f"There is no layer {layer}; the network has {trunk.num_layers}.")
    if layer in (0, trunk.num_layers):
        return trunk, params
    kept = {str(number): params["layers"][str(number)] for number in range(layer)}
    params = {**params, "layers": kept}
    # The norm of a pre-norm network follows its last layer; a post-norm one's stands before all.
    if trunk.norm_first:
        params.pop("norm", None)
    final_norm = trunk.final_norm and not trunk.norm_first
    return dataclasses.replace(trunk, num_layers=layer, final_norm=final_norm), params


def hear(items: Sequence[Item], heard: Heard, trunk: TrunkConfig) -> Iterator[np.ndarray]:
    """What `heard` gives for each recording, (t, ...), in order.

    Recordings of over 100 s are heard in pieces, which come together to as many frames as the
    whole has.
    """
    size = PIECE_SECONDS * SAMPLE_RATE // trunk.stride * trunk.stride
    beyond = trunk.receptive_field - trunk.stride  # what a piece's last frame sees of the next
    buckets = [seconds * SAMPLE_RATE for seconds in BUCKET_SECONDS]
    for first in range(0, len(items), GROUP):
        waves = [load_audio(item.audio) for item in items[first : first + GROUP]]
        starts = [range(0, max(len(wave), 1), size) for wave in waves]
        pieces = [
            (wave[start : start + size + beyond],)
            for wave, places in zip(waves, starts, strict=True)
            for start in places
        ]
        rows = lambda bucket: max(1, BATCH_SECONDS * SAMPLE_RATE // bucket)  # noqa: E731
        made = iter(bucketing.run(heard, pieces, buckets, rows))
        for places in starts:
            yield np.concatenate([next(made) for _ in places])


def find_centroids(
    items: Sequence[Item], heard: Heard, trunk: TrunkConfig, clusters: int, config: KMeansConfig
) -> np.ndarray:
    """Centroids, float32 (v, d), of the features of a sample of recordings."""
    order = np.random.default_rng(config.seed).permutation(len(items))
    sample, frames = [], 0
    features = hear([items[place] for place in order], heard, trunk)
    for values_td in watch(features, "recordings for clusters", len(items)):
        sample.append(values_td)
        frames += len(values_td)
        if frames >= config.frames:
            break
    return kmeans.fit(np.concatenate(sample)[: config.frames], clusters, config)


def label(
    items: Sequence[Item], heard: Heard, trunk: TrunkConfig, centroids_vd: np.ndarray
) -> list[np.ndarray]:
    """The cluster of every frame of recordings, int32 (t,) each."""
    features = watch(hear(items, heard, trunk), LABELLED, len(items))
    return [kmeans.assign(values_td, centroids_vd) for values_td in features]


def label_by_units(
    items: Sequence[Item], heard: Heard, trunk: TrunkConfig, blank: int
) -> list[np.ndarray]:
    """The unit of every frame of recordings, int32 (t,) each."""
    found = watch(hear(items, heard, trunk), LABELLED, len(items))
    return [hubert.fill_blanks(units_t, blank) for units_t in found]


def with_labels(items: Sequence[Item], labels: Sequence[np.ndarray]) -> list[Recording]:
    """Recordings with their labels; those too short for a frame are left out.

    Raises:
      InputError: all are too short.
    """
    pairs = zip(items, labels, strict=True)
    found = [Recording(item, labels_t) for item, labels_t in pairs if len(labels_t)]
    if not found:
        raise InputError(f"None of the {len(items)} recordings is long enough to have a frame.")
    return found


def keep(
    path: Path, made_of: str, items: Sequence[Item], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The labels of a run, made at its start and read from `path` when it goes on.

    Args:
      path: of an .npz file, written whole or not at all.
      made_of: what labels depend on besides the recordings.
      items: the recordings.
      make: gives "labels", a list of int32 (t,), and other arrays by name.

    Raises:
      InputError: the file is there, and was made of something else.
    """
    made_of_all = hashlib.sha256(f"{made_of} {digest(items)}".encode()).hexdigest()
    if path.exists():
        try:
            with np.load(path) as arrays:
                kept = dict(arrays)
        except Exception as error:  # whatever a damaged file makes the libraries raise
            raise files.unreadable(
                path, error, "is damaged; remove it, and it is made again."
            ) from error
        if str(kept.pop("digest", "")) != made_of_all:
            raise InputError(
                f"{path}: was made of other recordings, texts, targets or settings, so its labels "
                "mean something else now; use another run_dir."
            )
        ends = np.cumsum(kept.pop("lengths"))[:-1]
        return {**kept, "labels": np.split(kept["labels"], ends)}
    made = make()
    arrays = {
        **made,
        "labels": np.concatenate(made["labels"]),
        "lengths": np.array([len(labels_t) for labels_t in made["labels"]]),
        "digest": np.array(made_of_all),
    }
    data = io.BytesIO()
    np.savez(data, **arrays)
    # Every host of a run writes the same, each to another name before.
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with files.whole_file(mine) as unfinished:
        unfinished.write_bytes(data.getvalue())
    mine.replace(path)
    return made


def digest(items: Iterable[Item]) -> str:
    """The SHA-256 of what tells these recordings from others (`manifest.fingerprint`)."""
    found = hashlib.sha256()
    for item in items:
        found.update(b"\n" + fingerprint(item))
    return found.hexdigest()
