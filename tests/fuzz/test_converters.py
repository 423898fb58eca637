"""Damaged checkpoints: read correctly, or rejected with an `InputError` that says why."""

import json
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import toy_tokenizers as toy  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from convert import ctc, fcpe, hifigan, hubert, llama, pitch, table, torch_files, trunk, weights  # noqa: E402
from convert.tokenizer import convert_tokenizer  # noqa: E402
from fuzz.mutate import attempt, mutate_bytes, mutate_json, seeds, time_limit  # noqa: E402
from spirit_jax import config  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models.fcpe import FcpeConfig  # noqa: E402
from spirit_jax.models.hifigan import HifiGanConfig  # noqa: E402
from spirit_jax.models.llama_config import LlamaConfig  # noqa: E402
from spirit_jax.models.pitch import PitchConfig  # noqa: E402
from spirit_jax.models.wav2vec2 import TrunkConfig  # noqa: E402
from spirit_jax.text import load_text_tokenizer  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1_000,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "rope_theta": 10_000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": [2],
}
HUBERT = {
    **trunk.HF_DEFAULTS,
    "model_type": "hubert",
    "feat_proj_layer_norm": True,
    "add_adapter": False,
    "preprocessor": {"do_normalize": True, "sampling_rate": 16_000, "feature_size": 1},
}
HIFIGAN = {
    "num_embeddings": 20,
    "embedding_dim": 8,
    "model_in_dim": 16,
    "upsample_rates": [5, 4],
    "upsample_kernel_sizes": [11, 8],
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "multispkr": "single",
    "num_speakers": 3,
    "code_hop_size": 20,
    "dur_predictor_params": {"var_pred_hidden_dim": 8, "var_pred_kernel_size": 3},
}
STACK = {
    "downs_t": [2],
    "strides_t": [2],
    "levels": 1,
    "input_emb_width": 2,
    "output_emb_width": 8,
    "width": 4,
    "depth": 2,
    "m_conv": 1.0,
    "dilation_growth_rate": 3,
}
PITCH = {
    "features": "norm_f0_interp,vuv",
    "speaker_norm": True,
    "encoder_params": STACK,
    "decoder_params": STACK | {"reverse_decoder_dilation": True},
    "vq_params": {"l_bins": 8, "emb_width": 8, "levels": 1},
}
FCPE = {
    "mel": {"sr": 16_000, "n_fft": 64, "hop_size": 16, "num_mels": 8, "fmin": 0, "fmax": 8_000},
    "model": {"hidden_dims": 8, "n_layers": 1, "out_dims": 12, "type": "CFNaiveMelPE"}
    | {"conv_only": True, "use_harmonic_emb": False},
}
FCPE["mel"] |= {"win_size": 64, "type": "default"}


def read_llama(folder, values):
    toy.write_json(folder / "config.json", values)
    return llama.read_config(folder)


def read_hubert(folder, values):
    toy.write_json(folder / "config.json", values)
    settings = values.get("preprocessor", {}) if isinstance(values, dict) else {}
    toy.write_json(folder / "processor_config.json", {"feature_extractor": settings})
    hf = config.read_mapping(folder / "config.json")
    fields = trunk.read_hf_trunk(folder, hf, ("hubert",), 2)
    return config.from_dict(TrunkConfig, fields, source=str(folder))


def read_hifigan(folder, values):
    toy.write_json(folder / "config.json", values)
    return hifigan.read_config(folder / "config.json")


def read_pitch(folder, values):
    toy.write_json(folder / "config.yaml", values)  # JSON is YAML
    return pitch.read_config(folder / "config.yaml")


def read_fcpe(folder, values):
    torch.save({"model": {}, "config_dict": values}, folder / "fcpe.pt")
    saved = torch_files.load_parts(folder / "fcpe.pt", "model", "config_dict")
    return fcpe.read_config(folder / "fcpe.pt", saved["config_dict"])


WINDOW = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}
QWEN3 = LLAMA | WINDOW | {"model_type": "qwen3", "rope_scaling": YARN, "layer_types": None}
SMOLLM3 = LLAMA | {"model_type": "smollm3", "no_rope_layers": [1], "no_rope_layer_interval": 4}
READERS = {
    "llama": (read_llama, LLAMA, LlamaConfig),
    "qwen3": (read_llama, QWEN3, LlamaConfig),
    "smollm3": (read_llama, SMOLLM3, LlamaConfig),
    "slamkit": (
        read_llama,
        {"model_type": "speech_language_model", "base_config": LLAMA, "vocab_size": 1_000},
        LlamaConfig,
    ),
    "hubert": (read_hubert, HUBERT, TrunkConfig),
    "hifigan": (read_hifigan, HIFIGAN, HifiGanConfig),
    "pitch": (read_pitch, PITCH, PitchConfig),
    "fcpe": (read_fcpe, FCPE, FcpeConfig),
}


