"""Converted random models in the formats of SlamKit's open weights, compared with PyTorch.

The reference is transformers for the language model and HuBERT, and a HiFi-GAN in torch.
"""

import dataclasses
import json

import numpy as np
import pytest
import toy_tokenizers as toy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from torch_hifigan import TorchHifiGan  # noqa: E402

from convert import export, llama_config  # noqa: E402
from convert.open import convert_open, convert_text_tokenizer  # noqa: E402
from spirit_jax import config, speech_tokenizer  # noqa: E402
from spirit_jax.data.configs import SourceConfig  # noqa: E402
from spirit_jax.data.records import Utterance  # noqa: E402
from spirit_jax.data.samples import make_sample  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402
from spirit_jax.units import Units  # noqa: E402
from spirit_jax.vocab import Vocab  # noqa: E402

UNITS = 12
LM = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    initializer_range=0.3,
    eos_token_id=2,
    pad_token_id=0,
)
HUBERT = dict(
    conv_dim=[8, 8],
    conv_kernel=[40, 33],
    conv_stride=[20, 32],
    num_feat_extract_layers=2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
)
VOCODER = {
    "num_embeddings": UNITS + 1,
    "embedding_dim": 4,
    "upsample_rates": [20, 32],
    "upsample_kernel_sizes": [40, 64],
    "upsample_initial_channel": 8,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "sampling_rate": 16000,
    "multispkr": "from_input_file",
    "num_speakers": 3,
    "f0": False,
    "f0_quant_num_bin": 0,
}
DURATIONS = {"encoder_embed_dim": 4, "var_pred_hidden_dim": 6, "var_pred_kernel_size": 3}


@dataclasses.dataclass
class Stack:
    """A converted model, and the PyTorch networks that it was converted from."""

    lm: SpiritLM
    folder: object
    text: object
    language_model: object
    hubert: object
    centroids: np.ndarray
    vocoder: TorchHifiGan
    wave: np.ndarray


def write_text_tokenizer(folder, tokens, bos):
    """Writes a byte-level BPE with these added tokens, and returns the size of its vocabulary.

    Its post-processor adds BOS and EOS, unless `bos` is None.
    """
    folder.mkdir()
    path = toy.train_bpe(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_tokens(tokens)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>"}
    if bos is None:
        settings["add_bos_token"] = True  # ignored if there is a tokenizer.json
    else:
        ends = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(path))
    toy.write_json(folder / "tokenizer_config.json", settings)
    return tokenizer.get_vocab_size()


