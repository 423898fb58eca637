"""Trains a quantizer whose units are robust to speaker, tempo, reverberation and noise.

Letters: b batch, t time (samples, then frames), d feature width, u units of a row, v unit
vocabulary (with the blank).

The recipe is that of arXiv 2209.15483: a classifier on the encoder gets an augmented recording and
learns, with a CTC loss, the deduplicated units that the teacher (the encoder and quantizer of
`start`) gives for the original recording. Blanks in its output are replaced by `fill_blanks`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spirit_jax import checkpoint
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.data import augment
from spirit_jax.data.augment import AugmentConfig
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.errors import InputError
from spirit_jax.evaluation.unit_distance import unit_edit_distance
from spirit_jax.models import hubert
from spirit_jax.models.frames import length_mask
from spirit_jax.models.hubert import HubertUnits, QuantizerConfig, fill_blanks
from spirit_jax.models.wav2vec2 import Trunk
from spirit_jax.training.hubert import targets
from spirit_jax.training.hubert.targets import Recording
from spirit_jax.training.quantizer import report
from spirit_jax.training.quantizer.config import QuantizerRunConfig
from spirit_jax.training.recipe import SpeechRecipe, code_usage
from spirit_jax.training.step import Metrics, TrainState
from spirit_jax.units import dedup

NO_AUGMENTATION = AugmentConfig(stretch=0, pitch=0, reverberation=0, noise=0)


class QuantizerRecipe(SpeechRecipe[QuantizerRunConfig]):
    """The training of the quantizer; the state's `extra` is the encoder's frozen parameters."""

    def __init__(self, config: QuantizerRunConfig):
        super().__init__(config)
        self.model, self.teacher, self.teacher_params = _read_start(config)
        self.trunk, self.blank = self.model.config.trunk, self.model.quantizer.blank
        self.classifier = hubert.make_quantizer(self.model.quantizer)
        self.encoder = Trunk(self.trunk)

    @property
    def batch_tokens(self) -> int:
        """Frames of the trunk in a batch."""
        frames, _ = targets.segment_size(self.config.segment_seconds, self.trunk)
        return self.config.data.batch_rows * frames

    def init(self) -> tuple[Any, Any]:
        """See `Recipe.init`: trains the classifier and the encoder's last layers."""
        encoder = jax.tree.map(jnp.asarray, self.teacher_params["hubert"])
        classifier = self.teacher_params["quantizer"]
        if self.teacher.quantizer.kind != "mlp":
            example = jnp.zeros((1, 1, self.trunk.hidden_size))
            classifier = self.classifier.init(jax.random.key(self.config.seed), example)["params"]
        first_trained = self.trunk.num_layers - self.config.train_encoder_layers
        layers = encoder["layers"]
        trained = {name: layers[name] for name in layers if int(name) >= first_trained}
        frozen = {name: layers[name] for name in layers if int(name) < first_trained}
        params = {"quantizer": jax.tree.map(jnp.asarray, classifier), "layers": trained}
        return params, {**encoder, "layers": frozen}

    def scores(self, params: Any, frozen: Any, batch: Row) -> tuple[jax.Array, jax.Array]:
        """The classifier's logits, float32 (b, t, v), and true numbers of frames, int32 (b,)."""
        merged = merge(params, frozen)
        hidden_btd, frames_b = self.encoder.apply(
            {"params": merged["hubert"]}, batch["wave_bt"], batch["lengths_b"]
        )
        return self.classifier.apply({"params": merged["quantizer"]}, hidden_btd), frames_b

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Any]:
        """See `Recipe.loss`: CTC loss of the teacher's units of the original audio."""
        scores_btv, frames_b = self.scores(params, state.extra, batch)
        metrics = measure(scores_btv, frames_b, batch["units_bu"], batch["counts_b"], self.blank)
        return metrics, state.extra

    def make_stream(self, rows: list[int]) -> SpeechStream:
        """See `Recipe.make_stream`."""
        items = self.training_items()

        units = targets.network_units(self.teacher, self.teacher_params)
        blank = self.teacher.quantizer.blank
        hashes = " ".join(checkpoint.hash_params(part) for part in self.teacher_params.values())
        labels = targets.cached_labels(
            self.config.run_dir,
            f"units of {hashes} {self.trunk.conv_layers}",
            items,
            lambda items: targets.label_by_units(items, units, self.trunk, blank),
        )
        recordings = targets.with_labels(items, labels)
        make = functools.partial(make_row, config=self.config, teacher=self.teacher)
        return SpeechStream(recordings, make, self.config.data, rows)

    @functools.cached_property
    def held_out(self) -> tuple[dict[str, list[Row]], dict[str, list[np.ndarray]]]:
        """By kind of augmentation ("" for none): batches, and the units of the teacher."""
        unlabelled = [Recording(item, np.zeros(0, np.int32)) for item in self.held_out_items()]
        batches = held_out_batches(unlabelled, self.config, self.teacher)
        apply = jax.jit(
            lambda params, batch: self.teacher.apply(
                {"params": params}, batch["wave_bt"], batch["lengths_b"]
            )
        )
        teacher = functools.partial(apply, self.teacher_params)
        blank = self.teacher.quantizer.blank
        return batches, {kind: _units(teacher, rows, blank) for kind, rows in batches.items()}

    @functools.cached_property
    def jitted_units(self) -> Callable[[Any, Any, Row], tuple[jax.Array, jax.Array]]:
        """Jitted: (params, frozen, batch) to units, int32 (b, t), and true numbers of frames."""

        def units(params, frozen, batch):
            scores_btv, frames_b = self.scores(params, frozen, batch)
            return jnp.argmax(scores_btv, axis=-1), frames_b

        return jax.jit(units)

    def held_out_units(self, state: TrainState) -> dict[str, list[np.ndarray]]:
        """By kind of augmentation, the units of every held-out recording."""
        units = functools.partial(self.jitted_units, state.params, state.extra)
        batches, _ = self.held_out
        return {kind: _units(units, rows, self.blank) for kind, rows in batches.items()}

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Unit edit distances between original and augmented audio, in percent."""
        after, before = self.held_out_units(state), self.held_out[1]
        metrics = {"edits_from_start": _mean_distance(before[""], after[""])}
        for kind in augment.KINDS:
            metrics[f"edits_{kind}"] = _mean_distance(after[""], after[kind])
            metrics[f"start_edits_{kind}"] = _mean_distance(before[""], before[kind])
        for name in ("edits", "start_edits"):
            metrics[name] = float(np.mean([metrics[f"{name}_{kind}"] for kind in augment.KINDS]))
        return metrics

    def report(self, state: TrainState, folder: Path) -> None:
        """Plots the units of augmented audio of the teacher and of the trained network."""
        batches, before = self.held_out
        report.write(folder, batches, before, self.held_out_units(state), self.trunk)

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the folders `hubert` and `quantizer`."""
        params = jax.tree.map(np.asarray, merge(state.params, state.extra))
        hubert.save(output, self.model, params)


