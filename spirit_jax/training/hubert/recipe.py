"""Trains HuBERT by masked prediction of clusters.

Letters: b batch, t time (samples, then frames), d model width, e width of the labels' embeddings,
v clusters.

The recipe is that of arXiv 2106.07447. Targets are clusters of MFCC in the first iteration, and of
an inner layer of the previous network in later ones. The exported network ends at an inner
layer, and units are k-means clusters of its output (at 25 Hz as in arXiv 2305.13009).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spirit_jax import checkpoint, files, model_folder
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data.augment import coloured_noise, mix
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.errors import InputError
from spirit_jax.models import hubert
from spirit_jax.models.frames import length_mask
from spirit_jax.models.hubert import HubertConfig, HubertUnits, QuantizerConfig
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig
from spirit_jax.training import recording_cache
from spirit_jax.training.hubert import gabor, reference_targets, report, targets
from spirit_jax.training.hubert.config import MFCC, HubertRunConfig
from spirit_jax.training.hubert.targets import Recording
from spirit_jax.training.recipe import SpeechRecipe, add_up, code_usage
from spirit_jax.training.step import Metrics, TrainState


class MaskedPrediction(nn.Module):
    """The trunk with a head that scores clusters."""

    trunk: TrunkConfig
    clusters: int
    embedding_size: int
    temperature: float

    @nn.compact
    def __call__(
        self, wave_bt: jax.Array, lengths_b: jax.Array, mask_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts clusters.

        Args:
          wave_bt: float32 samples at 16 kHz; ignored after true lengths.
          lengths_b: int32, true lengths in samples.
          mask_bt: bool, frames that are masked in the transformer's input.

        Returns:
          Logits, float32 (b, t, v), and true numbers of frames, int32 (b,).
        """
        trunk = Trunk(self.trunk, name="trunk")
        features_btc, frames_b = trunk.extract(wave_bt, lengths_b)
        hidden_btd = trunk.project(trunk.normalize(features_btc))
        mask_d = self.param("mask", nn.initializers.uniform(1.0), hidden_btd.shape[-1:])
        hidden_btd = jnp.where(mask_bt[..., None], mask_d, hidden_btd)
        hidden_btd = trunk.contextualize(hidden_btd, frames_b)
        precision = self.trunk.precision
        output_bte = nn.Dense(self.embedding_size, precision=precision, name="head")(hidden_btd)
        shape = (self.clusters, self.embedding_size)
        labels_ve = self.param("labels", nn.initializers.normal(1.0), shape)
        output_bte, labels_ve = _unit(output_bte), _unit(labels_ve)
        cosines_btv = jnp.einsum("bte,ve->btv", output_bte, labels_ve, precision=precision)
        return cosines_btv / self.temperature, frames_b


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


