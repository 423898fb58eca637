"""A new model folder: a vocabulary of its own text, units of its speech tokenizer."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spirit_jax import SpeechTokenizer, SpiritLM, checkpoint, config
from spirit_jax.data.pipeline import DataConfig
from spirit_jax.data.prepare import prepare
from spirit_jax.data.samples import SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.model_folder import SpeechTokenizerConfig
from spirit_jax.models.llama import LlamaConfig
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


def test_its_vocabulary_is_of_the_text_and_of_the_tokenizers_units(tmp_path, texts):
    made = tmp_path / "model"
    vocab = write_new_model(made, "spirit-tiny-expressive", [texts], 290)
    assert config.read(Vocab, made / "vocab.json") == vocab
    assert (vocab.hubert_units, vocab.pitch_units, vocab.style_units) == (100, 64, 24)
    tokenizer = load_text_tokenizer(made / "text_tokenizer", vocab)
    prompt = "[Text]the lamp[Speech][Hu99][Pi63][St23]"
    ids = tokenizer.encode(prompt)
    # after 290 pieces and two markers
    assert tokenizer.decode(ids) == prompt and ids[-3:] == [391, 455, 479] and max(ids) < vocab.size
    assert tokenizer.decode(tokenizer.encode("héllo[Hu1]")) == "héllo[Hu1]"


def test_its_speech_tokenizer_is_whole_by_itself(tmp_path, texts):
    write_new_model(tmp_path / "model", "spirit-tiny-expressive", [texts], 290)
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    about = config.read(SpeechTokenizerConfig, moved / "speech_tokenizer/speech_tokenizer.json")
    assert about.shared == ""
    SpeechTokenizer.from_pretrained(moved)  # with every network of its hashes


@pytest.mark.parametrize(
    "speech, pieces, says", [("nowhere", 290, "no such folder"), (None, 5_000, "5000 pieces")]
)
def test_what_cannot_be_leaves_nothing(tmp_path, texts, base_folder, speech, pieces, says):
    with pytest.raises(InputError, match=says):
        write_new_model(tmp_path / "model", speech or base_folder, [texts], pieces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_a_long_text_is_learnt_from_to_its_end(tmp_path):
    line = " ".join(["the lamp in the hall"] * 300 + ["zephyr zephyr"] * 300)
    learn_text_tokenizer(tmp_path / "learnt", [line], 290)
    model = load_sentencepiece(tmp_path / "learnt" / "tokenizer.model")
    assert len(model.encode("zephyr")) == 1


def test_no_text_is_said(tmp_path, base_folder):
    (tmp_path / "silent.jsonl").write_text('{"id": "a", "audio": "a.wav"}\n')
    with pytest.raises(InputError, match="no text"):
        write_new_model(tmp_path / "model", base_folder, [str(tmp_path / "silent.jsonl")], 290)


def test_a_language_model_is_trained_in_it_and_exported_in_half(tmp_path, texts, base_folder):
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
    own = tmp_path / "new" / "speech_tokenizer"  # from now on it shares a network
    (tmp_path / "set").mkdir()
    (own / "hubert").rename(tmp_path / "set" / "hubert")
    about = config.read(SpeechTokenizerConfig, own / "speech_tokenizer.json")
    config.write(dataclasses.replace(about, shared="../../set"), own / "speech_tokenizer.json")
    export(LmRecipe(run), tmp_path / "whole")
    export(LmRecipe(run, half=True), tmp_path / "half")
    whole, half = (
        checkpoint.flatten(checkpoint.load_params(tmp_path / name / "llama" / "params"))
        for name in ("whole", "half")
    )
    assert {array.dtype for array in half.values()} == {np.dtype("float16")}
    for name, array in whole.items():
        np.testing.assert_array_equal(half[name], array.astype(np.float16))
    (tmp_path / "set").rename(tmp_path / "moved")
    written = config.read(LlamaConfig, tmp_path / "half" / "llama" / "config.json")
    assert written == dataclasses.replace(sizes, trained_positions=32)
    trained = SpiritLM.from_pretrained(tmp_path / "half")
    (ids,) = trained.generate_ids(["[Text]the lamp"], "text", max_new_tokens=4)
    assert 1 <= len(ids) <= 4 and max(ids) < 290
    assert len(trained.speech_tokenizer.encode(np.zeros(16_000, np.float32)))


@pytest.mark.slow
def test_expressive_begun_from_base_expects_what_base_does(tmp_path):
    vocab = extend_model(tmp_path / "made", "spirit-tiny-base", "spirit-tiny-expressive")
    assert (vocab.hubert_units, vocab.pitch_units, vocab.style_units) == (100, 64, 24)
    made = SpiritLM.from_pretrained(tmp_path / "made")
    base = SpiritLM.from_pretrained("spirit-tiny-base")
    both = base.vocab.size  # text, markers, phonetic units; what comes after is of pitch and style
    prompt = "[Text] it is half past[Speech][Hu57][Hu27][Hu99][Text] the"
    ours, theirs = made.logits(prompt), base.logits(prompt)
    np.testing.assert_allclose(ours[:, :both], theirs[:, :both], atol=1e-5)
    assert ours[:, both : vocab.size].std() > 0.1
    units = made.speech_tokenizer.encode(
        np.random.default_rng(0).standard_normal(16_000, np.float32)
    )
    assert len(units.pitch) and len(units.style)


@pytest.mark.parametrize("speech, says", [("nowhere", "no such folder"), (None, "phonetic units")])
def test_a_start_that_cannot_be_leaves_nothing(tmp_path, base_folder, speech, says):
    with pytest.raises(InputError, match=says):
        extend_model(tmp_path / "made", "spirit-tiny-base", speech or base_folder)
    assert not list(tmp_path.iterdir())
