"""A model folder to train a language model in.

Its speech tokenizer is one that is there. Its text vocabulary is learnt from a corpus, and then the
language model starts from random; or both are those of another model, with rows for the units that
it lacks, as the paper makes Spirit LM of Llama 2.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spirit_jax import checkpoint, config, files, folders, limits, speech_tokenizer, text_files
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.models import llama
from spirit_jax.models.hubert import QuantizerConfig
from spirit_jax.models.pitch import PitchConfig
from spirit_jax.models.style import StyleConfig
from spirit_jax.text import learn_text_tokenizer, load_text_tokenizer
from spirit_jax.vocab import Vocab


def write_new_model(
    output: str | Path, speech: str | Path, sources: Sequence[str], pieces: int
) -> Vocab:
    """Writes a model folder without a language model, whole or not at all.

    A training with `random_init` and `sizes` starts from it, and its export has all of it.

    Args:
      output: the folder to make.
      speech: a model folder, a speech tokenizer, or the name of one that comes with the package.
      sources: of text, as `manifest.read_source` takes them.
      pieces: of the text vocabulary; see `text.learn_text_tokenizer`.

    Returns:
      The vocabulary.

    Raises:
      InputError: no whole speech tokenizer, no text, or not enough of it.
    """
    found = folders.find_speech_tokenizer(speech)
    texts = _read_texts(sources)
    if not texts:
        raise InputError(f"{', '.join(sources)}: there is no text to learn a vocabulary from.")
    with files.whole_folder(output) as folder:
        own = folder / speech_tokenizer.FOLDER
        about = speech_tokenizer.copy_whole(found, own)
        learn_text_tokenizer(folder / "text_tokenizer", texts, pieces)
        vocab = Vocab.make(about.kind, pieces, units=_count_units(own, about.kind))
        config.write(vocab, folder / "vocab.json")
        checkpoint.list_texts(folder)
    return vocab


def _read_texts(sources: Sequence[str]) -> list[str]:
    """The texts of sources; warns of items without one."""
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
    """Writes a model folder whose language model knows the units of another speech tokenizer.

    The rows of text and of the units that both have are kept, and everything but the embedding and
    the head; other rows are drawn around the mean of the old ones.

    Args:
      output: the folder to make, whole or not at all.
      start: the model folder, or the name of one that comes with the package. One that has no
        speech tokenizer, as `convert.llama` writes it, gets this one; its units are taken to be
        those of its unit tokens.
      speech: as of `write_new_model`; of the same phonetic units.
      seed: of the new rows.

    Returns:
      The vocabulary.

    Raises:
      InputError: a folder is not whole, its phonetic units are others, or `seed` is none.
    """
    limits.check_seed(seed)
    found, start = folders.find_speech_tokenizer(speech), folders.find_language_model(start)
    with files.whole_folder(output) as folder:
        own = folder / speech_tokenizer.FOLDER
        about = speech_tokenizer.copy_whole(found, own)
        if (start / speech_tokenizer.FOLDER).is_dir():
            _check_same_units(start, about, speech)
        old = config.read(Vocab, start / "vocab.json")
        vocab = _extend_vocab(old, own, about.kind)
        config.write(vocab, folder / "vocab.json")
        text = folder / "text_tokenizer"
        text_files.write_tokenizer(start / "text_tokenizer", text, vocab)
        load_text_tokenizer(text, vocab)  # raises where it lacks the units
        checkpoint.list_texts(folder)
        cfg, params = checkpoint.load_network(start / "llama", llama.LlamaConfig)
        leaves = checkpoint.flatten(params)
        for path, axis in (("embed/embedding", 0), ("head", 1)):
            if path in leaves:
                leaves[path] = _move_rows(leaves[path], axis, old, vocab, seed)
        cfg = dataclasses.replace(cfg, vocab_size=vocab.padded_size)
        checkpoint.save_network(folder / "llama", cfg, checkpoint.unflatten(leaves))
    return vocab


def _check_same_units(
    start: Path, about: speech_tokenizer.SpeechTokenizerConfig, speech: str | Path
) -> None:
    before = config.read(
        speech_tokenizer.SpeechTokenizerConfig,
        folders.find_speech_tokenizer(start) / speech_tokenizer.CONFIG_NAME,
    )
    if any(before.hashes[name] != about.hashes[name] for name in ("hubert", "quantizer")):
        raise InputError(f"{start}: its phonetic units are others than those of {speech}.")


def _extend_vocab(old: Vocab, speech: Path, kind: str) -> Vocab:
    """The layout of a model's text with the units of a speech tokenizer."""
    units = _count_units(speech, kind)
    same = (old.pitch_units, old.style_units) == units[1:]
    # The release's vocabulary has one phonetic unit more, the blank of its quantizer.
    if same and old.hubert_units - units[0] in (0, 1):
        return old
    return Vocab.make(kind, old.text_size, old.bos, old.eos, units=units)


def _move_rows(array: np.ndarray, axis: int, old: Vocab, new: Vocab, seed: int) -> np.ndarray:
    """An embedding (axis 0) or a head (axis 1) of `old` for the ids of `new`."""
    rows_vd = np.moveaxis(array, axis, 0)[: old.size]
    if new == old:
        return array
    moved_vd = llama.draw_rows(rows_vd, new.padded_size, (seed, axis)).astype(array.dtype)
    moved_vd[: old.text_size] = rows_vd[: old.text_size]
    places = {name: place for place, name in enumerate(old.token_strings(), old.text_size)}
    for place, name in enumerate(new.token_strings(), new.text_size):
        if name in places:
            moved_vd[place] = rows_vd[places[name]]
    return np.moveaxis(moved_vd, 0, axis)


def _count_units(folder: Path, kind: str) -> tuple[int, int, int]:
    phonetic = config.read(QuantizerConfig, folder / "quantizer" / "config.json").vocab_size
    if kind == "base":
        return phonetic, 0, 0
    pitch = config.read(PitchConfig, folder / "pitch" / "config.json")
    style = config.read(StyleConfig, folder / "style" / "config.json")
    return phonetic, pitch.num_codes, style.num_styles
