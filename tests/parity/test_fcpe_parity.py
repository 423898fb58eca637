"""FCPE and its conversion against torchfcpe's own code and the release's F0."""

import copy
import importlib
import sys
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
soundfile = pytest.importorskip("soundfile")

from convert import fcpe as convert_fcpe  # noqa: E402
from spirit_jax import SpeechTokenizer, f0  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import fcpe  # noqa: E402

RATE = 16_000


@pytest.fixture(scope="module")
def ours(fcpe_weights, tmp_path_factory):
    """(model, params, jitted function of (wave_bt, lengths_b)) with the real weights."""
    folder = tmp_path_factory.mktemp("fcpe") / "fcpe"
    convert_fcpe.convert_fcpe(fcpe_weights, folder)
    model, params = fcpe.load(folder)
    return model, params, jax.jit(lambda wave, n: model.apply({"params": params}, wave, n))


@pytest.fixture(scope="module")
def torchfcpe(fcpe_weights):
    """The package; it needs torchaudio for a resampling that is not used here."""
    pytest.importorskip("einops")
    pytest.importorskip("local_attention")
    stub = types.ModuleType("torchaudio.transforms")
    stub.Resample = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
        patch.setitem(sys.modules, "torchaudio.transforms", stub)
        patch.syspath_prepend(str(fcpe_weights.parents[2]))
        yield importlib.import_module("torchfcpe")


@pytest.fixture(scope="module")
def reference(torchfcpe):
    return torchfcpe.spawn_bundled_infer_model("cpu")


SMALL = {
    "mel": {
        "sr": 8000,
        "n_fft": 256,
        "win_size": 256,
        "hop_size": 80,
        "num_mels": 12,
        "fmin": 0,
        "fmax": 4000,
        "type": "default",
    },
    "model": {
        "type": "CFNaiveMelPE",
        "conv_only": True,
        "hidden_dims": 8,
        "n_layers": 2,
        "out_dims": 40,
    },
}


@pytest.fixture(scope="module")
def small(torchfcpe):
    """torchfcpe's network at another size, with random weights."""
    torch.manual_seed(0)
    module = importlib.import_module("torchfcpe.models")
    model = module.CFNaiveMelPE(12, 40, 8, 2, 2, conv_only=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, which begin as ones and zeros
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def speechlike(samples):
    time = np.arange(samples) / RATE
    pitch = 150 + 60 * np.sin(2 * np.pi * 0.7 * time)
    wave = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch) / RATE) / k for k in range(1, 12))
    wave *= 0.1 * (np.sin(2 * np.pi * 1.5 * time) > -0.5)
    noise = np.random.default_rng(0).standard_normal(samples)
    return (wave + 0.003 * noise).astype(np.float32)


def test_every_part_equals_torchfcpe(ours, reference):
    model, params, _ = ours
    wave = speechlike(30_000)
    with torch.no_grad():
        mel = reference.wav2mel(torch.from_numpy(wave)[None, :, None], RATE)
        scores = reference.model(mel)
        hertz = reference.model.infer(mel, decoder="local_argmax", threshold=0.05)[..., 0]
    log_mel = jax.jit(fcpe.log_mel, static_argnums=2)
    our_mel, frames = log_mel(wave[None], np.array([len(wave)]), model.config)
    assert our_mel.shape == mel.shape and frames.tolist() == [mel.shape[1]]
    assert np.abs(our_mel - mel.numpy()).max() <= 1e-5 * np.abs(mel.numpy()).max()
    apply = jax.jit(model.apply, static_argnames="method")
    our_scores = apply({"params": params}, mel.numpy(), frames, method="score")
    assert np.abs(our_scores - scores.numpy()).max() <= 1e-5 * scores.numpy().max()
    picked = apply({"params": params}, scores.numpy(), method="pick")
    np.testing.assert_allclose(picked, hertz, rtol=1e-5)


@pytest.mark.parametrize("samples", [1280, 1500, 15_999, 24_161])
def test_f0_equals_torchfcpe(ours, reference, samples):
    wave = speechlike(samples)
    frames = samples // 80 + 1
    hertz, unvoiced = reference.infer(
        torch.from_numpy(wave)[None, :, None],
        sr=RATE,
        decoder_mode="local_argmax",
        threshold=0.05,
        f0_min=50,
        f0_max=1100,
        interp_uv=True,
        output_interp_target_length=frames,
        retur_uv=True,
    )
    padded = np.full((1, 26_000), 0.1, np.float32)
    padded[0, :samples] = wave
    raw, (count,) = ours[2](padded, np.array([samples], np.int32))
    track, voiced = f0.postprocess(np.asarray(raw)[0, :count], samples)
    np.testing.assert_array_equal(voiced, 1 - unvoiced.numpy().ravel())
    np.testing.assert_allclose(track, hertz.numpy().ravel(), rtol=1e-3)


