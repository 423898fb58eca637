"""Parameter folders: written in parts, atomically, and read onto shards."""

import resource

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.errors import InputError

PARAMS = {
    "embed": np.arange(32, dtype=np.float32).reshape(8, 4),
    "layers": {
        "0": {"kernel": np.full((4, 8), 0.1, ml_dtypes.bfloat16)},
        "1": {"kernel": np.full((4, 8), 0.2, ml_dtypes.bfloat16)},
    },
}


def equal(a, b):
    a, b = checkpoint.flatten(a), checkpoint.flatten(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "params"
    leaves = checkpoint.flatten(PARAMS)
    checkpoint.save_params(path, (checkpoint.unflatten({k: v}) for k, v in leaves.items()))
    return path


@pytest.mark.compat
def test_parts_are_loaded_as_one_tree(folder):
    assert equal(checkpoint.load_params(folder), PARAMS)
    shapes = checkpoint.flatten(checkpoint.read_shapes(folder))
    assert shapes["layers/1/kernel"] == jax.ShapeDtypeStruct((4, 8), ml_dtypes.bfloat16)


@pytest.mark.compat
def test_a_part_is_loaded_onto_its_shards(folder):
    from spirit_jax import sharding

    mesh = sharding.make_mesh(1, 8, 1)
    import flax.linen as nn

    boxed = {"embed": nn.LogicallyPartitioned(jnp.zeros((8, 4)), ("embed", None))}
    embed_sharding = sharding.param_shardings(boxed, mesh)["embed"]
    requested = {"embed": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=embed_sharding)}
    loaded = checkpoint.load_params(folder, requested)
    assert loaded.keys() == {"embed"}
    assert loaded["embed"].dtype == jnp.bfloat16
    assert [s.data.shape for s in loaded["embed"].addressable_shards] == [(1, 4)] * 8


@pytest.mark.compat
def test_a_failure_while_saving_leaves_nothing(tmp_path):
    def parts():
        yield {"a": np.zeros(3)}
        raise InputError("the next one is damaged")

    with pytest.raises(InputError, match="damaged"):
        checkpoint.save_params(tmp_path / "params", parts())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(folder):
    with pytest.raises(InputError, match="exists already"):
        checkpoint.save_params(folder, {"other": np.zeros(2)})
    assert equal(checkpoint.load_params(folder), PARAMS)


def test_missing_folders_and_mismatched_arrays_are_rejected(folder, tmp_path):
    with pytest.raises(InputError, match="absent"):
        checkpoint.load_params(tmp_path / "absent")
    with pytest.raises(InputError, match="'head'"):
        checkpoint.load_params(folder, {"head": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with pytest.raises(InputError, match=r"\(8, 4\)"):
        checkpoint.load_params(folder, {"embed": jax.ShapeDtypeStruct((8, 5), jnp.float32)})


def test_the_hash_changes_with_every_change():
    base = checkpoint.hash_params(PARAMS)
    assert base == checkpoint.hash_params(dict(reversed(PARAMS.items())))
    changed = [
        PARAMS | {"embed": PARAMS["embed"] + np.eye(8, 4, dtype=np.float32) * 1e-6},
        PARAMS | {"embed": PARAMS["embed"].reshape(4, 8)},
        PARAMS | {"embed": PARAMS["embed"].astype(np.float64)},
        {"embedding": PARAMS["embed"], "layers": PARAMS["layers"]},
    ]
    assert base not in {checkpoint.hash_params(params) for params in changed}


def test_a_full_disk_is_reported_without_a_traceback(tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        params = {f"a{number}": np.random.rand(50, 50) for number in range(8)}
        with pytest.raises(InputError, match="params: cannot be written"):
            checkpoint.save_params(tmp_path / "params", params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capfd.readouterr().err
    assert "Traceback" not in error and "Event loop" not in error