class HubertRecipe(SpeechRecipe[HubertRunConfig]):
    """The training of HuBERT by masked prediction of clusters."""

    def __init__(self, config: HubertRunConfig):
        super().__init__(config)
        self.trunk, self.start = _read_start(config)
        self.frames, self.samples = targets.segment_size(config.segment_seconds, self.trunk)
        self.model = MaskedPrediction(
            self.trunk, config.target_clusters, config.embedding_size, config.temperature
        )

    @property
    def batch_tokens(self) -> int:
        """Frames of the trunk in a batch."""
        return self.config.data.batch_rows * self.frames

    def init(self) -> tuple[Any, None]:
        """See `Recipe.init`."""
        wave_bt, mask_bt = jnp.zeros((1, self.samples)), jnp.zeros((1, self.frames), bool)
        key = jax.random.key(self.config.seed)
        params = self.model.init(key, wave_bt, jnp.full(1, self.samples), mask_bt)["params"]
        if self.config.first_filters == "gabor":
            channels, width, _ = self.trunk.conv_layers[0]
            filters_k1d = jnp.asarray(gabor.gabor(width, channels)[:, None])
            params["trunk"]["conv"]["0"]["kernel"] = filters_k1d
        leaves = checkpoint.flatten(params) | checkpoint.flatten(self.start, "trunk")
        params = checkpoint.unflatten({name: jnp.asarray(leaf) for name, leaf in leaves.items()})
        return params, None

    def predict(self, params: Any, batch: Row) -> tuple[jax.Array, jax.Array]:
        """Scores of the clusters before a softmax, (b, t, v), and which frames are true, (b, t)."""
        logits_btv, frames_b = self.model.apply(
            {"params": params}, batch["wave_bt"], batch["lengths_b"], batch["mask_bt"]
        )
        return logits_btv, length_mask(frames_b, self.frames)

    def sums(self, params: Any, batch: Row) -> tuple[dict[str, jax.Array], jax.Array]:
        """The sums of `measure`, and predicted clusters, int32 (b, t)."""
        logits_btv, true_bt = self.predict(params, batch)
        sums = measure(logits_btv, true_bt, batch["mask_bt"], batch["labels_bt"])
        return sums, jnp.argmax(logits_btv, axis=-1)

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, None]:
        """See `Recipe.loss`: cross-entropy of the clusters of masked frames."""
        return summarise(self.sums(params, batch)[0], self.config.unmasked_weight), None

    @functools.cached_property
    def labelled(self) -> tuple[list[Recording], Callable[[Sequence[Item]], list[np.ndarray]]]:
        """See `read_targets`."""
        return read_targets(self.config, self.trunk, self.training_items())

    def make_stream(self, rows: list[int]) -> SpeechStream:
        """See `Recipe.make_stream`."""
        recordings, _ = self.labelled
        make = functools.partial(make_row, config=self.config, trunk=self.trunk, others=recordings)
        return SpeechStream(recordings, make, self.config.data, rows)

    @functools.cached_property
    def held_out(self) -> list[Row]:
        """Segments of the held-out recordings in batches; the last one is padded with rows."""
        items, size = self.held_out_items(), self.config.data.batch_rows
        _, label = self.labelled
        recordings = targets.with_labels(items, label(items))
        empty = Recording(Item("", np.zeros(0, np.float32)), np.zeros(0, np.int32))
        recordings += [empty] * (-len(recordings) % size)
        rows = [
            make_row(recording, np.random.default_rng(number), self.config, self.trunk)
            for number, recording in enumerate(recordings)
        ]
        return [stack(rows[start : start + size]) for start in range(0, len(rows), size)]

    @functools.cached_property
    def jitted_sums(self) -> Callable[[Any, Row], tuple[dict[str, jax.Array], jax.Array]]:
        """`sums`, compiled."""
        return jax.jit(self.sums)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The metrics of the training on held-out recordings."""
        sums = add_up(self.jitted_sums(state.params, batch)[0] for batch in self.held_out)
        return jax.tree.map(float, summarise(sums, self.config.unmasked_weight))

    def report(self, state: TrainState, folder: Path) -> None:
        """Plots labels and predictions of some held-out recordings."""
        batch = self.held_out[0]
        predicted_bt = np.asarray(self.jitted_sums(state.params, batch)[1])
        true = batch["lengths_b"] > 0
        shown = {name: array[true] for name, array in batch.items()}
        report.write(folder, shown, predicted_bt[true], self.trunk)

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the folders `hubert` and `quantizer`, after fitting k-means to the features."""
        params = jax.tree.map(np.asarray, state.params["trunk"])
        trunk, params = targets.cut(self.trunk, params, self.config.layer)
        encoder, clusters = targets.network_features(trunk, params), self.config.clusters
        centroids_vd = targets.find_centroids(
            self.training_items(), encoder, trunk, clusters, self.config.kmeans
        )
        quantizer = QuantizerConfig("kmeans", clusters, trunk.hidden_size)
        model = HubertUnits(HubertConfig(trunk), quantizer)
        hubert.save(output, model, {"hubert": params, "quantizer": {"centroids": centroids_vd}})


