"""What style each second of a recording has: clusters of style features, or what a manifest says.

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
    """A recording to learn from.

    Attributes:
      item: where the audio is.
      labels_s: int32, the style of each second; `NO_LABEL` where it is not known.
    """

    item: Item
    labels_s: np.ndarray


@dataclasses.dataclass(frozen=True)
class Labels:
    """All recordings with their labels.

    Attributes:
      train, held_out: recordings.
      names: what each style is, in words.
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
    """Each second's cluster; the clusters are found on `train`, with every feature's deviation 1.

    Args:
      train, held_out: recordings.
      train_features, held_out_features: of each, (s, d), see `features`.
      num_styles: how many clusters.
      seed: of the first ones.

    Raises:
      InputError: there are fewer seconds than styles.
    """
    mean_d, deviation_d = style_features.standardise(train_features)
    scaled = [(one - mean_d) / deviation_d for one in train_features]
    settings = KMeansConfig(seed=seed)
    centres_ld = kmeans.fit(np.concatenate(scaled), num_styles, settings)

    def label(items, features):
        return [
            Labelled(item, kmeans.assign((one - mean_d) / deviation_d, centres_ld))
            for item, one in zip(items, features, strict=True)
        ]

    names = [_describe(centre_d) for centre_d in centres_ld]
    return Labels(label(train, train_features), label(held_out, held_out_features), names)


def label_by_manifest(
    train: Sequence[Item], held_out: Sequence[Item], num_styles: int, unit_samples: int
) -> Labels:
    """A style for each speaker and manner of `train`, in alphabetical order; others are not known.

    Raises:
      InputError: no recording has a style, or there are more than `num_styles`.
    """
    pairs = sorted({(item.speaker, item.style) for item in train if item.style})
    if not pairs:
        raise InputError("labels is 'manifest', and no recording has a 'style'.")
    if len(pairs) > num_styles:
        raise InputError(
            f"The manifests have {len(pairs)} styles (of all speakers); network.num_styles is "
            f"{num_styles}."
        )
    places = {pair: place for place, pair in enumerate(pairs)}

    def label(items):
        found = []
        for item in items:
            units = -(-len(load_audio(item.audio)) // unit_samples)
            place = places.get((item.speaker, item.style), NO_LABEL)
            found.append(Labelled(item, np.full(units, place, np.int32)))
        return found

    return Labels(label(train), label(held_out), ["/".join(pair) for pair in pairs])


def _describe(centre_d: np.ndarray) -> str:
    """The two features that are furthest from their mean, in deviations."""
    first = np.argsort(-np.abs(centre_d))[:2]
    return ", ".join(f"{style_features.NAMES[i]} {centre_d[i]:+.1f}" for i in first)
