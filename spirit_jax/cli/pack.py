"""`spirit-jax pack`: packs trained networks into a speech tokenizer folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli import checks
from spirit_jax.errors import InputError


def pack(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="Speech tokenizer folder to write")],
    units: Annotated[
        Path, typer.Option(help="Folder (or model, by name) with hubert and quantizer")
    ],
    pitch: Annotated[Path | None, typer.Option(help="Folder with pitch, for Expressive")] = None,
    style: Annotated[Path | None, typer.Option(help="Folder with style, for Expressive")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="Folder with hifigan, to decode")] = None,
    f0_method: Annotated[
        Literal["pyin", "fcpe"], typer.Option(help="Estimator of F0, for Expressive")
    ] = "pyin",
    half: Annotated[bool, typer.Option("--half", help="Store parameters as float16")] = False,
    share: Annotated[
        Path | None, typer.Option(help="Folder whose identical networks are not stored again")
    ] = None,
) -> None:
    """Pack networks that `train --export` wrote into a speech tokenizer folder.

    A network can also come from a model, by folder or name (spirit-tiny-base).
    """
    files.refuse_existing(output)
    checks.output_folder(output.absolute().parent)
    if (pitch is None) != (style is None):
        raise InputError("Give both --pitch and --style, or neither.")
    if pitch is None:
        checks.refuse_idle(context, ("f0_method",), "Without --pitch there is no F0")
    for folder in (units, pitch, style, vocoder, share):
        if folder is not None:
            model_folder.find_model(folder)
    from spirit_jax import new_model

    packed = new_model.pack(output, units, pitch, style, vocoder, f0_method, half, share)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {packed.kind}, {', '.join(packed.hashes)}; {size / 1e6:.1f} MB")