def measure(
    logits_btv: jax.Array, true_bt: jax.Array, mask_bt: jax.Array, labels_bt: jax.Array
) -> dict[str, jax.Array]:
    """Sums over masked and unmasked frames of a batch.

    Args:
      logits_btv: float32.
      true_bt: bool, False for padding.
      mask_bt: bool, masked frames.
      labels_bt: int32, target clusters.

    Returns:
      Numbers of frames, sums of cross-entropy and correct predictions, for masked and unmasked
      frames; and "predicted_v", how often each cluster was predicted for masked frames.
    """
    losses_bt = optax.softmax_cross_entropy_with_integer_labels(logits_btv, labels_bt)
    predicted_bt = jnp.argmax(logits_btv, axis=-1)
    masked_bt, sums = true_bt & mask_bt, {}
    for name, of_bt in ("masked", masked_bt), ("unmasked", true_bt & ~mask_bt):
        sums[f"{name}_frames"] = of_bt.sum()
        sums[f"{name}_loss"] = jnp.where(of_bt, losses_bt, 0).sum()
        sums[f"{name}_correct"] = (of_bt & (predicted_bt == labels_bt)).sum()
    counts_v = jnp.zeros(logits_btv.shape[-1])
    sums["predicted_v"] = counts_v.at[predicted_bt].add(masked_bt.astype(jnp.float32))
    return sums


@jax.jit
def summarise(sums: dict[str, jax.Array], unmasked_weight: float) -> dict[str, jax.Array]:
    """Loss and accuracy, and the usage of clusters in predictions for masked frames."""

    def mean(name: str, of: str) -> jax.Array:
        return sums[f"{of}_{name}"] / jnp.maximum(sums[f"{of}_frames"], 1)

    used, perplexity = code_usage(sums["predicted_v"])
    masked_loss = mean("loss", "masked")
    return {
        "loss": masked_loss + unmasked_weight * mean("loss", "unmasked"),
        "masked_loss": masked_loss,
        "accuracy": mean("correct", "masked"),
        "unmasked_accuracy": mean("correct", "unmasked"),
        "clusters_used": used,
        "perplexity": perplexity,
    }


def make_row(
    recording: Recording,
    rng: np.random.Generator,
    config: HubertRunConfig,
    trunk: TrunkConfig,
    others: Sequence[Recording] = (),
) -> Row:
    """A row of a batch: a random segment, its labels and its mask.

    Args:
      recording: to draw from.
      rng: of all draws.
      config: length of the segment, masking and noise.
      trunk: its stride and receptive field are used.
      others: recordings to mix in as noise; empty for no noise.

    Returns:
      "wave_bt", float32 samples; "lengths_b", int32, samples without padding; "labels_bt", int32;
      "mask_bt", bool.
    """
    frames, size = targets.segment_size(config.segment_seconds, trunk)
    piece_t, labels_t = targets.draw_segment(recording, config.segment_seconds, trunk, rng)
    mask_t = draw_mask(len(labels_t), config.mask_start, config.mask_span, rng)
    if others and rng.random() < config.noise:
        noise_t = _draw_noise(len(piece_t), others, rng)
        piece_t = mix(piece_t, noise_t, rng.uniform(*config.noise_db))
    rest = frames - len(labels_t)
    return {
        "wave_bt": np.pad(piece_t, (0, size - len(piece_t))),
        "lengths_b": np.int32(len(piece_t)),
        "labels_bt": np.pad(labels_t, (0, rest)).astype(np.int32),
        "mask_bt": np.pad(mask_t, (0, rest)),
    }


