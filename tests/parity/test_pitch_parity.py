"""The pitch VQ-VAE and its conversion against PyTorch and the release's numbers."""

import json

import jax
import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from torch_pitch import TorchPitch  # noqa: E402

from convert.pitch import convert_pitch  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import pitch  # noqa: E402

STACK = {
    "input_emb_width": 2,
    "output_emb_width": 6,
    "levels": 1,
    "downs_t": [3],
    "strides_t": [2],
    "width": 8,
    "depth": 2,
    "m_conv": 0.5,
    "dilation_growth_rate": 3,
}
RELEASE = {
    "features": "norm_f0_interp,vuv",
    "speaker_norm": True,
    "vq_params": {"l_bins": 9, "emb_width": 6, "mu": 0.99, "levels": 1},
    "encoder_params": STACK,
    "decoder_params": STACK | {"reverse_decoder_dilation": True},
}


def with_strides(strides, count=None):
    changes = {"downs_t": [count or len(strides)], "strides_t": [strides]}
    return RELEASE | {
        name: RELEASE[name] | changes for name in ("encoder_params", "decoder_params")
    }


def write_release(folder, values, state):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    torch.save({"model": state, "steps": 1}, folder / "model.pt")
    return folder


@pytest.mark.parametrize(
    "values",
    [RELEASE, slow(with_strides(3, count=2)), with_strides([4, 2]), slow(with_strides([5, 2, 3]))],
)
def test_vqvae_matches_pytorch(tmp_path, values):
    torch.manual_seed(0)
    network = TorchPitch(values).eval()
    convert_pitch(write_release(tmp_path / "r", values, network.state_dict()), tmp_path / "ours")
    model, params = pitch.load(tmp_path / "ours")
    features = np.random.default_rng(0).standard_normal((2, 120, 2)).astype(np.float32)
    lengths = np.array([120, 120], np.int32)
    with torch.no_grad():
        inputs = torch.from_numpy(features).transpose(1, 2)
        latent = network.encoder(inputs).transpose(1, 2).numpy()
        codes = network.codes(inputs)
        decoded = network.decode(codes).transpose(1, 2).numpy()
    apply = jax.jit(model.apply, static_argnames="method")
    result, counts = apply({"params": params}, features, lengths, method="latent")
    assert result.shape == latent.shape and counts.tolist() == [latent.shape[1]] * 2
    assert np.abs(result - latent).max() <= 1e-5 * np.abs(latent).max()
    our_codes, counts = apply({"params": params}, features, lengths)
    np.testing.assert_array_equal(our_codes, codes)
    our_decoded, frames = apply({"params": params}, our_codes, counts, method="decode")
    assert frames.tolist() == [decoded.shape[1]] * 2
    assert np.abs(our_decoded - decoded).max() <= 1e-5 * np.abs(decoded).max()


def test_invalid_checkpoints_are_rejected(tmp_path):
    state = TorchPitch(RELEASE).state_dict()

    def assert_rejected(name, match, values=RELEASE, state=state):
        folder = write_release(tmp_path / name, values, state)
        with pytest.raises(InputError, match=match):
            convert_pitch(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    assert_rejected("unknown", "'odd' is unknown", state=state | {"odd": torch.zeros(1)})
    missing = {name: value for name, value in state.items() if "vq" not in name}
    assert_rejected("missing", "gives the parameter 'codebook'", state=missing)
    short = state | {"decoder.out.bias": torch.zeros(3)}
    assert_rejected("shape", r"'decoder.out.bias' has shape \(3,\)", state=short)
    assert_rejected("features", "features is 'f1'", values=RELEASE | {"features": "f1"})
    assert_rejected("levels", "levels is 2", values=RELEASE | {"vq_params": {"levels": 2}})
    cycle = RELEASE | {"decoder_params": STACK | {"dilation_cycle": 2}}
    assert_rejected("cycle", "dilation_cycle is 2", values=cycle)
    assert_rejected("absent", "has no 'encoder_params'", values={"features": "f0,vuv"})


@pytest.mark.slow  # test_golden compares the same from audio
def test_pitch_units_match_the_release(golden, tmp_path):
    convert_pitch(golden / "checkpoints/speech_tokenizer/vqvae_f0_quantizer", tmp_path / "ours")
    model, params = pitch.load(tmp_path / "ours")
    latent = jax.jit(lambda x, n: model.apply({"params": params}, x, n, method="latent"))
    encode = jax.jit(lambda x, n: model.apply({"params": params}, x, n))
    arrays = np.load(golden / "expected_arrays.npz")
    expected = json.loads((golden / "expected.json").read_text())["spirit-lm-expressive-7b"]
    batch, lengths = np.zeros((5, 2000, 2), np.float32), []
    for row, name in enumerate(expected["audio"]):
        f0, voiced = arrays[f"f0/{name}/f0"], arrays[f"f0/{name}/vuv"]
        features = pitch.normalise_f0(f0, voiced, model.config)
        batch[row, : len(features)] = features
        lengths.append(len(features))
    codes, counts = encode(batch, np.array(lengths, np.int32))
    latents, _ = latent(batch, np.array(lengths, np.int32))
    for row, (name, streams) in enumerate(expected["audio"].items()):
        released = arrays[f"mid/{name}/pitch_latent"].T
        result = latents[row, : counts[row]]
        assert np.abs(result - released).max() <= 1e-5 * np.abs(released).max()
        assert codes[row, : counts[row]].tolist() == [int(u) for u in streams["pitch"].split()]
