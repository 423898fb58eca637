"""Trains the vocoder on recordings and the units that a speech tokenizer hears in them.

Letters: b batch, t frames or runs, c channels of a frame, s samples, m mel bands.

The recipe is that of HiFi-GAN (arXiv 2010.05646) with units for input and a duration predictor
beside it (arXiv 2104.00355). Its additions: the discriminators may join late, a distance of spectra
at several resolutions, and durations are learnt from whole runs of units rather than from segments,
which cut the first and the last of theirs. A harmonic source (`models/source.py`) gets the F0 of
the recording, while its predictor learns to tell that from units.
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

from spirit_jax import checkpoint, files
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, draw_items, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import discriminators as judges
from spirit_jax.models import hifigan, source
from spirit_jax.models.discriminators import Discriminators
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig
from spirit_jax.models.mel import log_mel, stft_distance
from spirit_jax.models.wav2vec2 import length_mask
from spirit_jax.training import pace, recipe, vocoder_data, vocoder_report
from spirit_jax.training.optimizer import make_optimizer, with_epoch_decay
from spirit_jax.training.run_configs import VocoderRunConfig as RunConfig
from spirit_jax.training.vocoder_data import Utterance

EVAL_FRAMES = 125  # of a held-out recording, 5 s


@struct.dataclass
class State:
    """What a step changes.

    Attributes:
      step: updates so far.
      generator: parameters of the vocoder.
      discriminator: parameters of the judges.
      generator_opt, discriminator_opt: of their optimisers.
    """

    step: jax.Array
    generator: Any
    discriminator: Any
    generator_opt: Any
    discriminator_opt: Any


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics; see `recipe.train`.

    Units are computed first, outside of the mesh, and kept in RUN_DIR/units.jsonl. The steps before
    `adversarial_from` are a training of their own, which the others go on from: one program with
    both, under a `jax.lax.cond`, has convs that are tens of times slower on a CPU.
    """
    network, _ = plan_network(config)
    last = alone = min(config.adversarial_from, config.steps)
    with recipe.open_run(config, allow_changes) as folder:
        with folder.stop.droppable():
            _read_utterances(config, network)
        if alone:
            before = dataclasses.replace(config, steps=alone)
            for metrics in recipe.train_in(folder, before, lambda _: make(config, False), devices):
                last = metrics["step"]
                yield metrics
        if last == alone < config.steps and not folder.stop.asked:
            yield from recipe.train_in(folder, config, make, devices)


def export(config: RunConfig, output: str | Path, allow_changes: bool = False) -> int:
    """Writes the newest checkpoint as a network folder; returns its step.

    Its durations are made to add up to those of the recordings (`pace.settle`).

    Raises:
      InputError: there is no checkpoint, `output` exists, or the recordings cannot be read.
    """
    files.refuse_existing(output)
    state = recipe.newest_state(config, make(config), allow_changes=allow_changes)
    network, _ = plan_network(config)
    params = jax.tree.map(np.asarray, state.generator)
    training, _ = _read_utterances(config, network)
    if network.num_style:
        column = list(network.channels).index("style")
        styles = np.concatenate([one.ids_tc[:, column] for one in training])
        network = dataclasses.replace(network, common_style=int(np.bincount(styles).argmax()))
    if network.duration_hidden:
        params = pace.settle(HifiGan(network), params, training)
    checkpoint.save_network(output, network, params)
    return int(state.step)