@pytest.mark.parametrize("hertz", [100, 220, 440])
def test_tones_are_found(ours, hertz):
    time = np.arange(26_000) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))
    raw, (count,) = ours[2]((0.2 * wave).astype(np.float32)[None], np.array([26_000], np.int32))
    bin_width = 2 ** (20 / 1200) - 1
    np.testing.assert_allclose(np.asarray(raw)[0, 5 : count - 5], hertz, rtol=bin_width)


def test_silence_is_unvoiced(ours):
    raw, _ = ours[2](np.zeros((1, 26_000), np.float32), np.array([26_000], np.int32))
    assert not np.asarray(raw).any()


@pytest.mark.slow  # test_golden has the pitch units that follow from it
def test_f0_is_that_of_the_release(golden, ours):
    arrays = np.load(golden / "expected_arrays.npz")
    paths = sorted((golden / "audio").iterdir())
    waves = [soundfile.read(p, dtype="float32", always_2d=True)[0].mean(axis=1) for p in paths]
    batch = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    raw, counts = ours[2](batch, np.array([len(wave) for wave in waves], np.int32))
    for path, wave, frames, count in zip(paths, waves, np.asarray(raw), counts, strict=True):
        track, voiced = f0.postprocess(frames[:count], len(wave))
        np.testing.assert_array_equal(voiced, arrays[f"f0/{path.name}/vuv"])
        np.testing.assert_allclose(track, arrays[f"f0/{path.name}/f0"], rtol=1e-3)


def test_a_model_without_f0_gets_it(expressive_folder, fcpe_weights, tmp_path, capsys):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(expressive_folder, model)
    convert_fcpe.main(weights=fcpe_weights, model=model)
    assert str(model) in capsys.readouterr().out
    SpeechTokenizer.from_pretrained(model, f0_method="fcpe").require_encoder()


def test_another_size_equals_torchfcpe_row_by_row(small, tmp_path):
    torch.save({"model": small.state_dict(), "config_dict": SMALL}, tmp_path / "small.pt")
    convert_fcpe.convert_fcpe(tmp_path / "small.pt", tmp_path / "fcpe")
    model, params = fcpe.load(tmp_path / "fcpe")
    mel = np.random.default_rng(0).standard_normal((2, 50, 12)).astype(np.float32)
    frames = np.array([50, 23], np.int32)
    apply = jax.jit(model.apply, static_argnames="method")
    scores = apply({"params": params}, mel, frames, method="score")
    for row, count in enumerate(frames):
        with torch.no_grad():
            alone = small(torch.from_numpy(mel[row : row + 1, :count])).numpy()[0]
        assert np.abs(scores[row, :count] - alone).max() <= 1e-5 * alone.max()
    np.testing.assert_array_equal(params["cents"], small.cent_table.numpy())


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "norm.bias", None, "no tensor gives the parameter 'norm/bias'"),
        ("model", "extra", torch.zeros(1), "the key 'extra' is unknown"),
        ("model", "norm.bias", torch.zeros(9), "'norm.bias' has shape"),
        ("config_dict", "conv_only", False, "conv_only is False"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(small, tmp_path, part, key, value, message):
    saved = {"model": dict(small.state_dict()), "config_dict": copy.deepcopy(SMALL)}
    changed = saved["model"] if part == "model" else saved["config_dict"]["model"]
    changed[key] = value
    if value is None:
        del changed[key]
    torch.save(saved, tmp_path / "small.pt")
    with pytest.raises(InputError, match=message):
        convert_fcpe.convert_fcpe(tmp_path / "small.pt", tmp_path / "fcpe")
    assert not (tmp_path / "fcpe").exists()


def test_weights_are_those_named_or_those_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRIT_FCPE_PT", "/env.pt")
    assert str(convert_fcpe.find_weights("/given.pt")) == "/given.pt"
    assert str(convert_fcpe.find_weights()) == "/env.pt"
    monkeypatch.delenv("SPIRIT_FCPE_PT")
    monkeypatch.delitem(sys.modules, "torchfcpe", raising=False)
    package = tmp_path / "torchfcpe"
    (package / "assets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this must not run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert convert_fcpe.find_weights() is None
    (package / convert_fcpe.ASSET).write_bytes(b"")
    assert convert_fcpe.find_weights() == package / convert_fcpe.ASSET


def test_other_files_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="expected a mapping with 'config_dict'"):
        convert_fcpe.convert_fcpe(tmp_path / "a.pt", tmp_path / "out")
    torch.save({"model": {}, "config_dict": {"mel": {}, "model": {}}}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="has no '"):
        convert_fcpe.convert_fcpe(tmp_path / "b.pt", tmp_path / "out")
