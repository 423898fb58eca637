"""Convert the PyTorch release: language model, text tokenizer and speech tokenizer.

spirit-jax convert release --checkpoints DIR --model spirit-lm-base-7b --output MODEL_DIR

DIR has `speech_tokenizer/` and `spiritlm_model/`; it is $SPIRITLM_CHECKPOINTS_DIR by default.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax import files, model_folder
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError

from .main import DtypeOption, StoredDtype

VOCODERS = {"base": "hifigan_spiritlm_base", "expressive": "hifigan_spiritlm_expressive_w2v2"}


def convert_release(
    checkpoints: str | Path,
    model: str,
    output: str | Path,
    fcpe_weights: str | Path | None = None,
    dtype: StoredDtype | None = None,
) -> None:
    """Writes a model folder.

    Args:
      checkpoints: root folder of the release.
      model: name of a folder in its `spiritlm_model/`.
      output: the model folder to write.
      fcpe_weights: torchfcpe's `fcpe_c_v001.pt`, which an expressive model needs for pitch; see
        `convert.fcpe.find_weights` for the default. Without it FCPE is left out.
      dtype: of the stored parameters of the language model; see `convert.llama.convert_llama`.

    Raises:
      InputError: a file is missing, damaged or of another network, or `output` exists.
    """
    checkpoints, console = Path(checkpoints), Console(stderr=True)
    files.require_folder(checkpoints)
    for name in ("speech_tokenizer", "spiritlm_model"):
        if not (checkpoints / name).is_dir():
            raise InputError(f"{checkpoints}: has no folder '{name}'; is it the release's root?")
    from . import llama, tokenizer  # import JAX, after the checks that need none

    source = checkpoints / "spiritlm_model" / model
    if not source.is_dir():
        known = sorted(folder.name for folder in source.parent.iterdir() if folder.is_dir())
        raise InputError(f"{source}: there is no such model; known are {', '.join(known)}.")
    kind = tokenizer.find_kind(source)
    if kind is None:
        raise InputError(f"{source}: its tokenizer has no token [Text]; is this a Spirit LM?")
    if kind == "base" and fcpe_weights is not None:
        raise InputError(f"{source}: is of kind base and has no pitch; leave --fcpe out.")
    with files.whole_folder(output) as folder:
        vocab = tokenizer.convert_tokenizer(source, kind, folder, add=False)  # is quick to fail
        with console.status("converting the speech tokenizer"):
            convert_speech_tokenizer(
                checkpoints / "speech_tokenizer",
                kind,
                folder / model_folder.SPEECH_TOKENIZER,
                fcpe_weights,
            )
        cfg = llama.convert_llama(source, folder / "llama", dtype=dtype)
        if cfg.vocab_size != vocab.padded_size:
            raise InputError(
                f"{source}: vocab_size is {vocab.padded_size}, but the embedding has "
                f"{cfg.vocab_size} rows."
            )


def convert_speech_tokenizer(
    source: Path, kind: str, output: Path, fcpe_weights: str | Path | None = None
) -> None:
    """Writes the folder of a speech tokenizer, with the hashes of its networks.

    Args:
      source: the release's `speech_tokenizer/`.
      kind: "base" or "expressive".
      output: the folder to write.
      fcpe_weights: see `convert_release`.

    Raises:
      InputError: see `convert_release`.
    """
    from . import fcpe, hifigan, hubert, pitch, style

    encoder = hubert.read_release_encoder(source / "hubert_25hz" / "mhubert_base_25hz.pt")
    quantizer = hubert.read_release_quantizer(source / "hubert_25hz" / "L11_quantizer_500.pt")
    hubert.convert_hubert(output, encoder, quantizer)
    hifigan.convert_hifigan(source / VOCODERS[kind], output / "hifigan")
    if kind == "expressive":
        pitch.convert_pitch(source / "vqvae_f0_quantizer", output / "pitch")
        style.convert_style(source / "style_encoder_w2v2", output / "style")
        weights = fcpe.find_weights(fcpe_weights)
        if weights is not None:
            fcpe.convert_fcpe(weights, output / "fcpe")
        else:
            print(
                "warning: FCPE's weights were not found, so this model cannot encode pitch yet. "
                "Get them from the wheel of torchfcpe (pip download --no-deps torchfcpe==0.0.4) "
                "and run spirit-jax convert fcpe --weights fcpe_c_v001.pt --model MODEL_DIR.",
                file=sys.stderr,
            )
    model_folder.write_speech_tokenizer(output, kind)


def main(
    model: Annotated[str, typer.Option(help="Folder in spiritlm_model, such as spirit-lm-base-7b")],
    output: Output,
    checkpoints: Annotated[
        Path | None, typer.Option(envvar="SPIRITLM_CHECKPOINTS_DIR", help="Root of the release")
    ] = None,
    fcpe: Annotated[
        Path | None,
        typer.Option(help="torchfcpe's fcpe_c_v001.pt, for an expressive model's pitch"),
    ] = None,
    dtype: DtypeOption = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    if checkpoints is None:
        raise InputError("Give --checkpoints DIR, or set SPIRITLM_CHECKPOINTS_DIR.")
    convert_release(checkpoints, model, output, fcpe, dtype)
    print(f"wrote {output}; try: spirit-jax encode {output} AUDIO")


if __name__ == "__main__":
    run(main)
