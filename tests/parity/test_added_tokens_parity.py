"""Llama folders with tokens added to `tokenizer.model`, converted and exported again."""

import json
import sys

import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import toy_tokenizers as toy  # noqa: E402

from convert import export, weights  # noqa: E402
from convert import llama as convert_llama  # noqa: E402
from convert.tokenizer import convert_tokenizer  # noqa: E402
from spirit_jax import SpiritLM, checkpoint, config  # noqa: E402
from spirit_jax.cli import running  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.new_model import extend_model  # noqa: E402
from spirit_jax.text import load_text_tokenizer  # noqa: E402
from spirit_jax.vocab import Vocab  # noqa: E402

FLAGS = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)


def entry(content, **flags):
    return {"content": content} | FLAGS | flags


CONTROL = {0: "<unk>", 1: "<s>", 2: "</s>"}
CHAT = {
    **{str(i): entry(name, special=True) for i, name in CONTROL.items()},
    "1000": entry("<|im_start|>", special=True),
    "1001": entry("<|im_end|>", special=True),
    "1002": entry("<tool>"),
    "1003": entry("<tool>s", lstrip=True, rstrip=True),
    "1004": entry("<pad>", special=True),
}
SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "added_tokens_decoder": CHAT,
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
TEXTS = [
    "",
    " ",
    "hello the cat",
    " the cat",
    "  the",
    "the  cat ",
    "\n\nthe",
    "\u2581the",
    "naïve café 你好 😀",
    "<tool>",
    "<tool>the",
    "a<tool> the<tool>the",
    "a <tool>s the",
    " <tool> x",
    "<pad>the",
    "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return toy.train_sentencepiece(tmp_path_factory.mktemp("pieces") / "text.model")


def write_folder(folder, pieces, rows=1_100, **settings):
    toy.write_llama_folder(folder, pieces, rows, model_type="llama")
    toy.write_json(folder / "tokenizer_config.json", SETTINGS | settings)
    return folder


def convert(folder, output):
    vocab = convert_tokenizer(folder, "base", output, add=True)
    return vocab, load_text_tokenizer(output / "text_tokenizer", vocab)


@pytest.mark.parametrize("prefix", [None, slow(True), False])
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_transformers(pieces, tmp_path, legacy, prefix):
    settings = {"legacy": legacy} | ({} if prefix is None else {"add_prefix_space": prefix})
    folder = write_folder(tmp_path / "llama", pieces, **settings)
    vocab, tokenizer = convert(folder, tmp_path / "out")
    assert vocab.text_size == 1_005
    source = transformers.AutoTokenizer.from_pretrained(folder)
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "text_tokenizer")
    assert written.convert_tokens_to_ids(["[Text]", "[Hu500]"]) == [1_005, vocab.size - 1]
    for text in TEXTS:
        expected = source.encode(text, add_special_tokens=False)
        assert written.encode(text, add_special_tokens=False) == expected, text
        # Here special tokens are text, as <s> is: no text can spell them.
        expected = source.encode(text, add_special_tokens=False, split_special_tokens=True)
        ids = tokenizer.encode(text)
        if not legacy or prefix is False:
            assert ids[1:] == expected, text
            assert tokenizer.decode(ids) == source.decode(expected), text
        # Of legacy tokenizers the release's behaviour holds: before a space that a text begins
        # with stands another. transformers 5 leaves it out.
        elif not any(part.startswith((" ", "\u2581")) for part in text.split("<tool>")):
            assert ids[1:] == expected, text
        else:
            assert tokenizer.decode(ids) == text.replace("\u2581", " "), text


def test_prompts_follow_the_setting(pieces, tmp_path):
    """As transformers splits at added tokens, so text is split at markers."""
    folder = write_folder(tmp_path / "llama", pieces, legacy=False)
    _, tokenizer = convert(folder, tmp_path / "out")
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "text_tokenizer")
    for prompt in ("[Text]the cat[Speech][Hu3] the", "the[Hu0] cat<tool>the", " [Hu0] "):
        ids = tokenizer.encode(prompt)
        assert ids[1:] == written.encode(prompt, add_special_tokens=False), prompt
        assert tokenizer.decode(ids) == prompt.removeprefix(" "), prompt
    assert tokenizer.word_prefix == " "
    assert convert(write_folder(tmp_path / "old", pieces), tmp_path / "o")[1].word_prefix == ""


@pytest.mark.parametrize("form", ["added_tokens.json", "special_tokens_map.json", "pad_token"])
def test_every_form_of_added_tokens_is_read(pieces, tmp_path, form):
    folder = toy.write_llama_folder(tmp_path / "llama", pieces, 1_001, model_type="llama")
    if form == "added_tokens.json":
        toy.write_json(folder / form, {"<pad>": 1_000})
    elif form == "pad_token":
        toy.write_json(folder / "tokenizer_config.json", {"pad_token": "<pad>"})
    else:
        toy.write_json(folder / form, {"pad_token": {"content": "<pad>"}})
    source = transformers.AutoTokenizer.from_pretrained(folder)
    vocab, _ = convert(folder, tmp_path / "out")
    assert vocab.text_size == len(source) == 1_001
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "text_tokenizer")
    assert written.convert_tokens_to_ids("<pad>") == source.convert_tokens_to_ids("<pad>") == 1_000
    assert written.convert_tokens_to_ids("[Text]") == 1_001


