"""Trains a quantizer that hears the same units when the voice, the pace or the room changes.

Letters: b batch, t time (samples, then frames), d feature width, u units of a row, v units that
there are (and the blank).

The recipe is that of arXiv 2209.15483: from a changed recording a classifier on the encoder learns,
by CTC, to give the units that encoder and quantizer gave for the recording as it was, repeats
dropped. Units between which the classifier is silent (its blank) are filled in by `fill_blanks`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from spirit_jax import checkpoint, units
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.data import augment
from spirit_jax.data.augment import AugmentConfig
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.errors import InputError
from spirit_jax.evaluation.units import unit_edit_distance
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertUnits, QuantizerConfig, fill_blanks
from spirit_jax.models.wav2vec2 import length_mask
from spirit_jax.training import ema, quantizer_report, recipe, unit_targets
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.run_configs import QuantizerRunConfig as RunConfig
from spirit_jax.training.unit_targets import Recording

UNCHANGED = AugmentConfig(stretch=0, pitch=0, reverberation=0, noise=0)


@struct.dataclass
class State:
    """What a step changes.

    Attributes:
      step: updates so far.
      params: of the classifier, "quantizer", and of the encoder's layers that are trained.
      frozen: all other parameters of the encoder, which no step changes.
      opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics; see `recipe.train`."""
    return recipe.train(config, make, devices, allow_changes)


def export(config: RunConfig, output: str | Path, allow_changes: bool = False) -> int:
    """Writes `hubert` and `quantizer` of the newest checkpoint to a folder; returns its step.

    Raises:
      InputError: there is no checkpoint, or `output` exists.
    """
    state = recipe.newest_state(config, make(config), allow_changes=allow_changes)
    model, _, _ = _read_start(config)
    hubert.save(output, model, jax.tree.map(np.asarray, merge(state.params, state.frozen)))
    return int(state.step)


def merge(params: Any, frozen: Any) -> dict[str, Any]:
    """The parameters as `HubertUnits` has them."""
    layers = {**frozen["layers"], **params["layers"]}
    return {"hubert": {**frozen, "layers": layers}, "quantizer": params["quantizer"]}


def make(config: RunConfig) -> recipe.Recipe:
    """The recipe; nothing is read but the folder of `start`."""
    model, teacher, started = _read_start(config)
    trunk, blank = model.config.trunk, model.quantizer.blank
    classifier = hubert.make_quantizer(model.quantizer)
    encoder = unit_targets.Trunk(trunk)
    optimizer = make_optimizer(config.optimizer, config.steps)
    first_trained = trunk.num_layers - config.train_encoder_layers

    def init() -> State:
        hubert_params = jax.tree.map(jnp.asarray, started["hubert"])
        params = started["quantizer"]
        if teacher.quantizer.kind != "mlp":
            one = jnp.zeros((1, 1, trunk.hidden_size))
            params = classifier.init(jax.random.key(config.seed), one)["params"]
        layers = hubert_params["layers"]
        trained = {name: layers[name] for name in layers if int(name) >= first_trained}
        kept = {name: layers[name] for name in layers if int(name) < first_trained}
        params = {"quantizer": jax.tree.map(jnp.asarray, params), "layers": trained}
        frozen = {**hubert_params, "layers": kept}
        return State(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params))

    def score(params: Any, frozen: Any, batch: Row) -> tuple[jax.Array, jax.Array]:
        merged = merge(params, frozen)
        audio = batch["wave_bt"], batch["lengths_b"]
        hidden_btd, frames_b = encoder.apply({"params": merged["hubert"]}, *audio)
        return classifier.apply({"params": merged["quantizer"]}, hidden_btd), frames_b

    def step(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        def loss(params):
            found = score(params, state.frozen, batch)
            metrics = measure(*found, batch["units_bu"], batch["counts_b"], blank)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, state.frozen, opt_state), metrics

    def make_stream(rows: list[int]) -> SpeechStream:
        items = recipe.training_items(config)
        heard = unit_targets.units_of(teacher, started)

        def label() -> dict[str, Any]:
            found = items, heard, trunk, teacher.quantizer.blank
            return {"labels": unit_targets.label_by_units(*found)}

        made_of = " ".join(checkpoint.hash_params(part) for part in started.values())
        kept = unit_targets.keep(Path(config.run_dir) / "targets.npz", made_of, items, label)
        recordings = unit_targets.with_labels(items, kept["labels"])
        cut = functools.partial(make_row, config=config, teacher=teacher)
        return SpeechStream(recordings, cut, config.data, rows)

    @jax.jit
    def units_of(params: Any, frozen: Any, batch: Row):
        scores_btv, frames_b = score(params, frozen, batch)
        return jnp.argmax(scores_btv, axis=-1), frames_b

    @jax.jit
    def teacher_units(params: Any, batch: Row):
        return teacher.apply({"params": params}, batch["wave_bt"], batch["lengths_b"])

    @functools.cache
    def held_out() -> tuple[dict[str, list[Row]], dict[str, list[np.ndarray]]]:
        """By kind of change ("" for none), batches and the units that `start` hears in them."""
        items = recipe.held_out_items(config)
        unlabelled = [Recording(item, np.zeros(0, np.int32)) for item in items]
        batches = held_out_batches(unlabelled, config, teacher)
        before = {
            kind: _listen(functools.partial(teacher_units, started), own, teacher.quantizer.blank)
            for kind, own in batches.items()
        }
        return batches, before

    def listen(state: State) -> dict[str, list[np.ndarray]]:
        hear = functools.partial(units_of, state.params, state.frozen)
        return {kind: _listen(hear, own, blank) for kind, own in held_out()[0].items()}

    def evaluate(state: State) -> dict[str, float]:
        now, before = listen(state), held_out()[1]
        metrics = {"edits_from_start": _mean_distance(before[""], now[""])}
        for kind in augment.KINDS:
            metrics[f"edits_{kind}"] = _mean_distance(now[""], now[kind])
            metrics[f"start_edits_{kind}"] = _mean_distance(before[""], before[kind])
        for name in ("edits", "start_edits"):
            metrics[name] = float(np.mean([metrics[f"{name}_{kind}"] for kind in augment.KINDS]))
        return metrics

    def report(state: State, folder: Path) -> None:
        batches, before = held_out()
        quantizer_report.write(folder, batches, before, listen(state), trunk)

    judged = bool(config.data.held_out)
    frames, _ = unit_targets.segment_size(config.segment_seconds, trunk)
    return recipe.Recipe(
        init,
        step,
        make_stream,
        config.data.batch_rows * frames,
        evaluate=evaluate if judged else None,
        report=report if judged else None,
    )


def measure(
    scores_btv: jax.Array, frames_b: jax.Array, units_bu: jax.Array, counts_b: jax.Array, blank: int
) -> dict[str, jax.Array]:
    """The CTC loss a unit, and what the classifier says.

    Rows with more units than frames, which quick speech may have, cannot be said and do not count.
    """
    true_bt = length_mask(frames_b, scores_btv.shape[1])
    true_bu = length_mask(counts_b, units_bu.shape[1])
    losses_b = ctc_loss(scores_btv, frames_b, units_bu, counts_b, blank)
    fits_b = (counts_b <= frames_b) & (counts_b > 0)
    loss = jnp.where(fits_b, losses_b, 0).sum() / jnp.maximum((fits_b[:, None] & true_bu).sum(), 1)
    said_bt = jnp.argmax(scores_btv, axis=-1)
    heard_bt = true_bt & (said_bt != blank)
    counts_v = jnp.zeros(blank + 1).at[said_bt].add(heard_bt.astype(jnp.float32))[:blank]
    used, perplexity = ema.use(counts_v)
    frames = jnp.maximum(true_bt.sum(), 1)
    return {
        "loss": loss,
        "blank_share": 1 - heard_bt.sum() / frames,
        "units_used": used,
        "perplexity": perplexity,
        "fitting_rows": fits_b.mean(),
    }


def ctc_loss(
    scores_btv: jax.Array, frames_b: jax.Array, units_bu: jax.Array, counts_b: jax.Array, blank: int
) -> jax.Array:
    """Minus the log-probability of each row's units, float32 (b,), by CTC (Graves et al. 2006)."""
    after_bt = ~length_mask(frames_b, scores_btv.shape[1])
    after_bu = ~length_mask(counts_b, units_bu.shape[1])
    arguments = scores_btv, after_bt.astype(jnp.float32), units_bu, after_bu.astype(jnp.float32)
    return optax.ctc_loss(*arguments, blank_id=blank)