def draw_mask(frames: int, start: float, span: int, rng: np.random.Generator) -> np.ndarray:
    """Draws masked spans (arXiv 2006.11477, section 3.1).

    Args:
      frames: length of the mask.
      start: probability that a span starts at a frame. There is at least one span.
      span: length of a span in frames; spans may overlap.
      rng: of the draws.

    Returns:
      bool (frames,), True for masked frames.
    """
    mask_t = np.zeros(frames, bool)
    (starts,) = np.nonzero(rng.random(frames) < start)
    if frames and not len(starts):
        starts = [rng.integers(frames)]
    for first in starts:
        mask_t[first : first + span] = True
    return mask_t


def _draw_noise(size: int, others: Sequence[Recording], rng: np.random.Generator) -> np.ndarray:
    """A random part of another recording, or coloured noise, float32 (size,)."""
    if rng.random() < 0.5:
        return coloured_noise(size, rng.uniform(0, 2), rng)
    samples_t = load_audio(others[rng.integers(len(others))].item.audio)
    return np.roll(samples_t, -int(rng.integers(max(len(samples_t), 1))))


def read_targets(
    config: HubertRunConfig, trunk: TrunkConfig, items: list[Item]
) -> tuple[list[Recording], Callable[[Sequence[Item]], list[np.ndarray]]]:
    """Labels recordings, or reads their cached labels.

    Args:
      config: of the run.
      trunk: its stride and receptive field are used.
      items: the training recordings.

    Returns:
      The recordings that are long enough for a frame, with labels; and a function that labels other
      recordings.

    Raises:
      InputError: recordings or the network of `targets` or `aligner` cannot be used.
    """
    if config.targets == MFCC:
        features, source = targets.mfcc_features(trunk), MFCC
    else:
        features, source = _read_teacher(config.targets, config.target_layer, trunk)
    alignment_features, alignment_source = features, ""
    if config.aligner:
        alignment_features, alignment_source = _read_teacher(config.aligner, 0, trunk)
    references = reference_targets.read_references(config.reference) if config.reference else {}

    sample = list(references.values()) or items
    source += f" {trunk.conv_layers} {config.target_clusters} {config.kmeans}"
    centroids_vd = recording_cache.read_value(
        files.as_path(config.run_dir) / targets.FOLDER,
        f"centroids of {source}",
        sample,
        lambda: targets.find_centroids(
            sample, features, trunk, config.target_clusters, config.kmeans
        ),
    )

    def label(items: Sequence[Item]) -> list[np.ndarray]:
        return reference_targets.label(
            items, references, features, trunk, centroids_vd, alignment_features
        )

    def key(item: Item) -> bytes:
        reference = references.get(item.text, item)
        return fingerprint(item) + b"\0" + fingerprint(reference)

    digest = hashlib.sha256(centroids_vd.tobytes()).hexdigest()
    settings = f"clusters of {source} {alignment_source} {digest}"
    labels = targets.cached_labels(config.run_dir, settings, items, label, key)
    return targets.with_labels(items, labels), label


def _read_teacher(folder: str, layer: int, trunk: TrunkConfig) -> tuple[targets.FrameFunction, str]:
    """The features of a network's layer, and the hash of its parameters."""
    network = model_folder.find_network(folder, "hubert")
    teacher, params = checkpoint.load_network(network, HubertConfig)
    teacher_trunk, params = targets.cut(teacher.trunk, params, layer)
    frames = [(t.stride, t.receptive_field) for t in (teacher_trunk, trunk)]
    if frames[0] != frames[1] or teacher.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{folder}: its frames (stride and width {frames[0]}) are not those of the network "
            f"({frames[1]}), so they cannot be its targets."
        )
    return targets.network_features(teacher_trunk, params), checkpoint.hash_params(params)


def _read_start(config: HubertRunConfig) -> tuple[TrunkConfig, Any]:
    """The config of the trunk, and the parameters of `start`."""
    if not config.start:
        return config.network, {}
    folder = model_folder.find_network(config.start, "hubert")
    start, params = checkpoint.load_network(folder, HubertConfig)
    layers = max(start.trunk.num_layers, config.network.num_layers)
    return dataclasses.replace(start.trunk, num_layers=layers, final_norm=True), params