def merge(params: Any, frozen: Any) -> dict[str, Any]:
    """The parameters as `HubertUnits` has them."""
    layers = {**frozen["layers"], **params["layers"]}
    return {"hubert": {**frozen, "layers": layers}, "quantizer": params["quantizer"]}


def measure(
    scores_btv: jax.Array, frames_b: jax.Array, units_bu: jax.Array, counts_b: jax.Array, blank: int
) -> dict[str, jax.Array]:
    """The CTC loss per unit, and statistics of the classifier's output.

    Rows with more units than frames, as after a large speed-up, have no CTC path and are ignored.

    Args:
      scores_btv: float32 logits.
      frames_b: int32, true numbers of frames.
      units_bu: int32, target units.
      counts_b: int32, true numbers of target units.
      blank: the blank label.

    Returns:
      Scalar metrics by name.
    """
    true_bt = length_mask(frames_b, scores_btv.shape[1])
    true_bu = length_mask(counts_b, units_bu.shape[1])
    losses_b = ctc_loss(scores_btv, frames_b, units_bu, counts_b, blank)
    fits_b = (counts_b <= frames_b) & (counts_b > 0)
    loss = jnp.where(fits_b, losses_b, 0).sum() / jnp.maximum((fits_b[:, None] & true_bu).sum(), 1)
    best_bt = jnp.argmax(scores_btv, axis=-1)
    unit_bt = true_bt & (best_bt != blank)
    counts_v = jnp.zeros(blank + 1).at[best_bt].add(unit_bt.astype(jnp.float32))[:blank]
    used, perplexity = code_usage(counts_v)
    frames = jnp.maximum(true_bt.sum(), 1)
    return {
        "loss": loss,
        "blank_share": 1 - unit_bt.sum() / frames,
        "units_used": used,
        "perplexity": perplexity,
        "fitting_rows": fits_b.mean(),
    }


