"""Conversion tables are strict, and checkpoint files are read safely."""

import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from convert import table, torch_files, weights  # noqa: E402
from convert.table import Rule  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402

RULES = [
    Rule(r"fc(\d)\.weight", r"\1/kernel", table.transpose),
    Rule(r"also(\d)\.weight", r"\1/kernel"),
    Rule(r"spare", None),
]
ABSTRACT = {"0": {"kernel": np.zeros((2, 3))}, "1": {"kernel": np.zeros((2, 3))}}
VALID = {"fc0.weight": np.ones((3, 2)), "fc1.weight": np.zeros((3, 2)), "spare": np.zeros(1)}


def test_rules_transpose_and_rename_tensors():
    params = table.convert(VALID, RULES, ABSTRACT, "here")
    assert params["0"]["kernel"].shape == (2, 3) and params["0"]["kernel"].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc0.bias": np.zeros(3)}, "'fc0.bias' is unknown"),
        ({"fc1.weight": None}, "'1/kernel'"),
        ({"fc1.weight": np.zeros((2, 3))}, r"'fc1.weight' has shape \(2, 3\)"),
        ({"also0.weight": np.zeros((2, 3))}, "'fc0.weight' and 'also0.weight'"),
        ({"fc2.weight": np.zeros((3, 2))}, "'2/kernel'"),
    ],
)
def test_mismatched_keys_and_shapes_are_rejected(change, message):
    tensors = {k: v for k, v in (VALID | change).items() if v is not None}
    with pytest.raises(InputError, match=message):
        table.convert(tensors, RULES, ABSTRACT, "here")


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_folded_weight_norm_matches_pytorch(dim, spelling):
    old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
    wrap = old if spelling == "weight_g" else new
    torch.manual_seed(0)
    net = torch.nn.Sequential(wrap(torch.nn.Conv1d(4, 6, 3), dim=dim))
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith(("weight_g", "original0")):
                value.mul_(1.7)
    net(torch.zeros(1, 4, 5))  # the older form computes its weight in the forward pass
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    assert any(spelling in name for name in state)
    folded = table.fold_weight_norm(state, dim, "x")
    assert folded.keys() == {"0.weight", "0.bias"}
    np.testing.assert_allclose(folded["0.weight"], net[0].weight.detach().numpy(), rtol=1e-6)


def test_an_incomplete_weight_norm_is_rejected():
    for key in ("c.weight_g", "c.weight_v"):
        with pytest.raises(InputError, match=key):
            table.fold_weight_norm({key: np.ones((2, 1))}, 0, "x")


class Surprise:
    def __reduce__(self):
        return os.mkdir, ("surprise",)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Surprise()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Surprise()))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(InputError, match=name):
            torch_files.load_pickle(tmp_path / name)
    assert not (tmp_path / "surprise").exists()


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_truncated_and_missing_files_are_rejected(tmp_path, size):
    complete = tmp_path / "complete.pt"
    torch.save({"a": torch.zeros(1000)}, complete)
    (tmp_path / "half.pt").write_bytes(complete.read_bytes()[:size])
    with pytest.raises(InputError, match="half.pt"):
        torch_files.load_pickle(tmp_path / "half.pt")
    with pytest.raises(InputError, match="absent.pt"):
        torch_files.load_pickle(tmp_path / "absent.pt")


def test_a_folder_with_a_missing_shard_is_rejected(tmp_path):
    with pytest.raises(InputError, match="no weights"):
        weights.open_folder(tmp_path)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "one.bin", "b": "two.bin"}}')
    torch.save({"a": torch.zeros(2)}, tmp_path / "one.bin")
    with pytest.raises(InputError, match="two.bin"):
        weights.open_folder(tmp_path)
    torch.save({"c": torch.zeros(2)}, tmp_path / "two.bin")
    with pytest.raises(InputError, match="'b'"):
        weights.open_folder(tmp_path)
