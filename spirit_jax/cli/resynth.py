"""`spirit-jax resynth`: encodes a recording and decodes it again."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir, Overwrite, Speaker
from spirit_jax.errors import InputError, plural


def resynth(
    model: ModelDir,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Audio file")],
    output: Annotated[Path, typer.Argument(metavar="OUT.wav", help="WAV file to write")],
    speaker: Speaker = None,
    style: Annotated[str | None, typer.Option(help="Style, by name or number (Base)")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Resynthesise a recording from its units, with their durations."""
    checks.voice(model, speaker, style)
    checks.existing_file(source)
    checks.new_file(output, overwrite)
    if output.suffix.lower() not in ("", ".wav"):
        raise InputError(f"{output}: the output is a WAV file; give a name that ends in .wav.")
    from spirit_jax import audio as audio_lib
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    units = tokenizer.encode(source)
    wave = tokenizer.decode(units, speaker_id=speaker, style_id=style)
    audio_lib.write_wav(output, wave, overwrite)
    seconds, count = len(wave) / audio_lib.SAMPLE_RATE, plural(len(units.hubert), "unit")
    print(f"{output}: {seconds:.2f} s from {count}")