def write_language_model(folder, rows, ties):
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(vocab_size=rows, tie_word_embeddings=ties, **LM)
    model = transformers.LlamaForCausalLM(settings).eval()
    folder.mkdir()
    base = json.loads(settings.to_json_string(use_diff=False)) | {"vocab_size": rows - 3}
    wrapper = {"model_type": "speech_language_model", "base_config": base, "vocab_size": rows}
    toy.write_json(folder / "config.json", wrapper)
    state = {f"lm.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    if ties:
        del state["lm.lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


# Speech tokens of the text tokenizer (if empty, they are added in SlamKit's order), BOS or None,
# whether head and embedding are tied, and changes of the vocoder's config.
STACKS = {
    "tied, without durations": ([], 1, True, {}),
    "other token order, styles": (
        ["<text>", "<speech>", *(f"<Un{i}>" for i in range(UNITS))],
        None,
        False,
        {"multistyle": "_", "num_styles": 2, "dur_predictor_params": DURATIONS},
    ),
}


@pytest.fixture(scope="module", params=STACKS)
def stack(request, tmp_path_factory):
    import joblib  # slow to import; all workers of pytest-xdist import this module, one runs it
    from sklearn.cluster import KMeans

    folder = tmp_path_factory.mktemp("stack")
    tokens, bos, ties, changes = STACKS[request.param]
    size = write_text_tokenizer(folder / "text", tokens, bos)
    rows = size + (0 if tokens else UNITS + 2)
    language_model = write_language_model(folder / "lm", rows, ties)
    torch.manual_seed(1)
    encoder = transformers.HubertModel(transformers.HubertConfig(**HUBERT)).eval()
    encoder.save_pretrained(folder / "hubert")
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    hidden = hidden_states(encoder, wave)
    kmeans = KMeans(UNITS, n_init=1, random_state=np.random.RandomState(0)).fit(hidden)
    joblib.dump(kmeans, folder / "km.bin")
    settings = VOCODER | changes
    inputs = 3 if "multistyle" in settings else 2
    settings["model_in_dim"] = inputs * settings["embedding_dim"]
    vocoder = TorchHifiGan(settings).eval()
    with torch.no_grad():
        for name, value in vocoder.named_parameters():
            if name.endswith(("weight_g", "original0")):
                value *= 4  # otherwise the waveform hardly depends on the units
    torch.save({"generator": vocoder.state_dict()}, folder / "vocoder.pt")
    toy.write_json(folder / "vocoder_config.json", settings)
    (folder / "speakers.txt").write_text("ann\nbob\ncat\n")
    parts = ("hubert", "km.bin", "vocoder.pt", "lm", "text")
    convert_open(*(folder / part for part in parts), folder / "model", layer=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speech_tokenizer, "BUCKET_SECONDS", (2,))
        lm = SpiritLM.from_pretrained(folder / "model")
        centroids = kmeans.cluster_centers_
        text = transformers.AutoTokenizer.from_pretrained(folder / "text")
        yield Stack(lm, folder, text, language_model, encoder, centroids, vocoder, wave)


def hidden_states(encoder, wave):
    padded = torch.nn.functional.pad(torch.from_numpy(wave)[None], (40, 40))
    with torch.no_grad():
        return encoder(padded, output_hidden_states=True).hidden_states[1][0].numpy()


def test_units(stack):
    distances = ((hidden_states(stack.hubert, stack.wave)[:, None] - stack.centroids) ** 2).sum(-1)
    expected = distances.argmin(-1)
    assert len(set(expected)) > 3
    assert stack.lm.speech_tokenizer.encode(stack.wave).hubert.tolist() == expected.tolist()


def test_ids_logits_and_greedy_ids(stack):
    lm = stack.lm
    inputs = [("text", " the cat"), ("speech", Units([3, 3, 5], timed=True)), ("text", "<Un1>")]
    string = lm.build_prompt(inputs, "speech")
    assert string == "<text> the cat<speech><Un3><Un5><text><\\Un1><speech>"
    tokens = {name: lm.vocab.text_size + i for i, name in enumerate(lm.vocab.token_strings())}
    has_order = "<text>" in stack.text.get_vocab()
    assert list(tokens)[:2] == (["<text>", "<speech>"] if has_order else ["<Un0>", "<Un1>"])
    text = stack.text
    the_cat = text(" the cat", add_special_tokens=False).input_ids
    ids = lm.text_tokenizer.encode(string)
    bos = [] if lm.vocab.bos is None else [lm.vocab.bos]
    x_ids = text("x", add_special_tokens=False).input_ids
    assert bos + x_ids == text("x").input_ids[: len(bos) + 1]
    speech = [tokens[name] for name in ("<speech>", "<Un3>", "<Un5>")]
    start = [*bos, tokens["<text>"], *the_cat, *speech]
    assert ids[: len(start)] == start
    assert ids[-1] == tokens["<speech>"] and not lm.vocab.is_unit(np.array(ids[len(start) :])).any()
    with torch.no_grad():
        expected = stack.language_model(torch.tensor([ids])).logits[0].numpy()
    logits = lm.logits(string)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    for modality in ("speech", "text", "arbitrary"):
        prompt, greedy = list(ids), []
        allowed = lm.vocab.allowed(modality)
        while len(greedy) < 5 and (not greedy or greedy[-1] != 2):
            with torch.no_grad():
                last = stack.language_model(torch.tensor([prompt])).logits[0, -1].numpy()
            greedy.append(int(np.where(allowed, last, -np.inf).argmax()))
            prompt.append(greedy[-1])
        assert lm.generate_ids([string], modality, max_new_tokens=5) == [greedy]


def test_voices(stack):
    units = np.array([4, 4, 1, 0, 7])
    cfg = stack.vocoder.h
    styles = [1] if "num_styles" in cfg else []
    for speaker, number in ((None, 0), ("cat", 2), (1, 1)):
        options = {"speaker_id": speaker} | ({"style_id": 1} if styles else {})
        wave = stack.lm.speech_tokenizer.decode(Units(units), **options)
        constant = [np.full(5, value) for value in (number, *styles)]
        streams = [torch.from_numpy(np.asarray(x))[None] for x in (units, *constant)]
        with torch.no_grad():
            expected = stack.vocoder(streams)[0].numpy()
        assert np.abs(wave - expected).max() < 1e-4 * expected.std()
    if "dur_predictor_params" not in cfg:  # every unit of a string has one frame
        assert len(stack.lm.speech_tokenizer.decode("[Hu4][Hu1]")) == 2 * 640


def test_training_samples_have_the_format_of_the_converted_model(stack):
    """They have BOS if the text tokenizer adds it, the markers of this model, and EOS."""
    vocab = stack.lm.vocab
    words = (("the", 0.0, 0.04), ("cat", 0.04, 0.08))
    utterance = Utterance("a", Units([3, 3, 5]), 0.12, "the cat", words)
    for name in ("asr", "tts", "speech", "text"):
        source = SourceConfig(path="x", format=name)
        ids = make_sample(
            [utterance], source, stack.lm.text_tokenizer, vocab, np.random.default_rng(0)
        )
        assert (ids[0] == 1) == (vocab.bos == 1) and ids[-1] == 2
        string = stack.lm.text_tokenizer.decode(ids)
        assert ("<speech><Un3><Un5>" in string) == (name != "text")
        assert ("<text>" in string) == (name != "speech")


def test_an_exported_model_equals_the_converted_one(stack, tmp_path):
    export.export_model(stack.folder / "model", tmp_path / "hf")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    for name, tensor in stack.language_model.state_dict().items():
        assert torch.equal(exported[name], tensor), name
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    vocab = stack.lm.vocab
    assert text.convert_tokens_to_ids("<Un3>") == vocab.first_unit + 3
    converted = convert_text_tokenizer(tmp_path / "hf", tmp_path / "hf", UNITS, tmp_path)
    assert converted == vocab == config.read(Vocab, tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("few rows", "the vocabulary has"),
        ("other k-means", "has 12 units, but the k-means has 5"),
        ("few codes", "has 13 units, but"),
        ("no base_config", "base_config"),
        ("no vocoder config", "vocoder2_config.json or config.json"),
    ],
)
def test_parts_that_do_not_fit_are_named(stack, part, says, tmp_path):
    if part == "other k-means" and "<Un0>" not in stack.text.get_vocab():
        pytest.skip("the tokenizer has no units yet")
    parts = {name: stack.folder / name for name in ("hubert", "km.bin", "vocoder.pt", "lm", "text")}
    config_path = tmp_path / "lm/config.json"
    config_path.parent.mkdir()
    hf = json.loads((stack.folder / "lm/config.json").read_text())
    if part == "few rows":
        toy.write_json(config_path, hf | {"vocab_size": 20})
        parts["lm"] = config_path.parent
    elif part == "no base_config":
        toy.write_json(config_path, {"model_type": llama_config.SLAMKIT})
        parts["lm"] = config_path.parent
    elif part == "no vocoder config":
        parts["vocoder.pt"] = tmp_path / "vocoder2.pt"
        parts["vocoder.pt"].write_bytes((stack.folder / "vocoder.pt").read_bytes())
    else:
        count = 5 if part == "other k-means" else 20
        np.save(tmp_path / "km.npy", np.zeros((count, 16), np.float32) + np.arange(count)[:, None])
        parts["km.bin"] = tmp_path / "km.npy"
    if part == "few codes":
        if "<Un0>" in stack.text.get_vocab():
            pytest.skip("the tokenizer has as many units as the k-means")
        toy.write_json(config_path, hf | {"vocab_size": hf["vocab_size"] + 8})
        parts["lm"] = config_path.parent
    with pytest.raises(InputError, match=says):
        convert_open(*parts.values(), tmp_path / "out", layer=1)
    assert not (tmp_path / "out").exists()
