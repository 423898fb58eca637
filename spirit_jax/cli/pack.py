"""`spirit-jax pack`: trained networks to a speech tokenizer folder."""

from pathlib import Path
from typing import Annotated

import typer


def pack(
    output: Annotated[Path, typer.Argument(help="Speech tokenizer folder to write")],
    units: Annotated[Path, typer.Option(help="Folder with hubert and quantizer")],
    pitch: Annotated[Path | None, typer.Option(help="Pitch network, for Expressive")] = None,
    style: Annotated[Path | None, typer.Option(help="Style network, for Expressive")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="Vocoder; needed to speak only")] = None,
    f0_method: Annotated[str, typer.Option(help="pyin or fcpe")] = "pyin",
    half: Annotated[bool, typer.Option("--half", help="Store float16: half the size")] = False,
    share: Annotated[
        Path | None, typer.Option(help="Set whose equal networks are used, not stored again")
    ] = None,
) -> None:
    """Pack trained networks, as `train --export` writes them, into a speech tokenizer folder."""
    from spirit_jax import packing

    sealed = packing.pack(output, units, pitch, style, vocoder, f0_method, half, share)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {sealed.kind}, {', '.join(sealed.hashes)}; {size / 1e6:.1f} MB")
