"""The loop of every training."""

import dataclasses
import shutil

import numpy as np
import pytest
from training_runs import run

from spirit_jax import checkpoint
from spirit_jax.errors import InputError
from spirit_jax.training import loop


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_three_losses_in_a_row_that_are_not_finite_end_the_run(value):
    check = loop._LossCheck("runs/a")
    for loss in (3.0, value, value, 1.0, value, value):  # such a step changes nothing
        check(1, {"loss": loss})
    with pytest.raises(InputError, match=f"runs/a: the loss of step 7 is {value}"):
        check(7, {"loss": value})


def test_a_run_with_damaged_parameters_ends(make_config, tmp_path, expressive_folder):
    """A model whose arrays are not numbers, whatever the reason."""
    model = tmp_path / "model"
    shutil.copytree(expressive_folder, model)
    params = checkpoint.load_params(model / "llama")
    params["final_norm"]["scale"] = np.full_like(params["final_norm"]["scale"], np.nan)
    (model / "llama" / "model.safetensors").unlink()
    checkpoint.save_params(model / "llama", params)
    with pytest.raises(InputError, match="the loss of step 3 is nan"):
        run(dataclasses.replace(make_config("nan"), model=str(model)))