def test_tokens_that_a_tokenizer_json_lacks_are_added_as_transformers_adds_them(tmp_path):
    folder = toy.write_llama_folder(
        tmp_path / "llama", toy.train_bpe(tmp_path / "tokenizer.json"), 1_002, model_type="llama"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    added = {"1000": entry("<tool>")}
    toy.write_json(folder / "tokenizer_config.json", settings | {"added_tokens_decoder": added})
    source = transformers.AutoTokenizer.from_pretrained(folder)
    vocab, tokenizer = convert(folder, tmp_path / "out")
    assert vocab.text_size == len(source) == 1_002
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "text_tokenizer")
    for text in ("a <tool>b", "<pad>the", " the"):
        ids = source.encode(text, add_special_tokens=False)
        assert written.encode(text, add_special_tokens=False) == ids
    text = "a <tool>b"
    assert tokenizer.encode(text)[1:] == source.encode(text, add_special_tokens=False)
    assert tokenizer.encode("[Hu0]") == [1, vocab.first_unit]


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"1001": entry("<pad>")}, "no token has 1000"),
        ({"5": entry("<pad>")}, "'<pad>' has the id 5, which is not free"),
        ({"1000": entry("\u2581the")}, "not free"),
        ({"1000": {"content": 5}}, "added_tokens_decoder"),
        ({"-1": entry("<pad>")}, "not free"),
    ],
)
def test_ids_that_cannot_be_kept_are_named(pieces, tmp_path, added, says):
    folder = write_folder(tmp_path / "llama", pieces, added_tokens_decoder=added, pad_token=None)
    with pytest.raises(InputError, match=says):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_json_of_other_pieces_is_named(pieces, tmp_path):
    folder = write_folder(tmp_path / "llama", pieces)
    toy.train_bpe(folder / "tokenizer.json")
    with pytest.raises(InputError, match="have different pieces"):
        convert(folder, tmp_path / "out")


# A whole model, there and back.


def write_llama(folder, pieces, rows):
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=1_001,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(settings).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(pieces.read_bytes())
    toy.write_json(folder / "tokenizer_config.json", SETTINGS)
    return folder


def run(main, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    running.run(main)


def test_rows_are_kept_and_an_exported_folder_converts_back(pieces, tmp_path, monkeypatch, capsys):
    hf, converted, back = tmp_path / "hf", tmp_path / "made", tmp_path / "back"
    write_llama(hf, pieces, 1_010)
    arguments = ("--checkpoint", hf, "--output", converted)
    with pytest.raises(SystemExit, match="1"):
        run(convert_llama.main, *arguments, monkeypatch=monkeypatch)
    assert "--add-speech-tokens" in capsys.readouterr().err
    run(convert_llama.main, *arguments, "--add-speech-tokens", "base", monkeypatch=monkeypatch)
    vocab = config.read(Vocab, converted / "vocab.json")
    assert (vocab.text_size, vocab.eos) == (1_005, (1_001,))
    before = weights.open_folder(hf)["model.embed_tokens.weight"]
    params = checkpoint.flatten(checkpoint.load_params(converted / "llama"))
    assert np.array_equal(params["embed/embedding"][:1_005], before[:1_005])

    run(export.main, "--model", converted, "--output", tmp_path / "out", monkeypatch=monkeypatch)
    arguments = ("--checkpoint", tmp_path / "out", "--output", back)
    for option in (("--add-speech-tokens", "base"), ("--seed", "1")):
        with pytest.raises(SystemExit, match="1"):
            run(convert_llama.main, *arguments, *option, monkeypatch=monkeypatch)
        assert "has speech tokens of kind base already" in capsys.readouterr().err
    run(convert_llama.main, *arguments, monkeypatch=monkeypatch)
    assert config.read(Vocab, back / "vocab.json") == vocab
    after = checkpoint.flatten(checkpoint.load_params(back / "llama"))
    assert set(after) == set(params)
    for name, array in params.items():
        assert array.dtype == after[name].dtype and np.array_equal(array, after[name]), name
    for name in ("tokenizer.model", "tokenizer_config.json"):
        files = [folder / "text_tokenizer" / name for folder in (converted, back)]
        assert files[0].read_bytes() == files[1].read_bytes()

    vocab = extend_model(tmp_path / "spoken", converted, "spirit-tiny-base")
    assert (vocab.text_size, vocab.hubert_units) == (1_005, 100)
    spoken = SpiritLM.from_pretrained(tmp_path / "spoken")
    (ids,) = spoken.generate_ids(["[Text]the cat"], "speech", max_new_tokens=3)
    assert all(vocab.first_unit <= i < vocab.size or i in vocab.eos for i in ids)
    rows = checkpoint.flatten(checkpoint.load_params(tmp_path / "spoken/llama"))
    kept = rows["embed/embedding"][: vocab.text_size + 102]
    assert np.array_equal(kept, params["embed/embedding"][: vocab.text_size + 102])
    with pytest.raises(InputError, match="convert llama"):
        extend_model(tmp_path / "other", hf, "spirit-tiny-base")


def test_an_exported_packaged_model_converts_back(tmp_path):
    export.export_model("spirit-tiny-expressive", tmp_path / "hf")
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    vocab = convert_tokenizer(tmp_path / "hf", "expressive", tmp_path / "out", add=False)
    assert written.convert_tokens_to_ids("[Hu0]") == vocab.first_unit
    assert (vocab.hubert_units, vocab.pitch_units, vocab.style_units) == (100, 64, 24)
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert settings["legacy"] is True
    with pytest.raises(InputError, match="exists already"):
        export.export_model("spirit-tiny-base", tmp_path / "hf")
