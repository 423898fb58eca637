"""`spirit-jax resynth`: a recording spoken again from its units."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.cli.options import ModelDir


def resynth(
    model: ModelDir,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Audio file")],
    output: Annotated[Path, typer.Argument(metavar="OUT.wav", help="WAV file to write")],
    speaker: Annotated[str | None, typer.Option(help="Speaker, by name or number")] = None,
    style: Annotated[str | None, typer.Option(help="Style, by name or number (Base)")] = None,
) -> None:
    """Speak a recording anew from its units alone, with their timing."""
    from spirit_jax import audio as audio_lib
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    units = tokenizer.encode(source)
    wave = tokenizer.decode(units, speaker_id=speaker, style_id=style)
    audio_lib.write_wav(output, wave)
    print(f"{output}: {len(wave) / audio_lib.SAMPLE_RATE:.2f} s from {len(units.hubert)} units")
