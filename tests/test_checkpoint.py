"""Arrays of network folders in both forms: written in parts, whole or absent; read onto shards."""

import json
import resource
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spirit_jax import checkpoint, network_folder, sharding, tensor_file
from spirit_jax.errors import InputError

RNG = np.random.default_rng(0)
PARAMS = {
    "embed": np.arange(32, dtype=np.float32).reshape(8, 4),
    "scale": np.array(3, np.float32),
    "layers": {
        "0": {"kernel": RNG.normal(size=(4, 8)).astype(ml_dtypes.bfloat16)},
        "1": {"kernel": RNG.normal(size=(4, 8)).astype(ml_dtypes.bfloat16)},
        "2": {"kernel": RNG.integers(-128, 128, (5, 3)).astype(np.int8)},
        "3": {"kernel": RNG.normal(size=(512, 96, 16)).astype(np.float16)},
    },
}


def equal(a, b):
    a, b = checkpoint.flatten(a), checkpoint.flatten(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and np.array_equal(a[k], b[k])
        for k in a
    )


def in_parts(params):
    return (checkpoint.unflatten({k: v}) for k, v in checkpoint.flatten(params).items())


@pytest.fixture(scope="module", params=network_folder.FORMS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / request.param
    checkpoint.save_params(path, in_parts(PARAMS), request.param)
    return path


@pytest.fixture
def copy(tmp_path):
    """A safetensors folder to damage."""
    checkpoint.save_params(tmp_path / "copy", PARAMS)
    return tmp_path / "copy"


@pytest.mark.compat
def test_parts_are_loaded_as_one_tree(folder):
    assert equal(checkpoint.load_params(folder), PARAMS)
    shapes = checkpoint.flatten(checkpoint.read_shapes(folder))
    assert shapes["layers/1/kernel"] == jax.ShapeDtypeStruct((4, 8), ml_dtypes.bfloat16)


@pytest.mark.compat
def test_a_part_is_loaded_onto_its_shards(folder):
    mesh = sharding.make_mesh(1, 8, 1)
    boxed = {"embed": nn.LogicallyPartitioned(jnp.zeros((8, 4)), ("embed", None))}
    embed_sharding = sharding.param_shardings(boxed, mesh)["embed"]
    requested = {"embed": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=embed_sharding)}
    loaded = checkpoint.load_params(folder, requested)
    assert loaded.keys() == {"embed"}
    assert loaded["embed"].dtype == jnp.bfloat16
    assert [s.data.shape for s in loaded["embed"].addressable_shards] == [(1, 4)] * 8
    assert np.array_equal(loaded["embed"], PARAMS["embed"])


@pytest.mark.compat
def test_the_forms_are_copied_to_each_other_bitwise(folder, tmp_path):
    for form in network_folder.FORMS:
        checkpoint.copy_network(folder, tmp_path / form, form)
        assert network_folder.find_arrays(tmp_path / form)[0] == form
        assert equal(checkpoint.load_params(tmp_path / form), PARAMS)


@pytest.mark.compat
def test_each_shard_reads_only_its_slice(tmp_path, monkeypatch):
    big = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)  # 16 tiles, 4 x 4
    checkpoint.save_params(tmp_path / "big", {"a": big, "unread": big})
    mesh = sharding.make_mesh(1, 4, 2)
    boxed = {"a": nn.LogicallyPartitioned(jnp.zeros((1024, 1024)), ("embed", "mlp"))}
    where = sharding.param_shardings(boxed, mesh)["a"]
    regions: list = []
    read = tensor_file._read_region

    def record(path, file, tensor_slice, name, shape, region):
        regions.append((name, region))
        return read(path, file, tensor_slice, name, shape, region)

    monkeypatch.setattr(tensor_file, "_read_region", record)
    loaded = checkpoint.load_params(
        tmp_path / "big", {"a": jax.ShapeDtypeStruct(big.shape, jnp.float32, sharding=where)}
    )
    shards = {
        tuple(part.indices(1024)[:2] for part in s.index) for s in loaded["a"].addressable_shards
    }
    assert len(shards) == 8 and len(regions) == 8
    assert {(name, tuple(region)) for name, region in regions} == {("a", s) for s in shards}
    assert np.array_equal(loaded["a"], big)


def test_shards_that_tiles_do_not_divide_are_read_whole(tmp_path):
    odd = np.arange(333 * 1000, dtype=np.float32).reshape(333, 1000)
    checkpoint.save_params(tmp_path / "odd", {"a": odd})
    mesh = sharding.make_mesh(1, 8, 1, jax.devices())
    boxed = {"a": nn.LogicallyPartitioned(jnp.zeros(odd.shape), (None, "embed"))}
    where = sharding.param_shardings(boxed, mesh)["a"]
    abstract = {"a": jax.ShapeDtypeStruct(odd.shape, jnp.float32, sharding=where)}
    assert np.array_equal(checkpoint.load_params(tmp_path / "odd", abstract)["a"], odd)


