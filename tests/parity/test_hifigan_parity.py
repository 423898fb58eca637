"""The vocoder and its conversion against PyTorch and the release's waveforms."""

import copy
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_hifigan import TorchHifiGan  # noqa: E402

from convert.hifigan import convert_hifigan  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import hifigan  # noqa: E402

RELEASE = {
    "num_embeddings": 13,
    "embedding_dim": 6,
    "model_in_dim": 24,
    "multispkr": "from_input_file",
    "num_speakers": 3,
    "num_f0_tokens": 5,
    "f0_hop_size": 40,
    "num_style_tokens": 4,
    "style_hop_size": 500,
    "code_hop_size": 20,
    "sampling_rate": 16000,
    "upsample_initial_channel": 16,
    "upsample_rates": [5, 4],
    "upsample_kernel_sizes": [11, 8],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "dur_predictor_params": {
        "encoder_embed_dim": 6,
        "var_pred_hidden_dim": 8,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


def torch_vocoder(**changes):
    torch.manual_seed(0)
    network = TorchHifiGan(RELEASE | changes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.02)
    return network


def old_spelling(state):
    """Names of weight norm tensors as before `parametrizations`, as in the release."""
    spelling = {".parametrizations.weight.original0": ".weight_g"}
    spelling[".parametrizations.weight.original1"] = ".weight_v"
    renamed = {}
    for name, tensor in state.items():
        for new, old in spelling.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def write_release(folder, network, state=None, **changes):
    folder.mkdir()
    torch.save({"generator": state or network.state_dict()}, folder / "generator.pt")
    (folder / "config.json").write_text(json.dumps(network.h | changes))
    (folder / "speakers.txt").write_text("ann\nbob\ncarl\n")
    return folder


def convert(folder, tmp_path):
    convert_hifigan(folder, tmp_path / "ours")
    model, params = hifigan.load(tmp_path / "ours")
    return model, jax.jit(lambda ids, n: model.apply({"params": params}, ids, n)), params


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_vocoder_matches_pytorch(tmp_path, spelling):
    network = torch_vocoder()
    state = network.state_dict()
    folder = write_release(
        tmp_path / "r", network, old_spelling(state) if spelling == "old" else state
    )
    model, speak, params = convert(folder, tmp_path)
    assert model.config.speakers == ("ann", "bob", "carl")
    counts = list(model.config.channels.values())
    ids = np.random.default_rng(0).integers(0, counts, (2, 31, len(counts))).astype(np.int32)
    streams = [torch.from_numpy(ids[..., i]).long() for i in range(len(counts))]
    with torch.no_grad():
        expected, durations = network(streams).numpy(), network.durations(streams[0]).numpy()
    wave, samples = speak(ids, np.array([31, 31], np.int32))
    assert samples.tolist() == [620, 620]
    assert np.abs(wave - expected).max() <= 1e-4 * np.abs(expected).max()
    predict = jax.jit(
        lambda codes, n: model.apply({"params": params}, codes, n, method="log_durations")
    )
    log_frames, _ = predict(ids[..., 0], np.array([31, 31]))
    np.testing.assert_array_equal(hifigan.to_frames(np.asarray(log_frames)), durations)
    assert len(set(durations[0].tolist())) > 1


def test_the_base_vocoder_has_speaker_and_style_ids(tmp_path):
    base = {"num_f0_tokens": None, "num_style_tokens": None, "multistyle": "x", "model_in_dim": 18}
    network = torch_vocoder(**base)
    model, speak, _ = convert(write_release(tmp_path / "r", network), tmp_path)
    assert model.config.channels == {"code": 13, "speaker": 3, "style_id": 100}
    assert (model.config.default_speaker, model.config.default_style) == (2, 8)
    ids = np.array([[[3, 1, 8], [4, 1, 8], [5, 1, 8]]], np.int32)
    with torch.no_grad():
        expected = network([torch.from_numpy(ids[..., i]).long() for i in range(3)]).numpy()
    assert np.abs(speak(ids, np.array([3]))[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_invalid_checkpoints_are_rejected(tmp_path):
    network = torch_vocoder()
    state = network.state_dict()

    def assert_rejected(name, match, state=state, **changes):
        folder = write_release(tmp_path / name, network, state, **changes)
        with pytest.raises(InputError, match=match):
            convert_hifigan(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    assert_rejected(
        "unknown", "'odd.weight' is unknown", state | {"odd.weight": state["dict.weight"]}
    )
    missing = {k: v for k, v in state.items() if k != "dur_predictor.proj.bias"}
    assert_rejected("missing", "duration/out/bias", missing)
    wrong = copy.copy(state) | {"spkr.weight": state["spkr.weight"][:2]}
    assert_rejected("shape", r"'spkr.weight' has shape \(2, 6\)", wrong)
    half = {k: v for k, v in state.items() if k != "ups.0.parametrizations.weight.original0"}
    assert_rejected("half", "ups.0.parametrizations.weight.original1' is there without", half)
    assert_rejected("width", "model_in_dim is 25", model_in_dim=25)
    assert_rejected("f0", "f0 is True", f0=True)
    assert_rejected("rates", "code_hop", code_hop_size=21)


@pytest.mark.slow  # test_golden compares the same from audio
@pytest.mark.parametrize(
    "model_name, folder",
    [
        ("spirit-lm-base-7b", "hifigan_spiritlm_base"),
        ("spirit-lm-expressive-7b", "hifigan_spiritlm_expressive_w2v2"),
    ],
)
def test_waveforms_match_the_release(golden, tmp_path, model_name, folder):
    _, speak, _ = convert(golden / "checkpoints/speech_tokenizer" / folder, tmp_path)
    expected = json.loads((golden / "expected.json").read_text())[model_name]["audio"]
    arrays = np.load(golden / "expected_arrays.npz")
    for name, streams in expected.items():
        codes, *others = (
            np.array(streams[key].split(), int)
            for key in ("hubert", "pitch", "style")
            if streams.get(key)
        )
        columns = [codes]
        for stream, hop in zip(others, (1280, 16000), strict=False):
            columns.append(hifigan.expand_stream(stream, hop, 640, len(codes)))
        columns.append(np.full(len(codes), 1))
        columns += [] if others else [np.full(len(codes), 8)]
        ids = np.zeros((1, 256, len(columns)), np.int32)
        ids[0, : len(codes)] = np.stack(columns, -1)
        wave, (samples,) = speak(ids, np.array([len(codes)], np.int32))
        released = arrays[f"{model_name}/{name}/wav_units"]
        assert samples == len(released)
        assert np.abs(wave[0, :samples] - released).max() <= 1e-3 * released.std()