def make_row(
    recording: Recording, rng: np.random.Generator, config: RunConfig, teacher: HubertUnits
) -> Row:
    """A segment from a place drawn at random, changed, and the units that it had before."""
    seconds, trunk = config.segment_seconds, teacher.config.trunk
    frames, size = unit_targets.segment_size(seconds, trunk)
    piece_t, labels_t = unit_targets.draw_segment(recording, seconds, trunk, rng)
    changed_t = augment.augment(piece_t, rng, config.augment)
    units_u = labels_t[units.dedup(labels_t)]
    room = int(size / min(config.augment.stretch_rates[0], 1)) + 1
    return {
        "wave_bt": np.pad(changed_t, (0, room - len(changed_t))),
        "lengths_b": np.int32(len(changed_t)),
        "units_bu": np.pad(units_u, (0, frames - len(units_u))).astype(np.int32),
        "counts_b": np.int32(len(units_u)),
    }


def held_out_batches(
    recordings: list[Recording], config: RunConfig, teacher: HubertUnits
) -> dict[str, list[Row]]:
    """The beginnings of recordings in batches, as they are and with each kind of change."""
    size = config.data.batch_rows
    batches = {}
    for kind in ("", *augment.KINDS):
        changes = augment.only(kind, config.augment) if kind else UNCHANGED
        # The range of stretching says how long rows are, which is the same for all.
        changes = dataclasses.replace(changes, stretch_rates=config.augment.stretch_rates)
        settings = dataclasses.replace(config, augment=changes)
        rows = [
            make_row(one, np.random.default_rng(number), settings, teacher)
            for number, one in enumerate(recordings)
        ]
        batches[kind] = [stack(rows[start : start + size]) for start in range(0, len(rows), size)]
    return batches


