"""Style labels of every second of a recording: clusters of features, or styles of a manifest.

Letters: d features, l styles, s units of a recording.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spirit_jax.audio import load_audio
from spirit_jax.data.manifest import Item
from spirit_jax.errors import InputError
from spirit_jax.training import kmeans
from spirit_jax.training.kmeans import KMeansConfig
from spirit_jax.training.style import features as style_features

NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A recording with style labels.

    Attributes:
      item: the recording.
      labels_s: int32, the style of each second; `NO_LABEL` if unknown.
    """

    item: Item
    labels_s: np.ndarray


@dataclasses.dataclass(frozen=True)
class Labels:
    """All recordings with labels.

    Attributes:
      train, held_out: recordings.
      names: description of each style.
    """

    train: list[Labelled]
    held_out: list[Labelled]
    names: list[str]


def label_by_features(
    train: Sequence[Item],
    held_out: Sequence[Item],
    train_features: Sequence[np.ndarray],
    held_out_features: Sequence[np.ndarray],
    num_styles: int,
    seed: int,
) -> Labels:
    """Labels each second with a cluster of standardised features; k-means is fitted to `train`.

    Args:
      train, held_out: recordings.
      train_features, held_out_features: features of each recording, (s, d), see `features`.
      num_styles: number of clusters.
      seed: of k-means.

    Returns:
      The labels of all recordings.

    Raises:
      InputError: there are fewer seconds than styles.
    """
    mean_d, deviation_d = style_features.standardise(train_features)
    scaled = [(values_sd - mean_d) / deviation_d for values_sd in train_features]
    settings = KMeansConfig(seed=seed)
    centres_ld = kmeans.fit(np.concatenate(scaled), num_styles, settings)

    def label(items, features):
        return [
            Labelled(item, kmeans.assign((values_sd - mean_d) / deviation_d, centres_ld))
            for item, values_sd in zip(items, features, strict=True)
        ]

    names = [_describe(centre_d) for centre_d in centres_ld]
    return Labels(label(train, train_features), label(held_out, held_out_features), names)


def label_by_manifest(
    train: Sequence[Item], held_out: Sequence[Item], num_styles: int, unit_samples: int
) -> Labels:
    """Labels recordings by (speaker, style) pairs of `train`, in alphabetical order.

    Args:
      train, held_out: recordings; other pairs in `held_out` are unknown.
      num_styles: largest number of pairs.
      unit_samples: samples of a style unit.

    Returns:
      The labels of all recordings.

    Raises:
      InputError: no recording has a style, or there are more than `num_styles`.
    """
    pairs = sorted({(item.speaker, item.style) for item in train if item.style})
    if not pairs:
        raise InputError("labels is 'manifest', but no recording has a 'style'.")
    if len(pairs) > num_styles:
        raise InputError(
            f"The manifests have {len(pairs)} styles (of all speakers); network.num_styles is "
            f"{num_styles}."
        )
    places = {pair: place for place, pair in enumerate(pairs)}

    def label(items):
        labelled = []
        for item in items:
            units = -(-len(load_audio(item.audio)) // unit_samples)
            place = places.get((item.speaker, item.style), NO_LABEL)
            labelled.append(Labelled(item, np.full(units, place, np.int32)))
        return labelled

    return Labels(label(train), label(held_out), ["/".join(pair) for pair in pairs])


def _describe(centre_d: np.ndarray) -> str:
    """The two features furthest from their mean, in standard deviations."""
    first = np.argsort(-np.abs(centre_d))[:2]
    return ", ".join(f"{style_features.NAMES[i]} {centre_d[i]:+.1f}" for i in first)