def ctc_loss(
    scores_btv: jax.Array, frames_b: jax.Array, units_bu: jax.Array, counts_b: jax.Array, blank: int
) -> jax.Array:
    """CTC loss (Graves et al., 2006) of each row, float32 (b,); arguments as of `measure`."""
    after_bt = ~length_mask(frames_b, scores_btv.shape[1])
    after_bu = ~length_mask(counts_b, units_bu.shape[1])
    arguments = scores_btv, after_bt.astype(jnp.float32), units_bu, after_bu.astype(jnp.float32)
    return optax.ctc_loss(*arguments, blank_id=blank)


def make_row(
    recording: Recording, rng: np.random.Generator, config: QuantizerRunConfig, teacher: HubertUnits
) -> Row:
    """A row of a batch: a random segment with augmentation, and its original units.

    Args:
      recording: with the teacher's units as labels.
      rng: of all draws.
      config: length of the segment and augmentation.
      teacher: the stride and receptive field of its trunk are used.

    Returns:
      "wave_bt", float32 samples; "lengths_b", int32; "units_bu", int32, deduplicated; "counts_b",
      int32.
    """
    seconds, trunk = config.segment_seconds, teacher.config.trunk
    frames, size = targets.segment_size(seconds, trunk)
    piece_t, labels_t = targets.draw_segment(recording, seconds, trunk, rng)
    augmented_t = augment.augment(piece_t, rng, config.augment)
    units_u = labels_t[dedup(labels_t)]
    longest = int(size / min(config.augment.stretch_rates[0], 1)) + 1
    return {
        "wave_bt": np.pad(augmented_t, (0, longest - len(augmented_t))),
        "lengths_b": np.int32(len(augmented_t)),
        "units_bu": np.pad(units_u, (0, frames - len(units_u))).astype(np.int32),
        "counts_b": np.int32(len(units_u)),
    }


def held_out_batches(
    recordings: list[Recording], config: QuantizerRunConfig, teacher: HubertUnits
) -> dict[str, list[Row]]:
    """Batches of the first segments of recordings, without and with each kind of augmentation.

    Args:
      recordings: held-out recordings.
      config: see `make_row`.
      teacher: see `make_row`.

    Returns:
      Batches by kind of augmentation, "" for none.
    """
    size = config.data.batch_rows
    batches = {}
    for kind in ("", *augment.KINDS):
        changes = augment.only(kind, config.augment) if kind else NO_AUGMENTATION
        # The range of stretching determines the length of rows, which must be the same for all.
        changes = dataclasses.replace(changes, stretch_rates=config.augment.stretch_rates)
        settings = dataclasses.replace(config, augment=changes)
        rows = [
            make_row(recording, np.random.default_rng(number), settings, teacher)
            for number, recording in enumerate(recordings)
        ]
        batches[kind] = [stack(rows[start : start + size]) for start in range(0, len(rows), size)]
    return batches


def _units(
    compute: Callable[[Row], tuple[jax.Array, jax.Array]], batches: list[Row], blank: int
) -> list[np.ndarray]:
    """The units of every row, without blanks."""
    units = []
    for batch in batches:
        units_bt, frames_b = (np.asarray(array) for array in compute(batch))
        for units_t, frames in zip(units_bt, frames_b, strict=True):
            units.append(fill_blanks(units_t[:frames], blank))
    return units


def _mean_distance(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    pairs = zip(first, second, strict=True)
    return float(np.mean([unit_edit_distance(*pair) for pair in pairs]))


def _read_start(config: QuantizerRunConfig) -> tuple[HubertUnits, HubertUnits, dict[str, Any]]:
    """The model to train, the teacher, and the teacher's parameters."""
    start = config.start
    teacher, params = hubert.load_both(start)
    trunk, quantizer = teacher.config.trunk, teacher.quantizer
    if config.train_encoder_layers > trunk.num_layers:
        raise InputError(
            f"train_encoder_layers is {config.train_encoder_layers}, and the encoder of {start} "
            f"has {trunk.num_layers}."
        )
    if teacher.config.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{start}: its rate is {teacher.config.sample_rate} Hz, not {SAMPLE_RATE}."
        )
    if quantizer.kind == "mlp":
        return teacher, teacher, params
    classifier = QuantizerConfig(
        "mlp", quantizer.vocab_size, trunk.hidden_size, config.hidden_sizes, quantizer.precision
    )
    return HubertUnits(teacher.config, classifier), teacher, params