def _listen(hear, batches: list[Row], blank: int) -> list[np.ndarray]:
    """The units of every row, blanks filled."""
    found = []
    for batch in batches:
        units_bt, frames_b = (np.asarray(array) for array in hear(batch))
        rows = zip(units_bt, frames_b, strict=True)
        found += [fill_blanks(units_t[:count], blank) for units_t, count in rows]
    return found


def _mean_distance(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    pairs = zip(some, others, strict=True)
    return float(np.mean([unit_edit_distance(*pair) for pair in pairs]))


def _read_start(config: RunConfig) -> tuple[HubertUnits, HubertUnits, dict[str, Any]]:
    """The model to train, the one that its units come from, and the latter's parameters."""
    start = config.start
    teacher, params = hubert.load_both(start)
    trunk, theirs = teacher.config.trunk, teacher.quantizer
    if config.train_encoder_layers > trunk.num_layers:
        raise InputError(
            f"train_encoder_layers is {config.train_encoder_layers}, and the encoder of {start} "
            f"has {trunk.num_layers}."
        )
    if teacher.config.sample_rate != SAMPLE_RATE:
        raise InputError(f"{start}: hears {teacher.config.sample_rate} Hz; {SAMPLE_RATE} is known.")
    if theirs.kind == "mlp":
        return teacher, teacher, params
    own = QuantizerConfig(
        "mlp", theirs.vocab_size, trunk.hidden_size, config.hidden_sizes, theirs.precision
    )
    return HubertUnits(teacher.config, own), teacher, params