def make(config: RunConfig, adversarial: bool = True) -> recipe.Recipe:
    """The recipe, of the steps with discriminators or those without; both have the same state.

    Nothing is read yet but the folder of `start`, and manifests for names of manners.
    """
    network, started = plan_network(config)
    model, judge = HifiGan(network), Discriminators(config.discriminators)
    hop = network.code_hop

    @functools.cache
    def utterances() -> tuple[list[Utterance], list[Utterance]]:
        return _read_utterances(config, network)

    @functools.cache
    def epoch_steps() -> int:
        items = _choose(config, network, config.data.sources, config.max_recordings)
        return max(len(items) // config.data.batch_rows, 1)

    judged_steps = max(config.steps - config.adversarial_from, 1)
    generator_optimizer, discriminator_optimizer = (
        with_epoch_decay(make_optimizer(config.optimizer, steps), config.epoch_decay, epoch_steps)
        for steps in (config.steps, judged_steps)
    )

    def init() -> State:
        first, second = jax.random.split(jax.random.key(config.seed))
        generator = started
        if generator is None:
            ids_btc = jnp.zeros((1, 8, len(network.channels)), jnp.int32)
            method = "everything"
            generator = model.init(first, ids_btc, jnp.full(1, 8), method=method)["params"]
        discriminator = judge.init(second, jnp.zeros((1, config.segment_units * hop)))["params"]
        return State(
            jnp.zeros((), jnp.int32),
            generator,
            discriminator,
            generator_optimizer.init(generator),
            discriminator_optimizer.init(discriminator),
        )

    def move_generator(state: State, grads: Any) -> State:
        updates, opt = generator_optimizer.update(grads, state.generator_opt, state.generator)
        generator = optax.apply_updates(state.generator, updates)
        return state.replace(step=state.step + 1, generator=generator, generator_opt=opt)

    def reconstruct(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        def loss(generator):
            _, metrics = compare(model, generator, config, **batch)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss, has_aux=True)(state.generator)
        return move_generator(state, grads), metrics

    def judge_waves(discriminator, wave_bs: jax.Array):
        return judge.apply({"params": discriminator}, wave_bs)

    def compete(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        """Both sides move from the same state, so that waves are judged once for both losses."""

        def generator_loss(generator):
            made_bs, metrics = compare(model, generator, config, **batch)
            _, real_features = judge_waves(state.discriminator, batch["wave_bs"])
            scores, features = judge_waves(state.discriminator, made_bs)
            metrics["loss_adversarial"] = judges.adversarial_loss(scores)
            metrics["loss_features"] = judges.feature_loss(real_features, features)
            metrics["loss"] += metrics["loss_adversarial"]
            metrics["loss"] += config.feature_weight * metrics["loss_features"]
            return metrics["loss"], (made_bs, metrics)

        def discriminator_loss(discriminator):
            real, _ = judge_waves(discriminator, batch["wave_bs"])
            made, _ = judge_waves(discriminator, made_bs)
            loss = judges.judge_loss(real, made)
            return loss, {
                "loss_discriminator": loss,
                "score_real": jnp.stack([one.mean() for one in real]).mean(),
                "score_made": jnp.stack([one.mean() for one in made]).mean(),
            }

        grads, (made_bs, metrics) = jax.grad(generator_loss, has_aux=True)(state.generator)
        judge_grads, judged = jax.grad(discriminator_loss, has_aux=True)(state.discriminator)
        updates, opt = discriminator_optimizer.update(
            judge_grads, state.discriminator_opt, state.discriminator
        )
        discriminator = optax.apply_updates(state.discriminator, updates)
        state = move_generator(state, grads)
        state = state.replace(discriminator=discriminator, discriminator_opt=opt)
        return state, metrics | judged

    def make_stream(rows: list[int]) -> SpeechStream:
        sizes = {"segment_units": config.segment_units, "duration_runs": config.duration_runs}
        cut = functools.partial(vocoder_data.make_row, hop=hop, **sizes)
        return SpeechStream(utterances()[0], cut, config.data, rows)

    @functools.cache
    def held_out() -> Row:
        return vocoder_data.whole_rows(utterances()[1], EVAL_FRAMES, hop)

    speak_along = jax.jit(functools.partial(_speak, model))
    predict_f0 = jax.jit(functools.partial(_predict_f0, model))
    predict = jax.jit(functools.partial(_predict, model))

    def speak(generator, ids_btc: np.ndarray, lengths_b: np.ndarray) -> jax.Array:
        """From ids alone, as when the network is used."""
        source_bte = np.zeros((*ids_btc.shape[:2], 0), np.float32)
        if network.source_harmonics:
            f0_btk = source.to_f0(np.asarray(predict_f0(generator, ids_btc, lengths_b)))
            source_bte = np.stack([source.excite(f0_tk, hop) for f0_tk in f0_btk])
        return speak_along(generator, ids_btc, lengths_b, source_bte)

    def evaluate(state: State) -> dict[str, float]:
        batch = held_out()
        made_bs = speak(state.generator, batch["ids_btc"], batch["lengths_b"])
        samples_b = batch["lengths_b"] * hop
        metrics = {
            "mel": vocoder_report.mel_distance(made_bs, batch["wave_bs"], samples_b, config.mel)
        }
        if network.duration_hidden:
            log_frames_bt = predict(state.generator, batch["codes_bt"], batch["counts_b"])
            metrics |= vocoder_report.duration_metrics(np.asarray(log_frames_bt), batch)
        return metrics

    def report(state: State, folder: Path) -> None:
        batch = held_out()
        made_bs = speak(state.generator, batch["ids_btc"], batch["lengths_b"])
        waves = {
            "real": (batch["wave_bs"], batch["lengths_b"]),
            "made": (np.asarray(made_bs), batch["lengths_b"]),
        }
        if network.duration_hidden:
            log_frames_bt = predict(state.generator, batch["codes_bt"], batch["counts_b"])
            ids_btc, paced_b = vocoder_data.retime(batch, np.asarray(log_frames_bt))
            paced_bs = np.asarray(speak(state.generator, ids_btc, paced_b))
            waves["made_with_predicted_durations"] = paced_bs, paced_b
        speakers = [utterance.speaker for utterance in utterances()[1]]
        first = [speakers.index(name) for name in sorted(set(speakers))]
        sounds = [
            {
                what: wave_bs[row, : frames_b[row] * hop]
                for what, (wave_bs, frames_b) in waves.items()
            }
            for row in first
        ]
        vocoder_report.write(folder, sorted(set(speakers)), sounds, config.mel)

    judged = bool(config.data.held_out)
    return recipe.Recipe(
        init,
        compete if adversarial else reconstruct,
        make_stream,
        config.data.batch_rows * config.segment_units,
        evaluate=evaluate if judged else None,
        report=report if judged else None,
    )


def compare(
    model: HifiGan,
    params: Any,
    config: RunConfig,
    ids_btc: jax.Array,
    lengths_b: jax.Array,
    wave_bs: jax.Array,
    source_bte: jax.Array,
    codes_bt: jax.Array,
    counts_b: jax.Array,
    frames_bt: jax.Array,
    counted_bt: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the vocoder makes of a batch (`vocoder_data.make_row`), and how far it is from it."""
    made_bs = _speak(model, params, ids_btc, lengths_b, source_bte)
    mels = log_mel(made_bs, config.mel), log_mel(wave_bs, config.mel)
    metrics = {"loss_mel": jnp.mean(jnp.abs(mels[0] - mels[1]))}
    loss = config.mel_weight * metrics["loss_mel"]
    if config.stft_weight:
        how = config.stft_sizes, config.stft_floor
        metrics["loss_stft"] = stft_distance(made_bs, wave_bs, *how)
        loss += config.stft_weight * metrics["loss_stft"]
    if config.envelope_weight:
        envelopes = log_mel(made_bs, config.envelope), log_mel(wave_bs, config.envelope)
        metrics["loss_envelope"] = jnp.mean(jnp.square(envelopes[0] - envelopes[1]))
        loss += config.envelope_weight * metrics["loss_envelope"]
    if model.config.duration_hidden:
        log_frames_bt = _predict(model, params, codes_bt, counts_b)
        errors_bt = jnp.square(log_frames_bt - jnp.log1p(frames_bt))
        errors = jnp.where(counted_bt, errors_bt, 0).sum()
        metrics["loss_duration"] = errors / jnp.maximum(counted_bt.sum(), 1)
        loss += config.duration_weight * metrics["loss_duration"]
    if model.config.source_harmonics:
        told_bte = _predict_f0(model, params, ids_btc, lengths_b)
        mask_bt = length_mask(lengths_b, ids_btc.shape[1])
        metrics["loss_f0"] = source.f0_loss(told_bte, source_bte, mask_bt)
        loss += config.f0_weight * metrics["loss_f0"]
    return made_bs, metrics | {"loss": loss}


def plan_network(config: RunConfig) -> tuple[HifiGanConfig, Any]:
    """The network with the names of its voices and manners, and its first parameters if known.

    With `start`, tables grow by what is new; a new row is the mean of those before.
    """
    base, params = config.network, None
    speakers, style_ids = config.speakers, config.style_ids
    if config.start:
        model, params = hifigan.load(checkpoint.find_network(config.start, "hifigan"))
        base, style_ids = model.config, bool(model.config.num_style_ids)
        if not base.num_speakers:
            raise InputError(f"{config.start}: has one voice only, to which none can be added.")
        speakers = add_names(base.speakers, base.num_speakers, config.speakers)
    styles: tuple[str, ...] = ()
    if style_ids:
        items = read_items(config.data.sources)
        chosen = vocoder_data.choose(items, config.speakers, (), config.default_style)
        styles = tuple(sorted({item.style for item in chosen}))
        if "" in styles:
            raise InputError(
                "style_ids: some recordings do not say their style; give default_style."
            )
        if config.start:
            styles = add_names(base.styles, base.num_style_ids, styles)
    network = dataclasses.replace(
        base,
        num_speakers=len(speakers),
        speakers=speakers,
        num_style_ids=len(styles),
        styles=styles,
        default_speaker=_find(config.default_speaker, speakers, base.default_speaker, config),
        default_style=_find(config.default_style, styles, base.default_style, config),
    )
    if params is not None:
        rows = {"embed_speaker": len(speakers), "embed_style_id": len(styles)}
        params = {
            name: {"embedding": _grow(leaf["embedding"], rows[name])} if name in rows else leaf
            for name, leaf in params.items()
        }
    return network, params


def _find(name: str, names: tuple[str, ...], before: int, config: RunConfig) -> int:
    """The number of a name; without one the number before, or 0 for a new network."""
    if not name or not names:
        return before if config.start else 0
    if name not in names:
        raise InputError(f"The default '{name}' is none of {', '.join(names)}.")
    return names.index(name)


def add_names(names: tuple[str, ...], count: int, new: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a table with new ones; rows that had no name have their number for it."""
    old = (*names, *(str(number) for number in range(len(names), count)))
    return (*old, *(name for name in new if name not in old))


def _grow(table_nd: np.ndarray, rows: int) -> np.ndarray:
    new = np.broadcast_to(table_nd.mean(0), (rows - len(table_nd), table_nd.shape[1]))
    return np.concatenate([table_nd, new]).astype(table_nd.dtype)


def _read_utterances(
    config: RunConfig, network: HifiGanConfig
) -> tuple[list[Utterance], list[Utterance]]:
    """The recordings to train on, and those held out."""

    def read(sources: tuple[str, ...], most: int) -> list[Utterance]:
        items = _choose(config, network, sources, most)
        found = items, config.tokenizer, Path(config.run_dir), network, config.f0
        return vocoder_data.read_utterances(*found)

    training = read(config.data.sources, config.max_recordings)
    held_out = config.data.held_out
    return training, read(held_out, config.eval_recordings) if held_out else []


def _choose(
    config: RunConfig, network: HifiGanConfig, sources: tuple[str, ...], most: int
) -> list[Item]:
    known = read_items(sources)
    items = vocoder_data.choose(known, config.speakers, network.styles, config.default_style)
    return draw_items(items, most, config.data.seed)


def _speak(
    model: HifiGan, params: Any, ids_btc: jax.Array, lengths_b: jax.Array, source_bte: jax.Array
) -> jax.Array:
    return model.apply({"params": params}, ids_btc, lengths_b, source_bte)[0]


def _predict_f0(model: HifiGan, params: Any, ids_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
    return model.apply({"params": params}, ids_btc, lengths_b, method="predict_f0")[0]


def _predict(model: HifiGan, params: Any, codes_bt: jax.Array, counts_b: jax.Array) -> jax.Array:
    return model.apply({"params": params}, codes_bt, counts_b, method="log_durations")[0]