@pytest.mark.parametrize("name", READERS)
@seeds
def test_damaged_configs(seeds, name, tmp_path):
    read, valid, cls = READERS[name]
    assert isinstance(read(tmp_path, valid), cls)
    for seed in seeds:
        values = mutate_json(valid, seed)
        result = attempt(lambda values=values: read(tmp_path, values), seed)
        assert result is None or isinstance(result, cls)


STATE = {
    "model.embed_tokens.weight": torch.arange(64.0).reshape(8, 8),
    "model.norm.weight": torch.ones(8, dtype=torch.bfloat16),
    "lm_head.weight": torch.arange(64.0).reshape(8, 8).T,
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@seeds
def test_damaged_weights(seeds, name, tmp_path):
    path = tmp_path / name
    if name.endswith(".bin"):
        torch.save(STATE, path)
    else:
        save_file({key: value.contiguous() for key, value in STATE.items()}, path)
    original = path.read_bytes()

    def read():
        tensors = weights.open_folder(tmp_path)
        return {key: tensors[key] for key in tensors}

    assert len(read()) == 3
    for seed in seeds:
        path.write_bytes(mutate_bytes(original, seed))
        result = attempt(read, seed)
        assert result is None or all(isinstance(x, np.ndarray) for x in result.values())


@seeds
def test_damaged_weight_indices(seeds, tmp_path):
    torch.save(STATE, tmp_path / "a.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(STATE, "a.bin")}
    for seed in seeds:
        values = mutate_json(index, seed)
        toy.write_json(tmp_path / "pytorch_model.bin.index.json", values)
        result = attempt(lambda: dict(weights.open_folder(tmp_path)), seed)
        assert result is None or set(result) == set(STATE)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return toy.train_sentencepiece(tmp_path_factory.mktemp("pieces") / "text.model")


@seeds
def test_damaged_tokenizer_settings(seeds, pieces, tmp_path):
    folder = toy.write_llama_folder(tmp_path / "llama", pieces, 1_010)
    valid = {
        "legacy": False,
        "add_prefix_space": True,
        "pad_token": {"content": "<pad>"},
        "additional_special_tokens": ["<a>", "<b>"],
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1000": {"content": "<|im_start|>", "special": True, "normalized": False},
            "1001": {"content": "<tool>", "lstrip": True, "single_word": False},
        },
    }

    def read(seed):
        vocab = convert_tokenizer(folder, "base", tmp_path / f"{seed}", add=True)
        tokenizer = load_text_tokenizer(tmp_path / f"{seed}" / "text_tokenizer", vocab)
        return vocab, tokenizer.encode("[Text]a <tool> the[Hu3]")

    for seed in seeds:
        toy.write_json(folder / "tokenizer_config.json", mutate_json(valid, seed))
        result = attempt(lambda seed=seed: read(seed), seed)
        if result is not None:
            vocab, ids = result
            assert vocab.text_size >= 1_000 and ids[-1] == vocab.first_unit + 3
            assert ids[1] == vocab.text_marker


@seeds
def test_damaged_expressions_of_conv_layers(seeds):
    valid = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    for seed in seeds:
        text = mutate_bytes(valid.encode(), seed).decode("latin-1")
        result = attempt(lambda text=text: hubert.parse_conv_layers(text, "x"), seed)
        assert result is None or 0 < len(result) <= hubert.MAX_CONV_LAYERS


# Tensors and containers that do not belong in a checkpoint.


def doubling(depth):
    """A nested list whose text doubles in length with every level."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def cycle():
    value = {}
    value["self"] = value
    return value


PLAIN = torch.ones(4, 4)
TENSORS = {
    "sparse": (lambda: PLAIN.to_sparse(), "sparse"),
    "csr": (lambda: PLAIN.to_sparse_csr(), "sparse"),
    "quantised": (lambda: torch.quantize_per_tensor(PLAIN, 0.1, 0, torch.qint8), "quantised"),
    "float8": (lambda: PLAIN.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "complex": (lambda: PLAIN.to(torch.complex64), "complex64"),
    "int8": (lambda: PLAIN.to(torch.int8), "int8"),
    "bool": (lambda: PLAIN > 0, "bool"),
    "meta": (lambda: PLAIN.to("meta"), "meta"),
    "repeated": (lambda: torch.ones(1).expand(1 << 20, 1 << 20), "the file has 1"),
    "number": (lambda: 3, "not a tensor"),
    "cycle": (cycle, "not a tensor"),
    "nested": (lambda: {"a": PLAIN}, "not a tensor"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_weights_are_rejected(name, tmp_path):
    make, message = TENSORS[name]
    path = tmp_path / "q.pt"
    try:
        value = make()
    except (RuntimeError, NotImplementedError) as error:  # a build without quantised kernels
        pytest.skip(str(error))
    cfg = {"vocab_size": 2, "dim": 4, "upstream_dim": 4}
    torch.save({"model_cfg": cfg, "model_weight": {"0.weight": value}}, path)
    with pytest.raises(InputError, match=message) as error, time_limit(20):
        hubert.read_release_quantizer(path)
    assert "0.weight" in str(error.value) or "PyTorch" in str(error.value)
    if torch.is_tensor(value):
        torch.save({"a": value}, tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError), time_limit(20):
            weights.open_folder(tmp_path)["a"]


@pytest.mark.parametrize("dtype", torch_files.FLOATS)
def test_tensor_views_are_read_correctly(dtype, tmp_path):
    base = torch.arange(24).to(getattr(torch, dtype)).reshape(4, 6)
    state = {"turned": base.T, "part": base[1:, ::2], "none": base[:0]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    tensors = weights.open_folder(tmp_path)
    for name, tensor in state.items():
        assert np.array_equal(tensors[name].astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("make", [cycle, lambda: doubling(40), lambda: "x" * 10**6, lambda: PLAIN])
def test_config_values_of_the_wrong_type_are_rejected(make, tmp_path):
    path = tmp_path / "hubert.pt"
    for name in ("encoder_embed_dim", "encoder_layers", "conv_pos", "activation_fn"):
        torch.save({"model_cfg": {name: make()}, "model_weight": {}}, path)
        with pytest.raises(InputError, match="hubert.pt") as error, time_limit(20):
            hubert.read_release_encoder(path, 1)
        assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("layers", [10**30, 10**9, 0, -1, True, 2.5, "12", None])
def test_absurd_layer_counts_are_rejected_quickly(layers, tmp_path):
    path = tmp_path / "hubert.pt"
    torch.save({"model_cfg": {"encoder_layers": layers}, "model_weight": {}}, path)
    with pytest.raises(InputError, match="layers"), time_limit(20):
        hubert.read_release_encoder(path, 1)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(10)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    with pytest.raises(InputError, match="compressed"):
        torch_files.load_pickle(packed)


def test_oversized_kmeans_files_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(hubert, "MAX_KMEANS_BYTES", 1 << 20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as file:
            for _ in range(2):
                file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="too large"), time_limit(20):
        hubert.read_kmeans(path)
    header = {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="safetensors"), time_limit(20):
        hubert.read_kmeans(tmp_path / "b.safetensors")


def test_a_layer_number_of_thousands_of_digits_is_not_a_layer():
    with pytest.raises(InputError, match="tensors have 0"):
        table.check_count([f"layers.{'9' * 5_000}.a"], r"layers\.(\d+)\.", 1, "x", "layers")


# Hugging Face folders with one error each.


def write_small_llama(folder, pieces, change=lambda state: state):
    """A folder for `convert.llama`, with its tensors passed through `change`."""
    toy.write_llama_folder(folder, pieces, **LLAMA)
    torch.manual_seed(0)
    layer, sizes = "model.layers.0.", {"q": 16, "k": 8, "v": 8}
    state = {f"{layer}self_attn.{n}_proj.weight": torch.randn(k, 16) for n, k in sizes.items()}
    state[f"{layer}self_attn.o_proj.weight"] = torch.randn(16, 16)
    state |= {f"{layer}mlp.{name}_proj.weight": torch.randn(24, 16) for name in ("gate", "up")}
    state[f"{layer}mlp.down_proj.weight"] = torch.randn(16, 24)
    norms = (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm")
    state |= {f"{name}.weight": torch.ones(16) for name in norms}
    state["model.embed_tokens.weight"] = torch.randn(1_000, 16)
    save_file(change(state), folder / "model.safetensors")
    return folder


Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
WEIGHTS = {
    "NaN": (NORM, lambda x: x * float("nan"), "NaN"),
    "infinite": (NORM, lambda x: (x / 0).bfloat16(), "infinity"),
    "beyond float32": (NORM, lambda x: x.double() * 1e300, "beyond float32"),
    "of whole numbers": (NORM, lambda x: x.int(), "of type I32"),
    "of float8": (NORM, lambda x: x.to(torch.float8_e4m3fn), "of type F8_E4M3"),
    "with an axis more": (Q, lambda x: x[None].clone(), "has shape"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_invalid_weights_are_rejected(name, pieces, tmp_path):
    key, change, message = WEIGHTS[name]
    folder = write_small_llama(
        tmp_path / "hf", pieces, lambda state: state | {key: change(state[key])}
    )
    with pytest.raises(InputError, match=message) as error:
        llama.convert_llama(folder, tmp_path / "ours")
    assert key in str(error.value) and str(folder) in str(error.value)
    assert not (tmp_path / "ours").exists()


def added(token="1000", **entry):
    return {"added_tokens_decoder": {token: {"content": "<tool>"} | entry}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"add_prefix_space": 0}, "add_prefix_space"),
        (added(lstrip="yes"), "added_tokens_decoder"),
        (added("01000"), "added_tokens_decoder"),
        (added("1_000"), "added_tokens_decoder"),
        (added("١٠٠٠"), "added_tokens_decoder"),
        (added(content="[Hu5]"), r"the speech token \[Hu5\]"),
        ({"pad_token": 3}, "special token"),
    ],
)
def test_invalid_tokenizer_settings_are_rejected(settings, message, pieces, tmp_path):
    folder = toy.write_llama_folder(tmp_path / "hf", pieces, 1_000)
    toy.write_json(folder / "tokenizer_config.json", settings)
    with pytest.raises(InputError, match=message) as error:
        convert_tokenizer(folder, "base", tmp_path / "ours", add=True)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(("content", "token"), [("the", 1_000), ("<new>", 5)])
def test_an_added_token_with_a_wrong_id_is_rejected(content, token, tmp_path):
    path = toy.add_tokens(toy.train_bpe(tmp_path / "bpe.json"), [])
    values = config.read_mapping(path)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    values["added_tokens"].append({"id": token, "content": content} | flags)
    toy.write_json(path, values)
    folder = toy.write_llama_folder(tmp_path / "hf", path, 1_000)
    with pytest.raises(InputError, match=f"the id {token}, and its id is"):
        convert_tokenizer(folder, "base", tmp_path / "ours", add=True)


@pytest.mark.parametrize("ids", [{"bos_token_id": 1_000}, {"eos_token_id": -1}])
def test_token_ids_out_of_range_are_rejected(ids, pieces, tmp_path):
    folder = toy.write_llama_folder(tmp_path / "hf", pieces, 1_000, **ids)
    with pytest.raises(InputError, match="config.json: "):
        convert_tokenizer(folder, "base", tmp_path / "ours", add=True)


def test_a_ctc_head_with_a_scalar_bias_is_rejected(tmp_path):
    folder = tmp_path / "ctc"
    folder.mkdir()
    toy.write_json(folder / "config.json", {"model_type": "wav2vec2", "num_hidden_layers": 1})
    toy.write_json(folder / "vocab.json", {"<pad>": 0})
    state = {"wav2vec2.encoder.layers.0.x": torch.ones(1), "lm_head.bias": torch.tensor(1.0)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"no vector lm_head\.bias"):
        ctc.convert_ctc(folder, tmp_path / "ours")


@seeds
def test_a_damaged_k_means_is_rejected(seeds, tmp_path):
    joblib, cluster = pytest.importorskip("joblib"), pytest.importorskip("sklearn.cluster")
    points = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    kmeans = cluster.KMeans(4, n_init=1, random_state=np.random.RandomState(0)).fit(points)
    for protocol in (2, 5):
        joblib.dump(kmeans, tmp_path / "km.bin", protocol=protocol)
        data = (tmp_path / "km.bin").read_bytes()
        (_, params) = hubert.read_kmeans(tmp_path / "km.bin")
        assert np.array_equal(params["centroids"], kmeans.cluster_centers_)
        for seed in seeds:
            (tmp_path / "km.bin").write_bytes(mutate_bytes(data, seed))
            attempt(lambda: hubert.read_kmeans(tmp_path / "km.bin"), seed)
