"""Packs trained networks into a speech tokenizer folder, as a conversion makes one."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax

from spirit_jax import checkpoint, config, files, speech_tokenizer
from spirit_jax.checkpoint import find_network
from spirit_jax.errors import InputError
from spirit_jax.models import hifigan, hubert, pitch, style
from spirit_jax.speech_tokenizer import SpeechTokenizerConfig


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
    """Writes a speech tokenizer folder: Expressive with pitch and style units, Base without.

    Args:
      output: the folder to make; it is whole or absent.
      units: a folder with `hubert` and `quantizer`.
      pitch_units, style_units: folders of these networks, both or none.
      vocoder: that of a HiFi-GAN; a tokenizer without one encodes, and cannot speak. For each a
        model that has it will do as well, such as "spirit-tiny-base".
      f0_method: "pyin"; "fcpe" needs the network that `convert.fcpe` adds.
      half: stores float16. Networks compute in float32 all the same.
      share: another set, of which networks that are the same are not stored again but looked up;
        both folders then stay where they are to each other.

    Raises:
      InputError: a network is missing or does not fit the others, or `output` exists.
    """
    files.refuse_existing(output)
    if (pitch_units is None) != (style_units is None):
        raise InputError("Pitch and style units go together: give both networks, or none.")
    kind = "base" if pitch_units is None else "expressive"
    heard, params = hubert.load_both(units)
    networks = {
        "hubert": (heard.config, params["hubert"]),
        "quantizer": (heard.quantizer, params["quantizer"]),
    }
    counts = {"code": heard.quantizer.vocab_size, "pitch": 0, "style": 0}
    if kind == "expressive":
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
            # The release's Base vocoder has a unit more than there are, for padding.
            if known < count or (known and not count):
                raise InputError(f"{vocoder}: takes {known} {name} units, and there are {count}.")
    with files.whole_folder(output) as folder:
        for name, (about, params) in networks.items():
            stored = jax.tree.map(checkpoint.halve, params) if half else params
            checkpoint.save_network(folder / name, about, stored)
        sealed = speech_tokenizer.seal(folder, kind, f0_method)
        if share is not None:
            known = config.read(SpeechTokenizerConfig, Path(share) / speech_tokenizer.CONFIG_NAME)
            for name, sha in sealed.hashes.items():
                if known.hashes.get(name) == sha and (Path(share) / name).is_dir():
                    shutil.rmtree(folder / name)
            sealed = dataclasses.replace(sealed, shared=os.path.relpath(share, output))
            config.write(sealed, folder / speech_tokenizer.CONFIG_NAME)
    return sealed
