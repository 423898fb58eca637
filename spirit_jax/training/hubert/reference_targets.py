"""Labels from one voice that says the same: they tell what is said, and less who says it.

Letters: t frames of a recording, u frames of its reference, d feature width, v clusters.

Clusters of spectral features tell voices apart as much as sounds. Where one voice, the reference,
says the same sentence as a recording, the two are aligned by dynamic time warping (Sakoe and Chiba,
1978), and the recording's frames take the reference's labels. That one voice's units are the aim of
all is the speaker normalisation of arXiv 2112.08352, which aligns by CTC.
"""

from collections.abc import Sequence

import librosa
import numpy as np

from spirit_jax.data.manifest import Item
from spirit_jax.data.progress import watch
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training import kmeans
from spirit_jax.training.hubert import targets
from spirit_jax.training.hubert.targets import Heard


def read_references(source: str) -> dict[str, Item]:
    """The recordings of a manifest by what they say.

    Raises:
      InputError: one does not say it, or has another speaker than the others.
    """
    items = read_items([source])
    for item in items:
        if not item.text or item.speaker != items[0].speaker:
            raise InputError(
                f"{source}: {item.id} must have a text, and the speaker of all others."
            )
    return {item.text: item for item in items}


def label(
    items: Sequence[Item],
    references: dict[str, Item],
    heard: Heard,
    trunk: TrunkConfig,
    centroids_vd: np.ndarray,
    compared: Heard,
) -> list[np.ndarray]:
    """The cluster of the reference's frame at every frame of recordings, int32 (t,) each.

    A recording without a reference has the clusters of its own frames.

    Args:
      items: the recordings.
      references: by what they say.
      heard: the features that centroids are of.
      trunk: tells where frames lie.
      centroids_vd: of clusters.
      compared: the features by which frames are aligned; those of a network that knows sounds from
        voices align better.

    Raises:
      InputError: a reference is too short to have a frame.
    """
    if not references:
        return targets.label(items, heard, trunk, centroids_vd)
    partners = [references.get(item.text, item) for item in items]
    streams = zip(
        partners,
        targets.hear(items, compared, trunk),
        targets.hear(partners, compared, trunk),
        targets.hear(partners, heard, trunk),
        strict=True,
    )
    labels = []
    for partner, values_td, others_ud, clustered_ud in watch(streams, targets.LABELLED, len(items)):
        if len(values_td) and not len(others_ud):
            raise InputError(f"{partner.id}: is a reference too short to have a frame.")
        labels.append(kmeans.assign(clustered_ud, centroids_vd)[align(values_td, others_ud)])
    return labels


def align(values_td: np.ndarray, others_ud: np.ndarray) -> np.ndarray:
    """For each frame the one of another recording that goes with it, int (t,), never going back.

    Of several that go with it the middle one is taken. Frames are alike by their direction. The
    other recording must have a frame if this one has.
    """
    if not len(values_td):
        return np.zeros(0, int)
    _, path = librosa.sequence.dtw(_unit(values_td).T, _unit(others_ud).T)
    own, other = path[::-1].T
    frames = np.arange(len(values_td))
    first, last = np.searchsorted(own, frames), np.searchsorted(own, frames, "right") - 1
    return other[(first + last) // 2]


def _unit(values_td: np.ndarray) -> np.ndarray:
    return values_td / np.maximum(np.linalg.norm(values_td, axis=-1, keepdims=True), 1e-6)
