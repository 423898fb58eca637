"""Trains the style encoder: a classifier of every second of a recording.

Letters: b batch, t time (samples), s units (seconds), l styles.

Spirit LM (arXiv 2402.05755) fine-tunes wav2vec 2.0 to predict clusters of style features, averaged
over a second. Its labels and features are not published; here labels are clusters of `features`, or
styles of a manifest.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spirit_jax import checkpoint, files
from spirit_jax.audio import load_audio
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.models import style
from spirit_jax.models.frames import length_mask
from spirit_jax.models.style import StyleEncoder
from spirit_jax.training import f0_tracks
from spirit_jax.training.recipe import SpeechRecipe, add_up, code_usage, read_start
from spirit_jax.training.step import Metrics, TrainState
from spirit_jax.training.style import report
from spirit_jax.training.style.config import StyleRunConfig
from spirit_jax.training.style.features import style_features
from spirit_jax.training.style.labels import (
    NO_LABEL,
    Labelled,
    Labels,
    label_by_features,
    label_by_manifest,
)


class StyleRecipe(SpeechRecipe[StyleRunConfig]):
    """The training of the style encoder."""

    def __init__(self, config: StyleRunConfig):
        super().__init__(config)
        self.network, self.start = read_start(config, "style", style.load)
        self.model = StyleEncoder(self.network)
        self.unit_samples = self.network.pool_frames * self.network.trunk.stride

    @property
    def batch_tokens(self) -> int:
        """Frames of the trunk in a batch."""
        rows = self.config.data.batch_rows
        return rows * self.config.segment_units * self.network.pool_frames

    @functools.cached_property
    def labels(self) -> Labels:
        """All recordings with the style labels of each second."""
        train, held_out = self.training_items(), self.held_out_items()
        num_styles = self.network.num_styles
        if self.config.labels == "manifest":
            return label_by_manifest(train, held_out, num_styles, self.unit_samples)
        features = [
            _read_features(self.config, self.unit_samples, items) for items in (train, held_out)
        ]
        return label_by_features(train, held_out, *features, num_styles, self.config.seed)

    def init(self) -> tuple[Any, None]:
        """See `Recipe.init`."""
        params = self.start
        if params is None:
            # Shapes do not depend on the length, and a compiler may fold operations on zeros.
            wave_bt, lengths_b = jnp.zeros((1, 1)), jnp.ones(1, jnp.int32)
            params = self.model.init(jax.random.key(self.config.seed), wave_bt, lengths_b)["params"]
        return jax.tree.map(jnp.asarray, params), None

    def sums(self, params: Any, batch: Row) -> tuple[dict[str, jax.Array], jax.Array]:
        """The sums and predictions of `measure`."""
        logits_bsl, units_b = self.model.apply(
            {"params": params}, batch["wave_bt"], batch["lengths_b"]
        )
        return measure(logits_bsl, units_b, batch["labels_bs"])

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, None]:
        """See `Recipe.loss`: cross-entropy over labelled seconds."""
        return summarise(self.sums(params, batch)[0]), None

    def row(self, labelled: Labelled, rng: np.random.Generator | None) -> Row:
        """See `make_row`."""
        return make_row(labelled, rng, self.config.segment_units, self.unit_samples)

    def make_stream(self, rows: list[int]) -> SpeechStream:
        """See `Recipe.make_stream`."""
        return SpeechStream(self.labels.train, self.row, self.config.data, rows)

    @functools.cached_property
    def held_out(self) -> list[Row]:
        """The first seconds of the held-out recordings in batches, padded with empty rows."""
        size = self.config.data.batch_rows
        empty = Labelled(Item("", np.zeros(0, np.float32)), np.zeros(0, np.int32))
        labelled = [*self.labels.held_out, *[empty] * (-len(self.labels.held_out) % size)]
        rows = [self.row(recording, None) for recording in labelled]
        return [stack(rows[start : start + size]) for start in range(0, len(rows), size)]

    @functools.cached_property
    def jitted_sums(self) -> Callable[[Any, Row], tuple[dict[str, jax.Array], jax.Array]]:
        """`sums`, compiled."""
        return jax.jit(self.sums)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The metrics of the training on held-out recordings."""
        sums = add_up(self.jitted_sums(state.params, batch)[0] for batch in self.held_out)
        return jax.tree.map(float, summarise(sums))

    def report(self, state: TrainState, folder: Path) -> None:
        """Plots labels and predictions, and writes audio of each style."""
        units = [np.asarray(self.jitted_sums(state.params, batch)[1]) for batch in self.held_out]
        rows = {
            name: np.concatenate([batch[name] for batch in self.held_out])
            for name in self.held_out[0]
        }
        report.write(folder, units_bs=np.concatenate(units), names=self.labels.names, **rows)

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the network folder, as in a speech tokenizer."""
        checkpoint.save_network(output, self.network, jax.tree.map(np.asarray, state.params))


def make_row(
    labelled: Labelled, rng: np.random.Generator | None, units: int, unit_samples: int
) -> Row:
    """A row of a batch: a random segment of whole seconds, with labels.

    Args:
      labelled: the recording.
      rng: of the draw; None for the first seconds.
      units: length of the segment in seconds (style units).
      unit_samples: samples of a style unit.

    Returns:
      "wave_bt", float32 samples; "lengths_b", int32; "labels_bs", int32, `NO_LABEL` for padding.
    """
    wave_t = load_audio(labelled.item.audio)
    total = -(-len(wave_t) // unit_samples)
    first = 0 if rng is None else int(rng.integers(max(total - units, 0) + 1))
    piece_t = wave_t[first * unit_samples : (first + units) * unit_samples]
    labels_s = labelled.labels_s[first : first + units]
    return {
        "wave_bt": np.pad(piece_t, (0, units * unit_samples - len(piece_t))),
        "lengths_b": np.int32(len(piece_t)),
        "labels_bs": np.pad(labels_s, (0, units - len(labels_s)), constant_values=NO_LABEL),
    }


def measure(
    logits_bsl: jax.Array, units_b: jax.Array, labels_bs: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over the labelled units of a batch, and predictions.

    Args:
      logits_bsl: float32.
      units_b: int32, true numbers of units.
      labels_bs: int32, `NO_LABEL` if unknown.

    Returns:
      Sums of cross-entropy and correct predictions, and counts of predicted styles and of labels;
      and predicted styles, int32 (b, s), `NO_LABEL` for padding.
    """
    logits_bsl = logits_bsl[:, : labels_bs.shape[1]]
    known_bs = (labels_bs != NO_LABEL) & length_mask(units_b, labels_bs.shape[1])
    losses_bs = optax.softmax_cross_entropy_with_integer_labels(
        logits_bsl, jnp.where(known_bs, labels_bs, 0)
    )
    best_bs = jnp.argmax(logits_bsl, axis=-1)

    def count(ids_bs):
        weights_bs = known_bs.astype(jnp.float32)
        return jnp.zeros(logits_bsl.shape[-1]).at[ids_bs].add(weights_bs)

    sums = {
        "loss": jnp.where(known_bs, losses_bs, 0).sum(),
        "correct": (known_bs & (best_bs == labels_bs)).sum(),
        "predicted_l": count(best_bs),
        "labels_l": count(labels_bs),
    }
    return sums, jnp.where(length_mask(units_b, labels_bs.shape[1]), best_bs, NO_LABEL)


@jax.jit
def summarise(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over labelled units; `commonest` is the accuracy of the most frequent label."""
    total = jnp.maximum(sums["labels_l"].sum(), 1)
    styles_used, perplexity = code_usage(sums["predicted_l"])
    return {
        "loss": sums["loss"] / total,
        "accuracy": sums["correct"] / total,
        "commonest": sums["labels_l"].max() / total,
        "styles_used": styles_used,
        "perplexity": perplexity,
    }


def _read_features(
    config: StyleRunConfig, unit_samples: int, items: Sequence[Item]
) -> list[np.ndarray]:
    """The style features of each recording, relative to its speaker's mean F0."""
    tracks = f0_tracks.read_tracks(items, config.f0, files.as_path(config.run_dir) / "f0")
    means = f0_tracks.speaker_means(items, tracks)
    return [
        style_features(
            load_audio(item.audio), track, means.get(item.speaker, track.mean), unit_samples
        )
        for item, track in zip(items, tracks, strict=True)
    ]
