"""Creates model folders for training, and packs speech tokenizers.

A new model folder gets a copy of an existing speech tokenizer. `write_new_model` trains a text
tokenizer, for a language model with random initialisation. `extend_model` takes the language model
and its text tokenizer from another model and adds units to its vocabulary, as the paper extends
Llama 2 to Spirit LM.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spirit_jax import checkpoint, config, files, limits, markup, model_folder, text_files
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.model_folder import SpeechTokenizerConfig, find_network
from spirit_jax.models import hifigan, hubert, llama_weights, pitch, style
from spirit_jax.models.hubert import QuantizerConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.pitch import PitchConfig
from spirit_jax.models.style import StyleConfig
from spirit_jax.text import learn_text_tokenizer, load_text_tokenizer
from spirit_jax.vocab import Vocab


def write_new_model(
    output: str | Path, speech: str | Path, sources: Sequence[str], pieces: int
) -> Vocab:
    """Creates a model folder without a language model, completely or not at all.

    To train one, set `model` to this folder in a run config with `random_init` and `sizes`. The
    exported model has the files of this folder, and the language model.

    Args:
      output: the folder to create.
      speech: a model folder, a speech tokenizer, or the name of a packaged model.
      sources: manifests or folders with text, see `manifest.read_source`.
      pieces: size of the text vocabulary, see `text.learn_text_tokenizer`.

    Returns:
      The vocabulary.

    Raises:
      InputError: the speech tokenizer is incomplete, or there is not enough text.
    """
    tokenizer = model_folder.find_speech_tokenizer(speech)
    texts = _read_texts(sources)
    if not texts:
        raise InputError(f"{', '.join(sources)}: there is no text to train a vocabulary on.")
    with files.whole_folder(output) as folder:
        copied = folder / model_folder.SPEECH_TOKENIZER
        tokenizer_config = model_folder.copy_speech_tokenizer(tokenizer, copied)
        learn_text_tokenizer(folder / "text_tokenizer", texts, pieces)
        vocab = Vocab.make(
            tokenizer_config.kind, pieces, units=_count_units(copied, tokenizer_config.kind)
        )
        config.write(vocab, folder / "vocab.json")
        model_folder.list_texts(folder)
    return vocab


def _read_texts(sources: Sequence[str]) -> list[str]:
    """The texts of sources; warns about items without text if others have one."""
    texts = []
    for source in sources:
        items = list(read_source(source))
        without = [item for item in items if not item.text]
        if without and len(without) < len(items):
            reason = next((f": {item.problem}" for item in without if item.problem), ".")
            message = f"{source}: {len(without)} of {len(items)} items have no text{reason}"
            warnings.warn(message, InputWarning, stacklevel=2)
        texts += [item.text for item in items if item.text]
    return texts


def extend_model(output: str | Path, start: str | Path, speech: str | Path, seed: int = 0) -> Vocab:
    """Extends the vocabulary of a language model by the units of a speech tokenizer.

    All parameters are kept. `llama_weights.draw_rows` draws new rows of the embedding and the head.

    Args:
      output: the folder to create; it is created completely or not at all.
      start: a model folder, or the name of a packaged model. If it has a speech tokenizer, its
        phonetic units must be those of `speech`. If it has none, as after `convert.llama`, its unit
        tokens are assumed to be units of `speech`.
      speech: see `write_new_model`.
      seed: random seed of the new rows.

    Returns:
      The vocabulary.

    Raises:
      InputError: a folder is incomplete, phonetic units differ, or the seed is invalid.
    """
    limits.check_seed(seed)
    tokenizer = model_folder.find_speech_tokenizer(speech)
    start = model_folder.find_language_model(start)
    with files.whole_folder(output) as folder:
        copied = folder / model_folder.SPEECH_TOKENIZER
        tokenizer_config = model_folder.copy_speech_tokenizer(tokenizer, copied)
        if (start / model_folder.SPEECH_TOKENIZER).is_dir():
            _check_same_units(start, tokenizer_config, speech)
        old = config.read(Vocab, start / "vocab.json")
        vocab = _extend_vocab(old, copied, tokenizer_config.kind)
        config.write(vocab, folder / "vocab.json")
        text = folder / "text_tokenizer"
        text_files.write_tokenizer(start / "text_tokenizer", text, vocab)
        load_text_tokenizer(text, vocab)  # raises an error if it lacks unit tokens
        model_folder.list_texts(folder)
        cfg, params = checkpoint.load_network(start / "llama", LlamaConfig)
        leaves = checkpoint.flatten(params)
        for path, axis in (("embed/embedding", 0), ("head", 1)):
            if path in leaves:
                leaves[path] = _move_rows(leaves[path], axis, old, vocab, seed)
        cfg = dataclasses.replace(cfg, vocab_size=vocab.padded_size)
        checkpoint.save_network(folder / "llama", cfg, checkpoint.unflatten(leaves))
    return vocab


def _check_same_units(
    start: Path, tokenizer_config: SpeechTokenizerConfig, speech: str | Path
) -> None:
    before = config.read(
        SpeechTokenizerConfig,
        model_folder.find_speech_tokenizer(start) / model_folder.CONFIG_NAME,
    )
    if any(
        before.hashes[name] != tokenizer_config.hashes[name] for name in ("hubert", "quantizer")
    ):
        raise InputError(f"{start}: its phonetic units are not those of {speech}.")


def _extend_vocab(old: Vocab, speech: Path, kind: str) -> Vocab:
    """The vocabulary with the text tokens of `old` and the units of a speech tokenizer."""
    units = _count_units(speech, kind)
    same = (old.pitch_units, old.style_units) == units[1:]
    # The release's vocabulary has one more phonetic unit than its quantizer: the blank.
    if same and old.hubert_units - units[0] in (0, 1):
        return old
    if kind == "expressive" and len(old.tokens) < len(markup.NAMES):
        raise InputError(f"{speech}: has pitch and style, for which the vocabulary has no names.")
    vocab = Vocab.make(kind, old.text_size, old.bos, old.eos, units=units)
    return dataclasses.replace(vocab, tokens=old.tokens, always_mark_output=old.always_mark_output)


def _move_rows(array: np.ndarray, axis: int, old: Vocab, new: Vocab, seed: int) -> np.ndarray:
    """An embedding (axis 0) or head (axis 1) for the ids of `new`, from one for those of `old`."""
    rows_vd = np.moveaxis(array, axis, 0)[: old.size]
    if new == old:
        return array
    moved_vd = llama_weights.draw_rows(rows_vd, new.padded_size, (seed, axis)).astype(array.dtype)
    moved_vd[: old.text_size] = rows_vd[: old.text_size]
    old_ids = {token: number for number, token in enumerate(old.token_strings(), old.text_size)}
    for number, token in enumerate(new.token_strings(), new.text_size):
        if token in old_ids:
            moved_vd[number] = rows_vd[old_ids[token]]
    return np.moveaxis(moved_vd, 0, axis)


def _count_units(folder: Path, kind: str) -> tuple[int, int, int]:
    """Numbers of phonetic, pitch and style units of a speech tokenizer."""
    phonetic = config.read(QuantizerConfig, folder / "quantizer" / "config.json").vocab_size
    if kind == "base":
        return phonetic, 0, 0
    pitch = config.read(PitchConfig, folder / "pitch" / "config.json")
    style = config.read(StyleConfig, folder / "style" / "config.json")
    return phonetic, pitch.num_codes, style.num_styles


def pack(
    output: str | Path,
    units: str | Path,
    pitch_units: str | Path | None = None,
    style_units: str | Path | None = None,
    vocoder: str | Path | None = None,
    f0_method: str = "pyin",
    half: bool = False,
    share: str | Path | None = None,
) -> SpeechTokenizerConfig:
    """Packs networks into a speech tokenizer: Expressive with pitch and style units, else Base.

    Each network is given by its folder, or by a model that has it, such as "spirit-tiny-base".

    Args:
      output: the folder to create; it is created completely or not at all.
      units: a folder with `hubert` and `quantizer`.
      pitch_units, style_units: the networks of pitch and style units; both or neither.
      vocoder: a HiFi-GAN; without one the speech tokenizer cannot decode.
      f0_method: "pyin"; "fcpe" needs the network that `convert.fcpe` adds.
      half: stores float16 parameters; computation is in float32.
      share: another speech tokenizer. Networks that are identical to its own are not stored again:
        the new folder refers to them by relative path, so move both folders together.

    Returns:
      The config of the speech tokenizer.

    Raises:
      InputError: a network is missing or does not fit the others, or `output` exists.
    """
    files.refuse_existing(output)
    if (pitch_units is None) != (style_units is None):
        raise InputError("Pitch and style units go together: give both networks, or none.")
    networks = _read_networks(units, pitch_units, style_units, vocoder)
    with files.whole_folder(output) as folder:
        for name, (cfg, params) in networks.items():
            stored = jax.tree.map(checkpoint.halve, params) if half else params
            checkpoint.save_network(folder / name, cfg, stored)
        kind = "base" if pitch_units is None else "expressive"
        packed = model_folder.write_speech_tokenizer(folder, kind, f0_method)
        if share is not None:
            model_folder.share_networks(folder, share, output)
    return packed


def _read_networks(
    units: str | Path,
    pitch_units: str | Path | None,
    style_units: str | Path | None,
    vocoder: str | Path | None,
) -> dict[str, tuple[Any, Any]]:
    """(config, parameters) of the networks of a speech tokenizer, by name; see `pack`."""
    encoder, params = hubert.load_both(units)
    networks = {
        "hubert": (encoder.config, params["hubert"]),
        "quantizer": (encoder.quantizer, params["quantizer"]),
    }
    counts = {"code": encoder.quantizer.vocab_size, "pitch": 0, "style": 0}
    if pitch_units is not None:
        model, params = pitch.load(find_network(pitch_units, "pitch"))
        networks["pitch"] = model.config, params
        counts["pitch"] = model.config.num_codes
        model, params = style.load(find_network(style_units, "style"))
        networks["style"] = model.config, params
        counts["style"] = model.config.num_styles
    if vocoder is not None:
        model, params = hifigan.load(find_network(vocoder, "hifigan"))
        networks["hifigan"] = model.config, params
        for name, count in counts.items():
            known = model.config.channels.get(name, 0)
            # `known` may be larger: the release's Base vocoder has one more unit, for padding.
            if known < count or (known and not count):
                raise InputError(f"{vocoder}: takes {known} {name} units, and there are {count}.")
    return networks
