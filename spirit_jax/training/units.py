"""Trains HuBERT: a trunk that tells, where its input is masked, which cluster a frame is in.

Letters: b batch, t time (samples, then frames), d model width, e width of the labels' embeddings,
v clusters.

The recipe is that of arXiv 2106.07447. Clusters are those of MFCC in a first iteration, and of an
inner layer of the network before in each later one. What comes out is an inner layer, and units
are k-means clusters of it (as in arXiv 2305.13009, whose units come 25 times a second).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from spirit_jax import checkpoint, files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data.augment import coloured_noise, mix
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.errors import InputError
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertConfig, HubertUnits, QuantizerConfig
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig, length_mask
from spirit_jax.training import ema, filters, parallel, recipe, unit_report, unit_targets
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.run_configs import MFCC
from spirit_jax.training.run_configs import UnitsRunConfig as RunConfig
from spirit_jax.training.unit_targets import Recording


@struct.dataclass
class State:
    """What a step changes.

    Attributes:
      step: updates so far.
      params: of `MaskedPrediction`.
      opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


class MaskedPrediction(nn.Module):
    """The trunk, and the scores of every cluster that its output comes to."""

    trunk: TrunkConfig
    clusters: int
    embedding_size: int
    temperature: float

    @nn.compact
    def __call__(
        self, wave_bt: jax.Array, lengths_b: jax.Array, mask_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Scores before a softmax, (b, t, v), and the true numbers of frames.

        Args:
          wave_bt: float32 samples at 16 kHz; not read after true lengths.
          lengths_b: int32, true lengths in samples.
          mask_bt: booleans a frame: what the transformer does not see.
        """
        trunk = Trunk(self.trunk, name="trunk")
        features_btc, frames_b = trunk.extract(wave_bt, lengths_b)
        hidden_btd = trunk.project(trunk.normalize(features_btc))
        mask_d = self.param("mask", nn.initializers.uniform(1.0), hidden_btd.shape[-1:])
        hidden_btd = jnp.where(mask_bt[..., None], mask_d, hidden_btd)
        hidden_btd = trunk.contextualize(hidden_btd, frames_b)
        precision = self.trunk.precision
        made_bte = nn.Dense(self.embedding_size, precision=precision, name="head")(hidden_btd)
        shape = (self.clusters, self.embedding_size)
        labels_ve = self.param("labels", nn.initializers.normal(1.0), shape)
        made_bte, labels_ve = _unit(made_bte), _unit(labels_ve)
        cosines_btv = jnp.einsum("bte,ve->btv", made_bte, labels_ve, precision=precision)
        return cosines_btv / self.temperature, frames_b


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics; see `recipe.train`."""
    return recipe.train(config, make, devices, allow_changes)


def export(config: RunConfig, output: str | Path, allow_changes: bool = False) -> int:
    """Writes `hubert` and `quantizer` of the newest checkpoint to a folder; returns its step.

    The quantizer is k-means, fitted here to the features of the corpus.

    Raises:
      InputError: there is no checkpoint, or `output` exists.
    """
    files.refuse_existing(output)
    state = recipe.newest_state(config, make(config), allow_changes=allow_changes)
    params = jax.tree.map(np.asarray, state.params["trunk"])
    trunk, params = unit_targets.cut(_network(config)[0], params, config.layer)
    items = recipe.training_items(config)
    heard = unit_targets.inner(trunk, params)
    centroids_vd = unit_targets.find_centroids(items, heard, trunk, config.clusters, config.kmeans)
    quantizer = QuantizerConfig("kmeans", config.clusters, trunk.hidden_size)
    model = HubertUnits(HubertConfig(trunk), quantizer)
    hubert.save(output, model, {"hubert": params, "quantizer": {"centroids": centroids_vd}})
    return int(state.step)


def make(config: RunConfig) -> recipe.Recipe:
    """The recipe; nothing is read but the folder of `start`."""
    trunk, started = _network(config)
    model = MaskedPrediction(
        trunk, config.target_clusters, config.embedding_size, config.temperature
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    frames, size = unit_targets.segment_size(config.segment_seconds, trunk)

    def init() -> State:
        wave_bt, mask_bt = jnp.zeros((1, size)), jnp.zeros((1, frames), bool)
        key = jax.random.key(config.seed)
        params = model.init(key, wave_bt, jnp.full(1, size), mask_bt)["params"]
        if config.first_filters == "gabor":
            channels, samples, _ = trunk.conv_layers[0]
            filters_k1d = jnp.asarray(filters.gabor(samples, channels)[:, None])
            params["trunk"]["conv"]["0"]["kernel"] = filters_k1d
        kept = checkpoint.flatten(params) | checkpoint.flatten(started, "trunk")
        params = checkpoint.unflatten({name: jnp.asarray(leaf) for name, leaf in kept.items()})
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def predict(params: Any, batch: Row) -> tuple[jax.Array, jax.Array, jax.Array]:
        audio = batch["wave_bt"], batch["lengths_b"], batch["mask_bt"]
        logits_btv, frames_b = model.apply({"params": params}, *audio)
        return logits_btv, length_mask(frames_b, frames), batch["mask_bt"]

    def step(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        def loss(params):
            sums = measure(*predict(params, batch), batch["labels_bt"])
            metrics = summarise(sums, config.unmasked_weight)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state), metrics

    @functools.cache
    def targets() -> tuple[list[Recording], Callable[[Sequence[Item]], list[np.ndarray]]]:
        return read_targets(config, trunk)

    def make_stream(rows: list[int]) -> SpeechStream:
        recordings, _ = targets()
        cut = functools.partial(make_row, config=config, trunk=trunk, others=recordings)
        return SpeechStream(recordings, cut, config.data, rows)

    @functools.cache
    def held_out() -> list[Row]:
        items = recipe.held_out_items(config)
        _, label = targets()
        recordings = unit_targets.with_labels(items, label(items))
        size = config.data.batch_rows
        # The last batch is filled up, so that all have one shape.
        empty = Recording(Item("", np.zeros(0, np.float32)), np.zeros(0, np.int32))
        recordings += [empty] * (-len(recordings) % size)
        rows = [
            make_row(one, np.random.default_rng(number), config, trunk)
            for number, one in enumerate(recordings)
        ]
        return [stack(rows[start : start + size]) for start in range(0, len(rows), size)]

    @jax.jit
    def judge(params: Any, batch: Row):
        found = predict(params, batch)
        return measure(*found, batch["labels_bt"]), jnp.argmax(found[0], axis=-1)

    def evaluate(state: State) -> dict[str, float]:
        sums = recipe.add_up(judge(state.params, batch)[0] for batch in held_out())
        return jax.tree.map(float, summarise(sums, config.unmasked_weight))

    def report(state: State, folder: Path) -> None:
        batch = held_out()[0]
        guesses_bt = np.asarray(judge(state.params, batch)[1])
        true = batch["lengths_b"] > 0
        shown = {name: array[true] for name, array in batch.items()}
        unit_report.write(folder, shown, guesses_bt[true], trunk)

    judged = bool(config.data.held_out)
    return recipe.Recipe(
        init,
        step,
        make_stream,
        config.data.batch_rows * frames,
        evaluate=evaluate if judged else None,
        report=report if judged else None,
    )


def measure(
    logits_btv: jax.Array, true_bt: jax.Array, mask_bt: jax.Array, labels_bt: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the true frames of a batch, of those that are masked and of those that are not.

    The sums are of frames, of cross entropy, of right guesses, and of how often each cluster was
    guessed where masked.
    """
    losses_bt = optax.softmax_cross_entropy_with_integer_labels(logits_btv, labels_bt)
    guesses_bt = jnp.argmax(logits_btv, axis=-1)
    masked_bt, sums = true_bt & mask_bt, {}
    for name, of_bt in ("masked", masked_bt), ("unmasked", true_bt & ~mask_bt):
        sums[f"{name}_frames"] = of_bt.sum()
        sums[f"{name}_loss"] = jnp.where(of_bt, losses_bt, 0).sum()
        sums[f"{name}_right"] = (of_bt & (guesses_bt == labels_bt)).sum()
    counts_v = jnp.zeros(logits_btv.shape[-1])
    sums["guessed_v"] = counts_v.at[guesses_bt].add(masked_bt.astype(jnp.float32))
    return sums


def summarise(sums: dict[str, jax.Array], unmasked_weight: float) -> dict[str, jax.Array]:
    """The loss, how often guesses are right, and how many clusters are guessed where masked."""

    def mean(name: str, of: str) -> jax.Array:
        return sums[f"{of}_{name}"] / jnp.maximum(sums[f"{of}_frames"], 1)

    used, perplexity = ema.use(sums["guessed_v"])
    masked_loss = mean("loss", "masked")
    return {
        "loss": masked_loss + unmasked_weight * mean("loss", "unmasked"),
        "masked_loss": masked_loss,
        "accuracy": mean("right", "masked"),
        "unmasked_accuracy": mean("right", "unmasked"),
        "clusters_used": used,
        "perplexity": perplexity,
    }


def make_row(
    recording: Recording,
    rng: np.random.Generator,
    config: RunConfig,
    trunk: TrunkConfig,
    others: Sequence[Recording] = (),
) -> Row:
    """A segment from a place drawn at random, its labels, and what is masked of it.

    Args:
      recording: to take it from.
      rng: for all draws.
      config, trunk: say how.
      others: recordings that may be heard beside it; without any, nothing is.
    """
    frames, size = unit_targets.segment_size(config.segment_seconds, trunk)
    piece_t, labels_t = unit_targets.draw_segment(recording, config.segment_seconds, trunk, rng)
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
    """Booleans, (frames,): each frame begins a masked span with probability `start`.

    Spans may overlap; where none is drawn there is one.
    """
    mask_t = np.zeros(frames, bool)
    (starts,) = np.nonzero(rng.random(frames) < start)
    if frames and not len(starts):
        starts = [rng.integers(frames)]
    for first in starts:
        mask_t[first : first + span] = True
    return mask_t


def _draw_noise(size: int, others: Sequence[Recording], rng: np.random.Generator) -> np.ndarray:
    """Another recording from a place drawn at random, or noise of some colour."""
    if rng.random() < 0.5:
        return coloured_noise(size, rng.uniform(0, 2), rng)
    samples_t = load_audio(others[rng.integers(len(others))].item.audio)
    return np.roll(samples_t, -int(rng.integers(max(len(samples_t), 1))))


def read_targets(
    config: RunConfig, trunk: TrunkConfig
) -> tuple[list[Recording], Callable[[Sequence[Item]], list[np.ndarray]]]:
    """Recordings with labels, and what gives labels to others.

    Recordings too short for a frame are left out.

    Raises:
      InputError: recordings or the network of `targets` or `aligner` cannot be used.
    """
    items = recipe.training_items(config)
    if config.targets == MFCC:
        heard, made_of = unit_targets.spectral(trunk), MFCC
    else:
        heard, made_of = _read_teacher(config.targets, config.target_layer, trunk)
    compared, aligned_by = heard, ""
    if config.aligner:
        compared, aligned_by = _read_teacher(config.aligner, 0, trunk)
    references = parallel.read_references(config.reference) if config.reference else {}

    def label(items: Sequence[Item], centroids_vd: np.ndarray) -> list[np.ndarray]:
        return parallel.label(items, references, heard, trunk, centroids_vd, compared)

    def make() -> dict[str, Any]:
        sample = list(references.values()) or items
        found = sample, heard, trunk, config.target_clusters, config.kmeans
        centroids_vd = unit_targets.find_centroids(*found)
        return {"labels": label(items, centroids_vd), "centroids": centroids_vd}

    made_of += f" {trunk.conv_layers} {config.target_clusters} {config.kmeans}"
    if references:
        # Texts tell which recording has the labels of which.
        texts = [item.text for item in (*references.values(), *items)]
        made_of += f" {unit_targets.digest(references.values())} {texts} {aligned_by}"
    kept = unit_targets.keep(Path(config.run_dir) / "targets.npz", made_of, items, make)
    recordings = unit_targets.with_labels(items, kept["labels"])
    return recordings, lambda others: label(others, kept["centroids"])


def _read_teacher(folder: str, layer: int, trunk: TrunkConfig) -> tuple[unit_targets.Heard, str]:
    """The features of a network's layer, and what it is by its hash."""
    found = checkpoint.find_network(folder, "hubert")
    before, params = checkpoint.load_network(found, HubertConfig)
    theirs, params = unit_targets.cut(before.trunk, params, layer)
    places = [(one.stride, one.receptive_field) for one in (theirs, trunk)]
    if places[0] != places[1] or before.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{folder}: its frames (stride and width {places[0]}) are not those of the network "
            f"({places[1]}), so they cannot be its targets."
        )
    return unit_targets.inner(theirs, params), checkpoint.hash_params(params)


def _network(config: RunConfig) -> tuple[TrunkConfig, Any]:
    """The trunk, and those of its parameters that come from `start`."""
    if not config.start:
        return config.network, {}
    folder = checkpoint.find_network(config.start, "hubert")
    started, params = checkpoint.load_network(folder, HubertConfig)
    layers = max(started.trunk.num_layers, config.network.num_layers)
    return dataclasses.replace(started.trunk, num_layers=layers, final_norm=True), params
