"""New model folders: a text vocabulary learnt from texts, and the units of a speech tokenizer."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spirit_jax import SpeechTokenizer, SpiritLM, checkpoint, config, network_folder
from spirit_jax.data.pipeline import DataConfig
from spirit_jax.data.prepare import prepare
from spirit_jax.data.samples import SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.model_folder import SpeechTokenizerConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.new_model import extend_model, write_new_model
from spirit_jax.text import learn_text_tokenizer, load_sentencepiece, load_text_tokenizer
from spirit_jax.training import loop
from spirit_jax.training.export import export
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe
from spirit_jax.vocab import Vocab

LINES = ["the lamp in the hall is warm", "turn on the lamp", "the hall is dark", "a warm hall"]


@pytest.fixture
def texts(tmp_path):
    manifest = tmp_path / "texts.jsonl"
    rows = [{"id": str(i), "text": line} for i, line in enumerate(LINES)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(manifest)


def test_the_vocabulary_has_the_learnt_text_and_the_units_of_the_tokenizer(tmp_path, texts):
    folder = tmp_path / "model"
    vocab = write_new_model(folder, "spirit-tiny-expressive", [texts], 290)
    assert config.read(Vocab, folder / "vocab.json") == vocab
    assert (vocab.hubert_units, vocab.pitch_units, vocab.style_units) == (100, 64, 24)
    tokenizer = load_text_tokenizer(folder / "text_tokenizer", vocab)
    prompt = "[Text]the lamp[Speech][Hu99][Pi63][St23]"
    ids = tokenizer.encode(prompt)
    # after 290 pieces and two markers
    assert tokenizer.decode(ids) == prompt and ids[-3:] == [391, 455, 479] and max(ids) < vocab.size
    assert tokenizer.decode(tokenizer.encode("héllo[Hu1]")) == "héllo[Hu1]"


def test_the_speech_tokenizer_does_not_depend_on_its_source_folder(tmp_path, texts):
    write_new_model(tmp_path / "model", "spirit-tiny-expressive", [texts], 290)
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    tokenizer_config = config.read(
        SpeechTokenizerConfig, moved / "speech_tokenizer/speech_tokenizer.json"
    )
    assert tokenizer_config.shared == ""
    SpeechTokenizer.from_pretrained(moved)  # checks that every network has its hash


@pytest.mark.parametrize(
    "speech, pieces, message", [("nowhere", 290, "no such folder"), (None, 5_000, "5000 pieces")]
)
def test_an_impossible_model_leaves_nothing(tmp_path, texts, base_folder, speech, pieces, message):
    with pytest.raises(InputError, match=message):
        write_new_model(tmp_path / "model", speech or base_folder, [texts], pieces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_long_texts_are_learnt_from_completely(tmp_path):
    line = " ".join(["the lamp in the hall"] * 300 + ["zephyr zephyr"] * 300)
    learn_text_tokenizer(tmp_path / "learnt", [line], 290)
    model = load_sentencepiece(tmp_path / "learnt" / "tokenizer.model")
    assert len(model.encode("zephyr")) == 1


def test_a_manifest_without_text_is_rejected(tmp_path, base_folder):
    (tmp_path / "silent.jsonl").write_text('{"id": "a", "audio": "a.wav"}\n')
    with pytest.raises(InputError, match="no text"):
        write_new_model(tmp_path / "model", base_folder, [str(tmp_path / "silent.jsonl")], 290)


@pytest.mark.slow
def test_a_language_model_trains_in_a_new_folder_and_exports_in_float16(
    tmp_path, texts, base_folder
):
    vocab = write_new_model(tmp_path / "new", base_folder, [texts], 290)
    prepare(texts, tmp_path / "corpus", None)
    sizes = LlamaConfig(vocab.padded_size, 16, 32, 1, 2, 2, 8, max_positions=64)
    source = SourceConfig(str(tmp_path / "corpus"), format="text")
    run = LmRunConfig(
        run_dir=str(tmp_path / "run"),
        model=str(tmp_path / "new"),
        random_init=True,
        sizes=sizes,
        steps=2,
        data=DataConfig((source,), seq_len=32, batch_rows=2, shards=2),
    )
    assert len(list(loop.train(LmRecipe(run), jax.devices()[:1]))) == 2
    # Make the speech tokenizer share a network with another set.
    speech_tokenizer = tmp_path / "new" / "speech_tokenizer"
    (tmp_path / "set").mkdir()
    (speech_tokenizer / "hubert").rename(tmp_path / "set" / "hubert")
    tokenizer_config = config.read(
        SpeechTokenizerConfig, speech_tokenizer / "speech_tokenizer.json"
    )
    config.write(
        dataclasses.replace(tokenizer_config, shared="../../set"),
        speech_tokenizer / "speech_tokenizer.json",
    )
    export(LmRecipe(run), tmp_path / "full")
    export(LmRecipe(run, half=True, form="orbax"), tmp_path / "half")
    assert network_folder.find_arrays(tmp_path / "full" / "llama")[0] == "safetensors"
    assert network_folder.find_arrays(tmp_path / "half" / "llama")[0] == "orbax"
    full, half = (
        checkpoint.flatten(checkpoint.load_params(tmp_path / name / "llama"))
        for name in ("full", "half")
    )
    assert {array.dtype for array in half.values()} == {np.dtype("float16")}
    for name, array in full.items():
        np.testing.assert_array_equal(half[name], array.astype(np.float16))
    (tmp_path / "set").rename(tmp_path / "moved")
    written = config.read(LlamaConfig, tmp_path / "half" / "llama" / "config.json")
    assert written == dataclasses.replace(sizes, trained_positions=32)
    trained = SpiritLM.from_pretrained(tmp_path / "half")
    (ids,) = trained.generate_ids(["[Text]the lamp"], "text", max_new_tokens=4)
    assert 1 <= len(ids) <= 4 and max(ids) < 290
    assert len(trained.speech_tokenizer.encode(np.zeros(16_000, np.float32)))


@pytest.mark.slow
def test_an_expressive_model_extended_from_base_has_the_logits_of_base(tmp_path):
    vocab = extend_model(tmp_path / "extended", "spirit-tiny-base", "spirit-tiny-expressive")
    assert (vocab.hubert_units, vocab.pitch_units, vocab.style_units) == (100, 64, 24)
    extended = SpiritLM.from_pretrained(tmp_path / "extended")
    base = SpiritLM.from_pretrained("spirit-tiny-base")
    shared = base.vocab.size  # text, markers and phonetic units; pitch and style come after
    prompt = "[Text] it is half past[Speech][Hu57][Hu27][Hu99][Text] the"
    logits, base_logits = extended.logits(prompt), base.logits(prompt)
    np.testing.assert_allclose(logits[:, :shared], base_logits[:, :shared], atol=1e-5)
    assert logits[:, shared : vocab.size].std() > 0.1
    units = extended.speech_tokenizer.encode(
        np.random.default_rng(0).standard_normal(16_000, np.float32)
    )
    assert len(units.pitch) and len(units.style)


@pytest.mark.parametrize(
    "speech, message", [("nowhere", "no such folder"), (None, "phonetic units")]
)
def test_an_impossible_extension_leaves_nothing(tmp_path, base_folder, speech, message):
    with pytest.raises(InputError, match=message):
        extend_model(tmp_path / "extended", "spirit-tiny-base", speech or base_folder)
    assert not list(tmp_path.iterdir())
