"""Reference-speaker targets, aligned by DTW.

Letters: t frames of a recording, u frames of its reference, d feature width, v clusters.

Clusters of spectral features depend on the speaker as much as on the phones. If a reference speaker
has a recording of the same text, the two are aligned by dynamic time warping (Sakoe and Chiba,
1978), and the frames of the recording get the labels of the reference. Units of one reference
speaker as targets are the speaker normalisation of arXiv 2112.08352, which aligns by CTC.
"""

from collections.abc import Sequence

import librosa
import numpy as np

from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training import kmeans
from spirit_jax.training.hubert import targets
from spirit_jax.training.hubert.targets import FrameFunction


def read_references(source: str) -> dict[str, Item]:
    """The recordings of a manifest by their text.

    Raises:
      InputError: a recording has no text, or not all have the same speaker.
    """
    items = read_items([source])
    for item in items:
        if not item.text or item.speaker != items[0].speaker:
            raise InputError(
                f"{source}: {item.id} must have a text, and the same speaker as all others."
            )
    return {item.text: item for item in items}


def label(
    items: Sequence[Item],
    references: dict[str, Item],
    features: FrameFunction,
    trunk: TrunkConfig,
    centroids_vd: np.ndarray,
    alignment_features: FrameFunction,
) -> list[np.ndarray]:
    """Labels recordings with the clusters of the aligned frames of their references.

    A recording without a reference is labelled with the clusters of its own frames.

    Args:
      items: the recordings.
      references: recordings of the reference speaker by text.
      features: the features that were clustered.
      trunk: its stride and receptive field are used.
      centroids_vd: float32, of the clusters.
      alignment_features: the features for DTW; those of a trained network align better.

    Returns:
      int32 (t,) for each recording.

    Raises:
      InputError: a reference is too short to have a frame.
    """
    if not references:
        return targets.label(items, features, trunk, centroids_vd)
    matches = [references.get(item.text, item) for item in items]
    streams = zip(
        matches,
        targets.compute_features(items, alignment_features, trunk),
        targets.compute_features(matches, alignment_features, trunk),
        targets.compute_features(matches, features, trunk),
        strict=True,
    )
    labels = []
    for match, values_td, others_ud, clustered_ud in streams:
        if len(values_td) and not len(others_ud):
            raise InputError(f"{match.id}: is a reference that is too short to have a frame.")
        labels.append(kmeans.assign(clustered_ud, centroids_vd)[align(values_td, others_ud)])
    return labels


def align(values_td: np.ndarray, others_ud: np.ndarray) -> np.ndarray:
    """Aligns two recordings by DTW with cosine distances.

    Args:
      values_td: features of a recording.
      others_ud: features of another recording, which must have a frame if the first one has.

    Returns:
      int (t,), non-decreasing: for each frame the aligned frame of the other recording; of several
      aligned frames the middle one.
    """
    if not len(values_td):
        return np.zeros(0, int)
    _, path = librosa.sequence.dtw(_unit(values_td).T, _unit(others_ud).T)
    path_t, path_u = path[::-1].T
    frames = np.arange(len(values_td))
    first, last = np.searchsorted(path_t, frames), np.searchsorted(path_t, frames, "right") - 1
    return path_u[(first + last) // 2]


def _unit(values_td: np.ndarray) -> np.ndarray:
    return values_td / np.maximum(np.linalg.norm(values_td, axis=-1, keepdims=True), 1e-6)
