"""What the notebooks need: the check of JAX, commands, a microphone, players and pictures.

IPython is not a dependency of this package; Colab and Jupyter have it.
"""

import base64
import binascii
import importlib
import io
import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import typer

from spirit_jax import units
from spirit_jax.audio import SAMPLE_RATE, Audio, load_audio
from spirit_jax.cli import options
from spirit_jax.errors import InputError
from spirit_jax.model_folder import ASSETS
from spirit_jax.serving import encoding

CHECKED = ("jax", "jaxlib", "numpy", "flax")  # must be imported in the installed version
PLAYED_SECONDS = 10.0  # of a player: a notebook stores it as text
PACKAGED = "question.flac"  # what `record` returns outside Colab
BROWSER_SECONDS = 60.0  # until the browser's answer: the user is asked for permission
# Ends with the recording as a data URL, or with "" if the browser has no microphone or refuses it.
RECORDER = """(async () => {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    const recorder = new MediaRecorder(stream);
    const pieces = [];
    recorder.ondataavailable = event => pieces.push(event.data);
    const stopped = new Promise(resolve => { recorder.onstop = resolve; });
    recorder.start();
    await new Promise(resolve => setTimeout(resolve, MILLISECONDS));
    recorder.stop();
    await stopped;
    stream.getTracks().forEach(track => track.stop());
    const reader = new FileReader();
    const read = new Promise(resolve => { reader.onloadend = resolve; });
    reader.readAsDataURL(new Blob(pieces));
    await read;
    return reader.result;
  } catch (error) {
    return "";
  }
})()"""


def check_jax() -> str:
    """Compares imported packages with installed ones, and computes a product on the device.

    Returns:
      Versions and device, in one line, for reports of problems.

    Raises:
      InputError: a package was imported before another version was installed, or the product is
        wrong.
    """
    options.avoid_libtpu()
    versions = {name: _check_version(name) for name in CHECKED}
    import jax
    import jax.numpy as jnp

    from spirit_jax import devices

    devices.warn_of_idle()
    device, size = jax.devices()[0], 128
    dtype = jnp.dtype(devices.default_dtype(device))
    ones_nn = jnp.ones((size, size), dtype)
    if not bool((ones_nn @ ones_nn == size).all()):
        raise InputError(f"A product of matrices on {device.device_kind} is wrong.")
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Python {platform.python_version()}, {listed}; {len(jax.devices())} x "
        f"{device.device_kind} ({device.platform}); generates in {dtype.name}"
    )


def _check_version(name: str) -> str:
    installed, module = metadata.version(name), importlib.import_module(name)
    if module.__version__ != installed:
        raise InputError(
            f"{name} {module.__version__} is imported, but {installed} is installed. Restart the "
            "runtime (in Colab: Runtime, Restart session) and run all cells from the first."
        )
    return installed


def run(line: str) -> None:
    """Runs a command line of spirit-jax in this process.

    A separate process could not use an accelerator that the notebook uses.

    Args:
      line: such as "spirit-jax encode spirit-tiny-base a.wav". It is split into words as a shell
        does, but nothing else in it is interpreted.

    Raises:
      InputError: the command reports an error, or the line names another program.
    """
    from spirit_jax.cli.commands import app
    from spirit_jax.cli.running import UsageError

    program, *words = shlex.split(line) or [""]
    if program != "spirit-jax":
        raise InputError(f"The command is '{program}'; expected spirit-jax.")
    try:
        with typer.main.get_command(app).make_context(program, words) as context:
            context.command.invoke(context)
    except UsageError as error:
        raise InputError(error.format_message()) from error
    except typer.Exit as stop:
        if stop.exit_code:
            raise InputError(f"The command ended with status {stop.exit_code}.") from stop


def record(seconds: float = 4.0) -> np.ndarray:
    """Records from the microphone of the browser.

    In Colab without a microphone, or without the permission to use it, a file can be uploaded.
    Outside Colab there is no microphone, and a recording of the package is returned.

    Args:
      seconds: length of the recording.

    Returns:
      float32 (t,) samples at 16 kHz.

    Raises:
      InputError: nothing was recorded or uploaded, or the recording cannot be read.
    """
    try:
        from google.colab import files, output
    except ImportError:
        print(f"There is no microphone outside Colab; this is the packaged {PACKAGED}.")
        return load_audio(ASSETS / PACKAGED)
    script = RECORDER.replace("MILLISECONDS", str(round(1000 * seconds)))
    try:
        data = decode_reply(output.eval_js(script, timeout_sec=seconds + BROWSER_SECONDS))
    except InputError as error:
        print(f"{error} Choose a file instead.")
        data = first_upload(files.upload())
    return load_audio(data)


def decode_reply(reply: Any) -> bytes:
    """The bytes of a recording that a browser sent as a data URL.

    Args:
      reply: such as "data:audio/webm;codecs=opus;base64,...". Its type is not read: the format of
        a recording is in its bytes.

    Raises:
      InputError: there is no recording in it.
    """
    _, comma, text = (reply if isinstance(reply, str) else "").rpartition(",")
    try:
        data = base64.b64decode(text, validate=True) if comma else b""
    except binascii.Error as error:
        raise InputError("The browser's recording is damaged.") from error
    if not data:
        raise InputError("Nothing was recorded: the browser has no microphone or refuses its use.")
    return data


def first_upload(uploaded: Mapping[str, bytes] | None) -> bytes:
    """The bytes of the first uploaded file.

    Args:
      uploaded: content of each file by name, as Colab gives it.

    Raises:
      InputError: no file was chosen, or it is empty.
    """
    name, data = next(iter((uploaded or {}).items()), ("", b""))
    if not data:
        problem = f"The file '{name}' is empty." if name else "No file was uploaded."
        raise InputError(f"{problem} Run the cell again.")
    return data


def play(audio: Audio, seconds: float = PLAYED_SECONDS) -> Any:
    """A player of the start of a recording, at its own loudness.

    Args:
      audio: see `audio.load_audio`.
      seconds: that are played.

    Returns:
      An `IPython.display.Audio` of an MP3 file.
    """
    from IPython.display import Audio as Player

    samples_t = load_audio(audio)[: round(seconds * SAMPLE_RATE)]
    # IPython stores samples as WAV, scaled to their peak: a file is smaller and keeps the loudness.
    kind, make_encoder = encoding.FORMATS["mp3"]
    encoder = make_encoder()
    player = Player(encoder.encode(encoding.to_int16(samples_t)) + encoder.finish())
    player.mimetype = kind
    return player


def show(title: str, audio: Audio, unit_ids: np.ndarray | None = None) -> Any:
    """A picture of a spectrogram with F0, and of phonetic units below it.

    Args:
      title: above the picture.
      audio: see `audio.load_audio`.
      unit_ids: (n,) phonetic units, 25 a second.

    Returns:
      An `IPython.display.Image`, as JPEG: notebooks store pictures as text.
    """
    from IPython.display import Image
    from PIL import Image as Picture

    from spirit_jax import pictures
    from spirit_jax.speech_tokenizer import VOCODER_RATE

    spans = tuple(
        (first / VOCODER_RATE, count / VOCODER_RATE, unit)
        for first, count, unit in units.runs(np.zeros(0) if unit_ids is None else unit_ids)
    )
    drawn, compressed = io.BytesIO(), io.BytesIO()
    pictures.draw(drawn, [pictures.Panel(title, load_audio(audio), spans)])
    Picture.open(drawn).convert("RGB").save(compressed, "JPEG", quality=75)
    return Image(data=compressed.getvalue(), format="jpeg")
