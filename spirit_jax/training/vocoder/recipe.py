"""Trains the vocoder on recordings and their units.

Letters: b batch, t frames or runs, c channels of a frame, s samples, k parts of a frame, e channels
of the harmonic source.

The recipe is HiFi-GAN (arXiv 2010.05646) with units for input and a duration predictor (arXiv
2104.00355). Additions: the discriminators may start later; losses on the multi-resolution STFT and
on spectral envelopes; the duration predictor is trained on runs that are drawn separately, because
a segment cuts its first and last run. In training, a harmonic source (`models/harmonic_source.py`)
gets the F0 of the recording, and its F0 predictor learns to predict it from units.
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

from spirit_jax import checkpoint, files
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, draw_items, read_items
from spirit_jax.models import harmonic_source
from spirit_jax.models.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from spirit_jax.models.frames import length_mask, log_mel, stft_distance
from spirit_jax.models.hifigan import HifiGan
from spirit_jax.training.optimizer import decay_by_epoch, make_optimizer, make_schedule
from spirit_jax.training.recipe import SpeechRecipe
from spirit_jax.training.step import Gradients, Metrics, TrainState
from spirit_jax.training.vocoder import data, durations, report
from spirit_jax.training.vocoder.config import VocoderRunConfig
from spirit_jax.training.vocoder.data import UnitRecording
from spirit_jax.training.vocoder.network import plan_network

EVAL_FRAMES = 125  # of each held-out recording, 5 s


class VocoderRecipe(SpeechRecipe[VocoderRunConfig]):
    """The training of the vocoder; `params` has the parts "generator" and "discriminator".

    The steps up to `adversarial_from` have no discriminators and are compiled separately: with
    `jax.lax.cond` in one function, convs are many times slower on a CPU.
    """

    def __init__(self, config: VocoderRunConfig):
        super().__init__(config)
        self.network, self.start = plan_network(config)
        self.generator = HifiGan(self.network)
        self.discriminators = Discriminators(config.discriminators)
        self.hop = self.network.code_hop

    @property
    def batch_tokens(self) -> int:
        """Units in a batch."""
        return self.config.data.batch_rows * self.config.segment_units

    def _read(self, sources: tuple[str, ...], limit: int) -> list[UnitRecording]:
        return data.read_recordings(
            self._choose(sources, limit),
            self.config.tokenizer,
            files.as_path(self.config.run_dir),
            self.network,
            self.config.f0,
        )

    def _choose(self, sources: tuple[str, ...], limit: int) -> list[Item]:
        speakers, style = self.config.speakers, self.config.default_style
        items = data.choose(read_items(sources), speakers, self.network.styles, style)
        return draw_items(items, limit, self.config.data.seed)

    @functools.cached_property
    def recordings(self) -> list[UnitRecording]:
        """The recordings to train on, with units."""
        return self._read(self.config.data.sources, self.config.max_recordings)

    @functools.cached_property
    def held_out_recordings(self) -> list[UnitRecording]:
        """The recordings to evaluate on, with units."""
        held_out = self.config.data.held_out
        return self._read(held_out, self.config.eval_recordings) if held_out else []

    def prepare(self) -> None:
        """Computes and caches the units, and if needed the F0, of all recordings."""
        _ = self.recordings, self.held_out_recordings

    @functools.cached_property
    def epoch_steps(self) -> int:
        """Steps of an epoch, at least one."""
        items = self._choose(self.config.data.sources, self.config.max_recordings)
        return max(len(items) // self.config.data.batch_rows, 1)

    def _schedule(self, steps: int) -> optax.Schedule:
        schedule = make_schedule(self.config.optimizer, steps)
        return decay_by_epoch(schedule, self.config.epoch_decay, lambda: self.epoch_steps)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate of the generator by step, with decay after each epoch."""
        return self._schedule(self.config.steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Separate optimizers for the generator and the discriminators."""
        adversarial_steps = max(self.config.steps - self.config.adversarial_from, 1)
        discriminator = self._schedule(adversarial_steps)
        return optimize_parts(
            {
                "generator": make_optimizer(self.config.optimizer, self.schedule),
                "discriminator": make_optimizer(self.config.optimizer, discriminator),
            }
        )

    def init(self) -> tuple[Any, None]:
        """See `Recipe.init`."""
        generator_key, discriminator_key = jax.random.split(jax.random.key(self.config.seed))
        generator = self.start
        if generator is None:
            ids_btc = jnp.zeros((1, 8, len(self.network.channels)), jnp.int32)
            variables = self.generator.init(
                generator_key, ids_btc, jnp.full(1, 8), method="everything"
            )
            generator = variables["params"]
        wave_bs = jnp.zeros((1, self.config.segment_units * self.hop))
        discriminator = self.discriminators.init(discriminator_key, wave_bs)["params"]
        return {"generator": generator, "discriminator": discriminator}, None

    def gradients_of_step(self, number: int) -> Callable[[TrainState, Row], Gradients]:
        """See `Recipe.gradients_of_step`."""
        adversarial = number > self.config.adversarial_from
        return self.adversarial_gradients if adversarial else self.gradients

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, None]:
        """See `Recipe.loss`: the losses without discriminators."""
        return compare(self.generator, params["generator"], self.config, **batch)[1], None

    def gradients(self, state: TrainState, batch: Row) -> Gradients:
        """Gradients of `loss`; the discriminators are not updated."""

        def loss(generator):
            metrics, _ = self.loss({"generator": generator}, state, batch)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss, has_aux=True)(state.params["generator"])
        return Gradients({"generator": grads, "discriminator": None}, metrics)

    def adversarial_gradients(self, state: TrainState, batch: Row) -> Gradients:
        """Gradients of generator and discriminators; both use the same generated audio."""

        def discriminate(discriminator, wave_bs: jax.Array):
            return self.discriminators.apply({"params": discriminator}, wave_bs)

        def generator_loss(generator):
            generated_bs, metrics = compare(self.generator, generator, self.config, **batch)
            discriminator = state.params["discriminator"]
            _, real_features = discriminate(discriminator, batch["wave_bs"])
            scores, features = discriminate(discriminator, generated_bs)
            metrics["loss_adversarial"] = adversarial_loss(scores)
            metrics["loss_features"] = feature_loss(real_features, features)
            metrics["loss"] += metrics["loss_adversarial"]
            metrics["loss"] += self.config.feature_weight * metrics["loss_features"]
            return metrics["loss"], (generated_bs, metrics)

        grads, (generated_bs, metrics) = jax.grad(generator_loss, has_aux=True)(
            state.params["generator"]
        )

        def loss_of_discriminators(discriminator):
            real, _ = discriminate(discriminator, batch["wave_bs"])
            generated, _ = discriminate(discriminator, generated_bs)
            loss = discriminator_loss(real, generated)
            return loss, {
                "loss_discriminator": loss,
                "score_real": jnp.stack([scores.mean() for scores in real]).mean(),
                "score_generated": jnp.stack([scores.mean() for scores in generated]).mean(),
            }

        discriminator_grads, discriminator_metrics = jax.grad(loss_of_discriminators, has_aux=True)(
            state.params["discriminator"]
        )
        grads = {"generator": grads, "discriminator": discriminator_grads}
        return Gradients(grads, metrics | discriminator_metrics)

    def make_stream(self, rows: list[int]) -> SpeechStream:
        """See `Recipe.make_stream`."""
        make = functools.partial(
            data.make_row,
            segment_units=self.config.segment_units,
            duration_runs=self.config.duration_runs,
            hop=self.hop,
        )
        return SpeechStream(self.recordings, make, self.config.data, rows)

    @functools.cached_property
    def held_out(self) -> Row:
        """The first seconds of the held-out recordings, as one batch."""
        return data.whole_rows(self.held_out_recordings, EVAL_FRAMES, self.hop)

    @functools.cached_property
    def synthesis(self) -> "Synthesis":
        """The vocoder's compiled functions."""
        return Synthesis(self.generator)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The mel distance and the errors of durations on held-out recordings."""
        batch, generator = self.held_out, state.params["generator"]
        generated_bs = self.synthesis.generate(generator, batch["ids_btc"], batch["lengths_b"])
        samples_b = batch["lengths_b"] * self.hop
        mel = report.mel_distance(generated_bs, batch["wave_bs"], samples_b, self.config.mel)
        metrics = {"mel": mel}
        if self.network.duration_hidden:
            log_frames_bt = self.synthesis.log_durations(
                generator, batch["codes_bt"], batch["counts_b"]
            )
            metrics |= report.duration_metrics(np.asarray(log_frames_bt), batch)
        return metrics

    def report(self, state: TrainState, folder: Path) -> None:
        """Spectrograms and audio of one held-out recording of each speaker: real and generated."""
        batch, generator, generate = (
            self.held_out,
            state.params["generator"],
            self.synthesis.generate,
        )
        generated_bs = generate(generator, batch["ids_btc"], batch["lengths_b"])
        waves = {
            "real": (batch["wave_bs"], batch["lengths_b"]),
            "generated": (np.asarray(generated_bs), batch["lengths_b"]),
        }
        if self.network.duration_hidden:
            log_frames_bt = self.synthesis.log_durations(
                generator, batch["codes_bt"], batch["counts_b"]
            )
            ids_btc, lengths_b = data.retime(batch, np.asarray(log_frames_bt))
            timed_bs = np.asarray(generate(generator, ids_btc, lengths_b))
            waves["generated_with_predicted_durations"] = timed_bs, lengths_b
        speakers = [recording.speaker for recording in self.held_out_recordings]
        names = sorted(set(speakers))
        sounds = [
            {
                kind: wave_bs[row, : frames_b[row] * self.hop]
                for kind, (wave_bs, frames_b) in waves.items()
            }
            for row in map(speakers.index, names)
        ]
        report.write(folder, names, sounds, self.config.mel)

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the network, with calibrated durations and the most frequent style unit."""
        params = jax.tree.map(np.asarray, state.params["generator"])
        network = self.network
        if network.num_style:
            column = list(network.channels).index("style")
            styles = np.concatenate([recording.ids_tc[:, column] for recording in self.recordings])
            network = dataclasses.replace(network, common_style=int(np.bincount(styles).argmax()))
        if network.duration_hidden:
            params = durations.calibrate(HifiGan(network), params, self.recordings)
        checkpoint.save_network(output, network, params)


def optimize_parts(
    optimizers: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """An optimizer for each part of the parameters; a part without gradients is not updated.

    Args:
      optimizers: by name of the part, a key of the first level of the parameter tree.
    """

    def init(params):
        return {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}

    def update(grads, state, params):
        updates, state = {}, dict(state)
        for name, optimizer in optimizers.items():
            if grads[name] is None:
                updates[name] = jax.tree.map(jnp.zeros_like, params[name])
            else:
                updates[name], state[name] = optimizer.update(
                    grads[name], state[name], params[name]
                )
        return updates, state

    return optax.GradientTransformation(init, update)


class Synthesis:
    """The jitted functions of a vocoder; arguments are its parameters and a padded batch."""

    def __init__(self, model: HifiGan):
        self._config = model.config
        self._generate = jax.jit(functools.partial(_generate, model))
        self._predict_f0 = jax.jit(functools.partial(_predict_f0, model))
        self.log_durations = jax.jit(functools.partial(_log_durations, model))

    def generate(self, params: Any, ids_btc: np.ndarray, lengths_b: np.ndarray) -> jax.Array:
        """Generates audio, float32 (b, s), from ids, with predicted F0 (as in inference).

        Args:
          params: of the vocoder.
          ids_btc: int32, its input (`HifiGanConfig.channels`).
          lengths_b: int32, frames without padding.
        """
        source_bte = np.zeros((*ids_btc.shape[:2], 0), np.float32)
        if self._config.source_harmonics:
            f0_btk = harmonic_source.to_f0(np.asarray(self._predict_f0(params, ids_btc, lengths_b)))
            hop = self._config.code_hop
            source_bte = np.stack([harmonic_source.excite(f0_tk, hop) for f0_tk in f0_btk])
        return self._generate(params, ids_btc, lengths_b, source_bte)


def compare(
    model: HifiGan,
    params: Any,
    config: VocoderRunConfig,
    ids_btc: jax.Array,
    lengths_b: jax.Array,
    wave_bs: jax.Array,
    source_bte: jax.Array,
    codes_bt: jax.Array,
    counts_b: jax.Array,
    frames_bt: jax.Array,
    counted_bt: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The losses of the generator without discriminators.

    Args:
      model: the vocoder.
      params: its parameters.
      config: weights and spectrograms of the losses.
      ids_btc: see `data.make_row` for this and all other arrays.

    Returns:
      Generated audio, float32 (b, s), and losses by name; "loss" is their weighted sum.
    """
    generated_bs = _generate(model, params, ids_btc, lengths_b, source_bte)
    mels = log_mel(generated_bs, config.mel), log_mel(wave_bs, config.mel)
    metrics = {"loss_mel": jnp.mean(jnp.abs(mels[0] - mels[1]))}
    loss = config.mel_weight * metrics["loss_mel"]
    if config.stft_weight:
        metrics["loss_stft"] = stft_distance(
            generated_bs, wave_bs, config.stft_sizes, config.stft_floor
        )
        loss += config.stft_weight * metrics["loss_stft"]
    if config.envelope_weight:
        envelopes = log_mel(generated_bs, config.envelope), log_mel(wave_bs, config.envelope)
        metrics["loss_envelope"] = jnp.mean(jnp.square(envelopes[0] - envelopes[1]))
        loss += config.envelope_weight * metrics["loss_envelope"]
    if model.config.duration_hidden:
        log_frames_bt = _log_durations(model, params, codes_bt, counts_b)
        errors_bt = jnp.square(log_frames_bt - jnp.log1p(frames_bt))
        errors = jnp.where(counted_bt, errors_bt, 0).sum()
        metrics["loss_duration"] = errors / jnp.maximum(counted_bt.sum(), 1)
        loss += config.duration_weight * metrics["loss_duration"]
    if model.config.source_harmonics:
        predicted_btk = _predict_f0(model, params, ids_btc, lengths_b)
        mask_bt = length_mask(lengths_b, ids_btc.shape[1])
        metrics["loss_f0"] = harmonic_source.f0_loss(predicted_btk, source_bte, mask_bt)
        loss += config.f0_weight * metrics["loss_f0"]
    return generated_bs, metrics | {"loss": loss}


def _generate(
    model: HifiGan, params: Any, ids_btc: jax.Array, lengths_b: jax.Array, source_bte: jax.Array
) -> jax.Array:
    return model.apply({"params": params}, ids_btc, lengths_b, source_bte)[0]


def _predict_f0(model: HifiGan, params: Any, ids_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
    return model.apply({"params": params}, ids_btc, lengths_b, method="predict_f0")[0]


def _log_durations(
    model: HifiGan, params: Any, codes_bt: jax.Array, counts_b: jax.Array
) -> jax.Array:
    return model.apply({"params": params}, codes_bt, counts_b, method="log_durations")[0]
