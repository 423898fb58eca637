"""Copy a model folder, with its arrays in the other form.

spirit-jax convert format MODEL --to safetensors --output DIR

MODEL is a model, a speech tokenizer or a single network, by folder or name. With "safetensors", the
form in which models are published, a network is config.json and model.safetensors. With "orbax" its
arrays are in a folder of many files. The parameters stay the same, bit by bit.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from spirit_jax import network_folder
from spirit_jax.cli.running import Output, run
from spirit_jax.model_copy import copy_model


def main(
    model: Annotated[Path, typer.Argument(help="Model, speech tokenizer or network")],
    to: Annotated[Literal[*network_folder.FORMS], typer.Option(help="Form of the arrays")],
    output: Output,
) -> None:
    """Runs the command that the module's docstring describes."""
    copy_model(model, output, to)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