@pytest.mark.compat
def test_other_tools_read_and_write_the_file(copy, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    assert equal(checkpoint.unflatten(tensors), PARAMS)
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    assert equal(checkpoint.load_params(tmp_path / "other"), PARAMS)


@pytest.mark.parametrize("place", ["header", "embed", "layers/3/kernel"])
def test_a_flipped_bit_is_noticed(copy, place):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size]).get(place)
    data[8 + size + entry["data_offsets"][1] - 1 if entry else data.index(b"F32") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="header" if entry is None else f"'{place}' is damaged"):
        checkpoint.load_params(copy)


def test_a_header_larger_than_its_room(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "HEADER_ROOM", 64)
    checkpoint.save_params(tmp_path / "net", in_parts(PARAMS))
    assert equal(checkpoint.load_params(tmp_path / "net"), PARAMS)


@pytest.mark.compat
@pytest.mark.parametrize("form", network_folder.FORMS)
def test_a_failure_while_saving_leaves_nothing(tmp_path, form):
    def parts():
        yield {"a": np.zeros(3)}
        raise InputError("the next one is damaged")

    with pytest.raises(InputError, match="damaged"):
        checkpoint.save_params(tmp_path / "net", parts(), form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", network_folder.FORMS)
def test_an_existing_folder_is_not_overwritten(folder, form):
    with pytest.raises(InputError, match="exists already"):
        checkpoint.save_params(folder, {"other": np.zeros(2)}, form)
    assert equal(checkpoint.load_params(folder), PARAMS)


def test_missing_folders_and_mismatched_arrays_are_rejected(folder, tmp_path):
    with pytest.raises(InputError, match="absent"):
        checkpoint.load_params(tmp_path / "absent")
    with pytest.raises(InputError, match="'head'"):
        checkpoint.load_params(folder, {"head": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with pytest.raises(InputError, match=r"\(8, 4\)"):
        checkpoint.load_params(folder, {"embed": jax.ShapeDtypeStruct((8, 5), jnp.float32)})


def test_what_the_forms_cannot_hold_is_refused(copy, tmp_path):
    shutil.copytree(copy, tmp_path / "both")
    checkpoint.save_params(tmp_path / "orbax", PARAMS, "orbax")
    shutil.copytree(tmp_path / "orbax" / "params", tmp_path / "both" / "params")
    with pytest.raises(InputError, match="has both model.safetensors and params"):
        checkpoint.load_params(tmp_path / "both")
    with pytest.raises(InputError, match="'a' is complex64"):
        checkpoint.save_params(tmp_path / "new", {"a": np.zeros(2, np.complex64)})
    with pytest.raises(InputError, match="'pickle'; expected safetensors or orbax"):
        checkpoint.save_params(tmp_path / "new", {"a": np.zeros(2)}, "pickle")
    tensor_file.write(
        tmp_path / "new" / "model.safetensors", [{"a": np.ones(1), "a/b": np.ones(1)}]
    )
    with pytest.raises(InputError, match="'a/b' is an array and also a group|'a' is an array"):
        checkpoint.load_params(tmp_path / "new")


def test_the_hash_changes_with_every_change():
    base = checkpoint.hash_params(PARAMS)
    assert base == checkpoint.hash_params(dict(reversed(PARAMS.items())))
    changed = [
        PARAMS | {"embed": PARAMS["embed"] + np.eye(8, 4, dtype=np.float32) * 1e-6},
        PARAMS | {"embed": PARAMS["embed"].reshape(4, 8)},
        PARAMS | {"embed": PARAMS["embed"].astype(np.float64)},
        {"embedding": PARAMS["embed"]} | {k: PARAMS[k] for k in ("scale", "layers")},
    ]
    assert base not in {checkpoint.hash_params(params) for params in changed}


@pytest.mark.parametrize("form", network_folder.FORMS)
def test_a_full_disk_is_reported_without_a_traceback(tmp_path, capfd, form):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        params = {f"a{number}": np.random.rand(50, 50) for number in range(8)}
        with pytest.raises(InputError, match=f"{network_folder.FORMS[form]}: cannot be written"):
            checkpoint.save_params(tmp_path / "net", params, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    error = capfd.readouterr().err
    assert "Traceback" not in error and "Event loop" not in error
