"""`spirit-jax quantize`: writes a model folder with int8 weights."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir


def quantize(
    model: ModelDir, output: Annotated[Path, typer.Argument(help="Model folder to write")]
) -> None:
    """Copy a model folder with the language model's matrices rounded to int8.

    The copy is used like the model, needs a quarter of the memory of float32 weights, and its
    logits differ by rounding errors. It cannot be trained or exported.
    """
    files.refuse_existing(output)
    checks.output_folder(output.absolute().parent)
    folder = model_folder.find_language_model(model)
    from spirit_jax.quantize import quantize_model

    quantize_model(folder, output)
    before, after = (_megabytes(path / "llama") for path in (folder, output))
    print(f"{output}: the language model has {after:.1f} MB (before {before:.1f} MB)")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
