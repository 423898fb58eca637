"""Meshes over one and several slices."""

import warnings

import jax
import numpy as np
import pytest

from spirit_jax import InputError, sharding
from spirit_jax.errors import InputWarning
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.training.configs import MeshConfig


def numbers(mesh):
    return np.vectorize(lambda device: device.id)(mesh.devices)


def test_only_data_crosses_slices():
    mesh = sharding.make_mesh(data=4, fsdp=2, devices=jax.devices(), slices=2)
    slices = numbers(mesh) // 4
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    assert (slices[:2] == slices[0, 0, 0]).all() and (slices[2:] == slices[2, 0, 0]).all()
    assert slices[0, 0, 0] != slices[2, 0, 0]
    assert sorted(numbers(mesh).ravel()) == list(range(8))
    by_config = MeshConfig(data=2, slices=2).make(jax.devices())
    assert by_config.shape == {"data": 2, "fsdp": 4, "tensor": 1}


def test_meshes_that_do_not_fit_slices_are_refused():
    with pytest.raises(InputError, match="data=1 does not fit 2 slices"):
        sharding.make_mesh(fsdp=8, devices=jax.devices(), slices=2)
    for slices in (3, -1, 1.5):
        with pytest.raises(InputError, match="8 devices cannot be"):
            sharding.make_mesh(fsdp=8, devices=jax.devices(), slices=slices)


def test_slices_that_the_devices_report():
    """Those of the TPU's compiler, which needs no TPU."""
    pytest.importorskip("libtpu")
    from spirit_jax.tpu import plan

    devices = plan.get_devices("v5e:2x4", slices=2)
    assert len(devices) == 16
    mesh = sharding.make_mesh(data=2, fsdp=8, devices=devices)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(InputError, match="data=1 does not fit 2 slices"):
        sharding.make_mesh(fsdp=16, devices=devices)
    uneven = [d for d in devices if d.slice_index == 0 or d.id % 2]
    with pytest.raises(InputError, match="different numbers of devices"):
        sharding.make_mesh(fsdp=len(uneven), devices=uneven)


def test_an_axis_that_the_mesh_does_not_divide_is_named_with_its_cost():
    cfg = LlamaConfig(64, 16, 32, 2, 4, 2, 4)
    boxed = llama_weights.abstract_params(llama.Llama(cfg), boxed=True)
    with pytest.warns(InputWarning, match="'kv_heads' of size 2 by 4.* 0.0 MiB") as caught:
        sharding.param_shardings(boxed, sharding.make_mesh(fsdp=2, tensor=4))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharding.param_shardings(boxed, sharding.make_mesh(fsdp=4, tensor=2))
