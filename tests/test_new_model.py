"""A new model folder: a vocabulary of its own text, units of its speech tokenizer."""

import json

import pytest

from spirit_jax import SpeechTokenizer, config
from spirit_jax.errors import InputError
from spirit_jax.new_model import write_new_model
from spirit_jax.speech_tokenizer import SpeechTokenizerConfig
from spirit_jax.text import load_text_tokenizer
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
    "speech, pieces, says", [("nowhere", 290, "speech tokenizer"), (None, 5_000, "5000 pieces")]
)
def test_what_cannot_be_leaves_nothing(tmp_path, texts, base_folder, speech, pieces, says):
    with pytest.raises(InputError, match=says):
        write_new_model(tmp_path / "model", speech or base_folder, [texts], pieces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_no_text_is_said(tmp_path, base_folder):
    (tmp_path / "silent.jsonl").write_text('{"id": "a", "audio": "a.wav"}\n')
    with pytest.raises(InputError, match="no text"):
        write_new_model(tmp_path / "model", base_folder, [str(tmp_path / "silent.jsonl")], 290)
