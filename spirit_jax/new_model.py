"""A model folder to train a language model in from the start: everything but the language model.

Its text vocabulary is learnt from a corpus, its speech tokenizer is one that is there.
"""

from collections.abc import Sequence
from pathlib import Path

from spirit_jax import checkpoint, config, speech_tokenizer
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import InputError
from spirit_jax.models.hubert import QuantizerConfig
from spirit_jax.models.pitch import PitchConfig
from spirit_jax.models.style import StyleConfig
from spirit_jax.text import learn_text_tokenizer
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
    found = checkpoint.find_model(speech)
    found = found / speech_tokenizer.FOLDER if (found / speech_tokenizer.FOLDER).is_dir() else found
    if not (found / speech_tokenizer.CONFIG_NAME).is_file():
        raise InputError(f"{speech}: holds no speech tokenizer.")
    texts = [item.text for source in sources for item in read_source(source) if item.text]
    if not texts:
        raise InputError(f"{', '.join(sources)}: there is no text to learn a vocabulary from.")
    with checkpoint.whole_folder(output) as folder:
        own = folder / speech_tokenizer.FOLDER
        about = speech_tokenizer.copy_whole(found, own)
        learn_text_tokenizer(folder / "text_tokenizer", texts, pieces)
        vocab = Vocab.make(about.kind, pieces, units=_count_units(own, about.kind))
        config.write(vocab, folder / "vocab.json")
    return vocab


def _count_units(folder: Path, kind: str) -> tuple[int, int, int]:
    phonetic = config.read(QuantizerConfig, folder / "quantizer" / "config.json").vocab_size
    if kind == "base":
        return phonetic, 0, 0
    pitch = config.read(PitchConfig, folder / "pitch" / "config.json")
    style = config.read(StyleConfig, folder / "style" / "config.json")
    return phonetic, pitch.num_codes, style.num_styles
