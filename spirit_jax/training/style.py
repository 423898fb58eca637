"""Trains the style encoder: a classifier of every second of a recording.

Letters: b batch, t time (samples), s units (seconds), l styles.

Spirit LM (arXiv 2402.05755) fine-tunes wav2vec 2.0 to give clusters of style features, averaged
over a second. Neither its labels nor its features are published: here they are clusters of those of
`data.style_features`, or what a manifest says.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from spirit_jax import checkpoint
from spirit_jax.audio import load_audio
from spirit_jax.data import f0_cache
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.data.style_features import style_features
from spirit_jax.models import style
from spirit_jax.models.style import StyleEncoder
from spirit_jax.models.wav2vec2 import length_mask
from spirit_jax.training import ema, recipe, style_report
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.run_configs import StyleRunConfig as RunConfig
from spirit_jax.training.style_labels import (
    NO_LABEL,
    Labelled,
    Labels,
    label_by_features,
    label_by_manifest,
)


@struct.dataclass
class State:
    """What a step changes.

    Attributes:
      step: updates so far.
      params: of the network.
      opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics; see `recipe.train`."""
    return recipe.train(config, make, devices, allow_changes)


def export(config: RunConfig, output: str | Path, allow_changes: bool = False) -> int:
    """Writes the newest checkpoint as a network folder; returns its step.

    Raises:
      InputError: there is no checkpoint, or `output` exists.
    """
    state = recipe.newest_state(config, make(config), allow_changes=allow_changes)
    network, _ = recipe.read_start(config, "style", style.load)
    checkpoint.save_network(output, network, jax.tree.map(np.asarray, state.params))
    return int(state.step)


def make(config: RunConfig) -> recipe.Recipe:
    """The recipe; nothing is read but the folder of `start`."""
    network, started = recipe.read_start(config, "style", style.load)
    model = StyleEncoder(network)
    unit_samples = network.pool_frames * network.trunk.stride
    optimizer = make_optimizer(config.optimizer, config.steps)
    cut = functools.partial(make_row, units=config.segment_units, unit_samples=unit_samples)

    @functools.cache
    def labels() -> Labels:
        train = recipe.training_items(config)
        held_out = recipe.held_out_items(config) if config.data.held_out else []
        if config.labels == "manifest":
            return label_by_manifest(train, held_out, network.num_styles, unit_samples)
        find = functools.partial(_read_features, config, unit_samples)
        sets = find(train), find(held_out)
        return label_by_features(train, held_out, *sets, network.num_styles, config.seed)

    def init() -> State:
        params = started
        if params is None:
            # Shapes do not depend on the length, and a compiler may fold what is made of zeros.
            wave_bt, lengths_b = jnp.zeros((1, 1)), jnp.ones(1, jnp.int32)
            params = model.init(jax.random.key(config.seed), wave_bt, lengths_b)["params"]
        params = jax.tree.map(jnp.asarray, params)
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def apply_and_measure(params, wave_bt, lengths_b, labels_bs):
        return measure(*model.apply({"params": params}, wave_bt, lengths_b), labels_bs)

    def step(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        def loss(params):
            sums, _ = apply_and_measure(params, **batch)
            metrics = summarise(sums)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state), metrics

    def make_stream(rows: list[int]) -> SpeechStream:
        return SpeechStream(labels().train, cut, config.data, rows)

    judge = jax.jit(apply_and_measure)

    def judge_held_out(state: State) -> Iterator[tuple[Any, Row, np.ndarray]]:
        """Sums, rows and units of each batch, the last one filled up with empty rows."""
        empty = Labelled(Item("", np.zeros(0, np.float32)), np.zeros(0, np.int32))
        size = config.data.batch_rows
        for start in range(0, len(labels().held_out), size):
            found = labels().held_out[start : start + size]
            rows = [cut(one, None) for one in (*found, *[empty] * (size - len(found)))]
            batch = stack(rows)
            sums, units_bs = judge(state.params, **batch)
            yield sums, batch, np.asarray(units_bs)

    def evaluate(state: State) -> dict[str, float]:
        sums = recipe.add_up(sums for sums, _, _ in judge_held_out(state))
        return jax.tree.map(float, summarise(sums))

    def report(state: State, folder: Path) -> None:
        judged = [(batch, units_bs) for _, batch, units_bs in judge_held_out(state)]
        batch = {name: np.concatenate([one[name] for one, _ in judged]) for name in judged[0][0]}
        units_bs = np.concatenate([units_bs for _, units_bs in judged])
        style_report.write(folder, units_bs=units_bs, names=labels().names, **batch)

    judged = bool(config.data.held_out)
    return recipe.Recipe(
        init,
        step,
        make_stream,
        config.data.batch_rows * config.segment_units * network.pool_frames,
        evaluate=evaluate if judged else None,
        report=report if judged else None,
    )


def make_row(
    labelled: Labelled, rng: np.random.Generator | None, units: int, unit_samples: int
) -> Row:
    """Whole seconds from a place drawn at random, or the first ones, padded; labels -1 there."""
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
    """Sums over all labelled units of a batch, and the styles given, -1 after each row's end.

    The sums are of cross entropy, of right answers, and of how often each style was given and was
    right.
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
        "right": (known_bs & (best_bs == labels_bs)).sum(),
        "given_l": count(best_bs),
        "labels_l": count(labels_bs),
    }
    return sums, jnp.where(length_mask(units_b, labels_bs.shape[1]), best_bs, NO_LABEL)


def summarise(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over labelled units; `commonest` is what always guessing the commonest style gets."""
    total = jnp.maximum(sums["labels_l"].sum(), 1)
    styles_used, perplexity = ema.use(sums["given_l"])
    return {
        "loss": sums["loss"] / total,
        "accuracy": sums["right"] / total,
        "commonest": sums["labels_l"].max() / total,
        "styles_used": styles_used,
        "perplexity": perplexity,
    }


def _read_features(config: RunConfig, unit_samples: int, items: Sequence[Item]) -> list[np.ndarray]:
    """The style features of each recording, relative to its speaker's mean F0."""
    tracks = f0_cache.read_tracks(items, config.f0, Path(config.run_dir) / "f0")
    means = f0_cache.speaker_means(items, tracks)
    found = []
    for item, track in zip(items, tracks, strict=True):
        mean = means.get(item.speaker, track.mean)
        found.append(style_features(load_audio(item.audio), track, mean, unit_samples))
    return found
