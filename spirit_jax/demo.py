"""The demo: a recording goes the whole way, with small random networks and no downloads."""

import tempfile
import time
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

matplotlib.use("Agg")  # a picture in a file needs no display
from matplotlib import pyplot  # noqa: E402

from spirit_jax import f0  # noqa: E402
from spirit_jax.audio import SAMPLE_RATE, load_audio, write_wav  # noqa: E402
from spirit_jax.random_model import write_random_model  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402
from spirit_jax.units import HUBERT_RATE, PITCH_RATE, Units  # noqa: E402

PICTURE_SECONDS = 20  # more would be too dense to read


def run(output: str | Path, speech: str | Path | None, console: Console) -> None:
    """Encodes, resynthesises, continues and draws a recording.

    Args:
      output: folder for `resynthesis.wav`, `units.png` and the speech that is generated.
      speech: an audio file; the package's own recording by default.
      console: where to tell about it.

    Raises:
      InputError: the recording cannot be used, or the folder not be written to.
    """
    console.print(
        "The networks of this demo are small and [bold]random[/bold]: no trained model comes with "
        "the package yet. Every step is the real one, but units mean nothing and speech is noise."
    )
    output, start = Path(output), time.monotonic()
    asset = resources.files("spirit_jax") / "assets" / "agent-incorrect.flac"
    wave = load_audio(speech if speech is not None else asset.read_bytes())
    with console.status("making a random model"), tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder) / "model")
        lm = SpiritLM.from_pretrained(Path(folder) / "model")
    with console.status("listening"):
        heard = lm.speech_tokenizer.encode(wave)
        string = lm.speech_tokenizer.to_string(heard)
    console.print(
        f"heard   {len(wave) / SAMPLE_RATE:.2f} s: {len(heard.hubert)} phonetic, "
        f"{len(heard.pitch)} pitch and {len(heard.style)} style units\n"
        f"string  {string[:160]}...",
        markup=False,
        highlight=False,
    )
    with console.status("speaking"):
        spoken = lm.speech_tokenizer.decode(heard, speaker_id="ex01")
        write_wav(output / "resynthesis.wav", spoken)
    console.print(f"spoke   {output / 'resynthesis.wav'} ({len(spoken) / SAMPLE_RATE:.2f} s)")
    with console.status("generating"):
        prompt = [("text", "Listen to this: "), ("speech", heard)]
        written = lm.generate(prompt, "text", max_new_tokens=16, do_sample=True)
        said = lm.generate(prompt, "speech", max_new_tokens=160, do_sample=True)
    for piece in written:
        console.print(f"wrote   {piece.content!r}", markup=False, highlight=False)
    for number, piece in enumerate(said):
        path = output / f"generated-{number}.wav"
        write_wav(path, piece.content)
        console.print(f"said    {path} ({len(piece.content) / SAMPLE_RATE:.2f} s)")
    with console.status("drawing"):
        draw(output / "units.png", wave, heard, spoken)
    console.print(f"drew    {output / 'units.png'}")
    console.print(f"done in {time.monotonic() - start:.0f} s")


def draw(path: str | Path, wave: np.ndarray, heard: Units, spoken: np.ndarray) -> None:
    """A picture of a recording: waveform, F0, units over time, and its resynthesis.

    Args:
      path: PNG file to write.
      wave, spoken: float32 samples at 16 kHz.
      heard: units of `wave`, with pitch and style.
    """
    wave, spoken = wave[: PICTURE_SECONDS * SAMPLE_RATE], spoken[: PICTURE_SECONDS * SAMPLE_RATE]
    f0_t, voiced_t = f0.pyin_f0(wave)
    f0_t = np.where(voiced_t > 0, f0_t, np.nan)
    figure, axes = pyplot.subplots(
        6,
        1,
        figsize=(12, 10),
        sharex=True,
        layout="constrained",
        gridspec_kw={"height_ratios": [2, 2, 2, 1.5, 1, 2]},
    )
    axes[0].plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.4)
    axes[0].set(title="waveform", ylabel="amplitude", ylim=(-1, 1))
    axes[1].plot(np.arange(len(f0_t)) / f0.FRAME_RATE, f0_t, ".", markersize=3)
    axes[1].set(title="F0 of voiced frames (pyin)", ylabel="Hz")
    rows = (("phonetic", heard.hubert, HUBERT_RATE), ("pitch", heard.pitch, PITCH_RATE))
    for axis, (name, stream, rate) in zip(
        axes[2:5], (*rows, ("style", heard.style, 1.0)), strict=True
    ):
        axis.stairs(stream, np.arange(len(stream) + 1) / rate, baseline=None)
        axis.set(title=f"{name} units, {rate:g} a second", ylabel="unit")
    axes[5].specgram(spoken + 1e-6, NFFT=512, noverlap=384, Fs=SAMPLE_RATE)
    axes[5].set(title="spectrogram of the resynthesis", ylabel="Hz", xlabel="seconds")
    axes[5].set_xlim(0, len(wave) / SAMPLE_RATE)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
