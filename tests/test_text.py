"""Text tokenizers of all three kinds: encoding and decoding of prompt strings."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import toy_tokenizers as toy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convert.tokenizer import convert_tokenizer
from spirit_jax import config
from spirit_jax.errors import InputError
from spirit_jax.generation.stopping import TextReader
from spirit_jax.markup import escape, show
from spirit_jax.text import (
    PieceTokenizer,
    SplitTokenizer,
    TextTokenizer,
    learn_text_tokenizer,
    load_text_tokenizer,
    load_tokenizers,
)
from spirit_jax.vocab import Vocab

BASE = Vocab.make("base", toy.TEXT_SIZE)
EXPRESSIVE = Vocab.make("expressive", toy.TEXT_SIZE)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A Llama folder, and the vocabulary and tokenizer converted from it."""

    llama: Path
    vocab: Vocab
    tokenizer: TextTokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The text tokenizers that the tests convert, by name."""
    folder = tmp_path_factory.mktemp("tokenizers")
    text = toy.train_sentencepiece(folder / "text.model")
    return {
        "text": text,
        "pieces": toy.append_pieces(text, folder / "pieces.model", BASE.token_strings()),
        "json": toy.train_bpe(folder / "text.json"),
    }


def converted(llama, kind, add):
    vocab = convert_tokenizer(llama, kind, llama / "out", add)
    return Kind(llama, vocab, load_text_tokenizer(llama / "out" / "text_tokenizer", vocab))


@pytest.fixture(scope="session")
def kinds(files, tmp_path_factory):
    """Every kind of tokenizer, by name; `pieces` is of kind base, the others are expressive."""
    folder = tmp_path_factory.mktemp("llama")
    pieces = toy.write_llama_folder(folder / "pieces", files["pieces"], BASE.padded_size)
    text = toy.write_llama_folder(folder / "text", files["text"], toy.TEXT_SIZE)
    bpe = toy.write_llama_folder(folder / "json", files["json"], toy.TEXT_SIZE)
    return {
        "pieces": converted(pieces, "base", add=False),
        "text": converted(text, "expressive", add=True),
        "json": converted(bpe, "expressive", add=True),
    }


@pytest.fixture(params=["pieces", "text", "json"])
def kind(request, kinds):
    return kinds[request.param]


def test_each_folder_gives_the_tokenizer_of_its_kind(kinds):
    assert isinstance(kinds["pieces"].tokenizer, PieceTokenizer)
    assert isinstance(kinds["text"].tokenizer, SplitTokenizer)
    assert isinstance(kinds["json"].tokenizer, SplitTokenizer)
    assert kinds["pieces"].vocab == BASE
    assert kinds["text"].vocab == kinds["json"].vocab == EXPRESSIVE


# Encoding.


def test_an_empty_string_encodes_to_bos(kind):
    assert kind.tokenizer.encode("") == [kind.vocab.bos]


def test_every_marker_and_unit_is_one_id(kind):
    strings = kind.vocab.token_strings()
    ids = kind.tokenizer.encode("a" + "".join(strings))
    assert ids[-len(strings) :] == list(range(kind.vocab.text_size, kind.vocab.size))


@pytest.mark.parametrize("ids", [[1.5], "12", None, [None], [-1], [10**9], 5])
def test_ids_that_are_no_tokens_are_named(kind, ids):
    with pytest.raises(InputError, match="does not exist|whole numbers"):
        kind.tokenizer.decode(ids)


def test_a_piece_tokenizer_adds_one_prefix_space(kinds):
    encode = kinds["pieces"].tokenizer.encode
    space = encode(" ")[1]
    text, marker = BASE.text_marker, BASE.speech_marker
    assert encode("[Text]") == [1, space, text]
    assert encode("[Text]the[Speech]the") == [1, space, text, *encode("a[Text]the")[-2:]] + [
        marker,
        *encode("a[Text]the")[-2:],
    ]
    assert encode("[Text]the") != encode("[Text] the")


def test_a_split_tokenizer_adds_a_prefix_space_to_every_text_span(kinds):
    encode = kinds["text"].tokenizer.encode
    text, marker = EXPRESSIVE.text_marker, EXPRESSIVE.speech_marker
    the = encode("the")[1:]
    assert encode("[Text]the[Speech]the") == [1, text, *the, marker, *the]
    assert encode("the[Text] ") == [1, *the, text, *encode(" ")[1:]]


def test_a_byte_level_tokenizer_adds_no_prefix_space(kinds):
    encode = kinds["json"].tokenizer.encode
    the = encode("the")[1:]
    assert encode("[Text]the") == [1, EXPRESSIVE.text_marker, *the]
    assert encode("[Text] the") != encode("[Text]the")


@pytest.mark.parametrize("string", ["[Hu501]", "[Pi64]", "[hu1]", "[Hu01]", "[Hu٣]", "[Te", "Hu1]"])
def test_strings_that_are_not_tokens_are_text(kind, string):
    ids = kind.tokenizer.encode(f"a{string}b[Hu1]c")
    assert [i for i in ids if i >= kind.vocab.text_size] == [kind.vocab.first_unit + 1]
    assert kind.tokenizer.decode(ids) == f"a{string}b[Hu1]c"


def test_pitch_units_are_text_for_a_base_model(kinds):
    ids = kinds["pieces"].tokenizer.encode("[Pi3][Hu1]")
    assert [i for i in ids if i >= BASE.text_size] == [BASE.first_unit + 1]


@pytest.mark.parametrize("string", ["<s>", "</s>", "<unk>", "a</s>[Hu1]<s>"])
def test_names_of_special_tokens_are_text(kind, string):
    bos, *ids = kind.tokenizer.encode(string)
    assert bos == kind.vocab.bos
    assert not {0, 1, 2} & set(ids)
    assert kind.tokenizer.decode(ids) == string


def test_lone_surrogates_are_rejected(kind):
    with pytest.raises(InputError, match=r"'ab\\ud800c'.*at position 2"):
        kind.tokenizer.encode("ab\ud800c")


# Text that looks like markers and units.

SPELLED = [
    "[Hu5]",
    "say [Hu5] [Speech]",
    "[Text]",
    "[[Hu5]]",
    "a[Pi3]b[St7]",
    r"[\Hu5]",
    "the [Hu5",
]


@pytest.fixture(scope="session")
def encode_plain(files):
    """Encoders without markers and units, by kind."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(files["text"]))
    bpe = tokenizers.Tokenizer.from_file(str(files["json"]))
    return {"pieces": pieces.encode, "text": pieces.encode, "json": lambda s: bpe.encode(s).ids}


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("name", ["pieces", "text", "json"])
def test_escaped_text_encodes_as_by_a_tokenizer_without_units(kinds, encode_plain, name, text):
    kind = kinds[name]
    ids = kind.tokenizer.encode(escape(text))
    assert ids == [kind.vocab.bos, *encode_plain[name](text)]
    assert kind.tokenizer.decode(ids) == text
    assert kind.tokenizer.decode_prompt(ids) == escape(text)


@pytest.mark.parametrize("text", SPELLED)
def test_tokens_around_escaped_text_are_kept(kind, text):
    prompt = f"[Text]{escape(text)}[Speech][Hu7]{escape(text)} the[Text]"
    ids = kind.tokenizer.encode(prompt)
    unit, marker = kind.vocab.first_unit + 7, kind.vocab.text_marker
    special = [i for i in ids if i >= kind.vocab.text_size]
    assert special == [marker, kind.vocab.speech_marker, unit, marker]
    assert kind.tokenizer.decode_prompt(ids) == prompt
    assert kind.tokenizer.decode(ids) == f"[Text]{text}[Speech][Hu7]{text} the[Text]"
    before = kind.tokenizer.encode("[Text]  the cat[Speech] a[Hu7]")
    assert kind.tokenizer.encode(f"[Text]  the cat[Speech] a[Hu7]{escape(text)}")[
        : len(before)
    ] == (before)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1700), max_size=12))
def test_any_ids_have_a_prompt_string_with_the_same_tokens(kinds, ids):
    for kind in kinds.values():
        ids = [token for token in ids if token < kind.vocab.padded_size]
        prompt = kind.tokenizer.decode_prompt(ids)
        tokens = [i for i in ids if kind.vocab.text_size <= i < kind.vocab.size]
        again = kind.tokenizer.encode(prompt)
        assert [i for i in again if i >= kind.vocab.text_size] == tokens
        assert show(prompt) == kind.tokenizer.decode(ids)


@settings(deadline=None)
@given(st.lists(st.integers(0, BASE.size - 1) | st.integers(3, 258), max_size=12))
def test_pieces_decode_as_sentencepiece_does(kinds, ids):
    kind = kinds["pieces"]
    path = kind.llama / "out" / "text_tokenizer" / "tokenizer.model"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert kind.tokenizer.decode(ids) == reference.decode(ids)


def test_negative_ids_are_rejected(kind):
    with pytest.raises(InputError, match="-1"):
        kind.tokenizer.decode([5, -1])


@pytest.mark.parametrize("string", [b"a", None, 5, ["a"]])
def test_prompts_that_are_not_strings_are_rejected(kind, string):
    with pytest.raises(InputError, match="must be a string"):
        kind.tokenizer.encode(string)


# Settings that a tokenizer.json keeps from training.


def saved_after(change, files, folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(files["json"]))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    llama = toy.write_llama_folder(folder / "llama", folder / "tokenizer.json", toy.TEXT_SIZE)
    return converted(llama, "expressive", add=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.enable_truncation(16),
        lambda t: t.enable_padding(length=64),
        lambda t: setattr(t.model, "dropout", 0.5),
        lambda t: setattr(
            t,
            "post_processor",
            tokenizers.processors.TemplateProcessing(
                "<s> $A </s>", None, [("<s>", 1), ("</s>", 2)]
            ),
        ),
    ],
    ids=["truncation", "padding", "dropout", "template"],
)
def test_truncation_padding_and_dropout_of_training_are_ignored(files, kinds, tmp_path, change):
    kind = saved_after(change, files, tmp_path)
    text = "[Text]" + "the cat sat on the mat " * 20 + "[Hu3]"
    expected = kinds["json"].tokenizer.encode(text)
    assert len(expected) > 64
    assert all(kind.tokenizer.encode(text) == expected for _ in range(3))


def test_the_tokenizer_with_truncation_in_the_shared_cases(tmp_path):
    case = Path(__file__).parents[2] / "shared" / "cases" / "tokenizers"
    if not case.is_dir():
        pytest.skip(f"the cases are not at {case}")
    path = case / "truncation16.tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    assert (
        load_tokenizers(path).encode("the cat " * 200).ids == reference.encode("the cat " * 200).ids
    )
    size = reference.get_vocab_size()
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    llama = toy.write_llama_folder(tmp_path / "llama", tmp_path / "tokenizer.json", size)
    kind = converted(llama, "base", add=True)
    text = "a text of some words, " * 40
    assert len(kind.tokenizer.encode(text)) == 1 + len(reference.encode(text).ids) > 100


# A vocabulary learnt from texts.


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    # A tab must not split or drop a line.
    lines = [f"{line}\t{line}" for line in toy.sentences()[:300]]
    learn_text_tokenizer(folder, lines, 500)
    return load_text_tokenizer(folder, Vocab.make("base", 500))


@pytest.mark.parametrize(
    "text", ["a  b", "   three", "end  ", " ", "a\tb", "a\n\nb\r\n", "\u3000x"]
)
def test_a_learnt_vocabulary_keeps_spaces(learnt, text):
    assert learnt.decode(learnt.encode(text)) == text
    prompt = f"[Text]{text}[Speech][Hu1]"
    assert learnt.decode(learnt.encode(prompt)) == prompt
    assert len(learnt.encode("topics")) < 7  # words have pieces of several letters


@pytest.mark.parametrize(
    ("lines", "pieces", "message"),
    [
        ([], 300, "cannot be trained"),
        (["a b c"], 100_000, "cannot be trained .the text is enough for at most"),
        (["a b c"], 60, "its characters and the 256 bytes need at least 263"),
        (["a b c"], -1, "cannot be trained"),
        (["a b c"], 10**30, "cannot be trained"),
        (["half \ud83d"], 300, "not valid Unicode"),
        ([None], 300, "must be a string"),
    ],
)
def test_texts_that_no_vocabulary_can_be_learnt_from_are_rejected(tmp_path, lines, pieces, message):
    with pytest.raises(InputError, match=message):
        learn_text_tokenizer(tmp_path / "x", lines, pieces)
    assert not list(tmp_path.glob("x/*"))


# Decoding.


@pytest.mark.parametrize(
    "string",
    [
        "the cat",
        "  two  spaces  ",
        "naïve café — 你好 😀",
        "one\ntwo\n\n\tthree\r\n",
        "[Text]the cat[Speech][Hu12][Hu500][Text] sat [Speech]",
        "[Hu1] [Hu2]",
    ],
)
def test_decoding_inverts_encoding(kind, string):
    assert kind.tokenizer.decode(kind.tokenizer.encode(string)) == string


parts = st.sampled_from(["[Text]", "[Speech]", "[Hu7]", "[Hu500]", "[", " ", "  ", "\n", "the "])
# SentencePiece writes a space as U+2581, so decoding turns that character into a space.
any_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=4
)


@settings(deadline=None)
@given(st.lists(parts | any_text, max_size=8).map("".join))
@example("")
def test_decoding_inverts_encoding_of_random_strings(kinds, string):
    for kind in kinds.values():
        ids = kind.tokenizer.encode(string)
        assert all(0 <= i < kind.vocab.size for i in ids)
        assert kind.tokenizer.decode(ids) == string


def test_decoding_omits_bos_eos_and_padding_ids(kind):
    _, *ids = kind.tokenizer.encode("[Hu1]the")
    padding = range(kind.vocab.size, kind.vocab.padded_size)
    assert kind.tokenizer.decode([kind.vocab.bos, *ids, *kind.vocab.eos, *padding]) == "[Hu1]the"
    assert kind.tokenizer.decode([]) == ""


# Folders.


def test_a_vocabulary_that_does_not_fit_the_pieces_is_rejected(kind):
    folder = kind.llama / "out" / "text_tokenizer"
    other = Vocab.make("base", 900)
    with pytest.raises(InputError, match="text_tokenizer.* 900"):
        load_text_tokenizer(folder, other)


def test_missing_pieces_are_rejected(kinds):
    folder = kinds["pieces"].llama / "out" / "text_tokenizer"
    with pytest.raises(InputError, match="1503 pieces.*1667"):
        load_text_tokenizer(folder, EXPRESSIVE)


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_truncated_files_are_rejected(files, tmp_path, name, part):
    complete = files["text" if name == "tokenizer.model" else "json"].read_bytes()
    (tmp_path / name).write_bytes(complete[: int(part * len(complete))])
    with pytest.raises(InputError, match=str(tmp_path)):
        load_text_tokenizer(tmp_path, EXPRESSIVE)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{}", b"not a tokenizer", b"\xff\x00\xfe" * 50])
def test_files_that_are_not_tokenizers_are_rejected(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_text_tokenizer(tmp_path, EXPRESSIVE)


def test_a_folder_without_a_tokenizer_is_rejected(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}.*tokenizer.model or tokenizer.json"):
        load_text_tokenizer(tmp_path, BASE)


# Conversion.


def test_conversion_writes_the_vocabulary_and_the_tokenizer(kind):
    out = kind.llama / "out"
    assert config.read(Vocab, out / "vocab.json") == kind.vocab
    names = {path.name for path in (out / "text_tokenizer").iterdir()}
    assert names == {
        "tokenizer_config.json",
        next(p.name for p in kind.llama.glob("tokenizer.*") if p.suffix in (".model", ".json")),
    }


def test_converting_a_converted_folder_gives_the_same_tokenizer(kind, tmp_path):
    """The converted files list the tokens, so they make a Llama folder with speech tokens."""
    llama = tmp_path / "llama"
    llama.mkdir()
    for path in (kind.llama / "out" / "text_tokenizer").iterdir():
        (llama / path.name).write_bytes(path.read_bytes())
    settings = config.read_mapping(kind.llama / "config.json")
    toy.write_json(llama / "config.json", settings | {"vocab_size": kind.vocab.padded_size})
    name = "base" if kind.vocab == BASE else "expressive"
    again = converted(llama, name, add=False)
    assert again.vocab == kind.vocab
    string = "[Text]the cat[Speech][Hu12][Hu500]  a"
    assert again.tokenizer.encode(string) == kind.tokenizer.encode(string)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_are_read_from_either_file(files, tmp_path, name):
    folder = toy.write_llama_folder(tmp_path / "llama", files["text"], 1_792)
    ids = {s: toy.TEXT_SIZE + i for i, s in enumerate(EXPRESSIVE.token_strings())}
    added = {"added_tokens_decoder": {str(i): {"content": s} for s, i in ids.items()}}
    toy.write_json(folder / name, ids if name == "added_tokens.json" else added)
    kind = converted(folder, "expressive", add=False)
    assert kind.vocab == dataclasses.replace(EXPRESSIVE, padded_size=1_792)
    assert kind.tokenizer.encode("[St99]") == [1, EXPRESSIVE.size - 1]


def test_a_large_vocabulary_with_several_eos_ids(tmp_path):
    tokenizer = toy.made_up_bpe(tmp_path / "large.json", 128_256)
    folder = toy.write_llama_folder(tmp_path / "llama", tokenizer, 128_256, eos_token_id=5)
    toy.write_json(folder / "generation_config.json", {"eos_token_id": [2, 7], "bos_token_id": 1})
    kind = converted(folder, "expressive", add=True)
    assert kind.vocab == Vocab.make("expressive", 128_256, eos=(2, 7))
    ids = kind.tokenizer.encode("[Text]é[St99]")
    assert ids[:2] + ids[-1:] == [1, 128_256, kind.vocab.size - 1]
    assert len(ids) == 5
    assert kind.tokenizer.decode(ids) == "[Text]é[St99]"


def test_extra_embedding_rows_are_kept_as_padding(files, tmp_path):
    folder = toy.write_llama_folder(tmp_path / "llama", files["text"], 4_096)
    assert convert_tokenizer(folder, "base", tmp_path / "out", add=True).padded_size == 4_096


def edit(path, **changes):
    toy.write_json(path, json.loads(path.read_text()) | changes)


@pytest.mark.parametrize(
    ("name", "kind", "add", "changes", "words"),
    [
        ("text", "base", False, {}, [r"\[Text\]", "Spirit LM"]),
        ("json", "base", False, {}, [r"\[Text\]", "Spirit LM"]),
        ("pieces", "base", True, {}, ["already"]),
        ("pieces", "expressive", False, {"vocab_size": 1_792}, [r"\[Pi0\]", "expressive"]),
        ("text", "large", True, {}, ["'large'"]),
        ("pieces", "base", False, {"vocab_size": 1_500}, ["1500", "1503"]),
        ("text", "base", True, {"bos_token_id": "<s>"}, ["bos_token_id", "config.json"]),
        ("text", "base", True, {"eos_token_id": "two"}, ["eos_token_id", "config.json"]),
        ("text", "base", True, {"vocab_size": None}, ["vocab_size", "config.json"]),
        ("text", "base", True, {"eos_token_id": 5_000}, ["5000"]),
    ],
)
def test_inconsistent_folders_are_rejected(files, tmp_path, name, kind, add, changes, words):
    folder = toy.write_llama_folder(tmp_path / "llama", files[name], BASE.padded_size)
    edit(folder / "config.json", **changes)
    with pytest.raises(InputError, match=".*".join(words[:1])) as error:
        convert_tokenizer(folder, kind, tmp_path / "out", add)
    for word in words[1:]:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_expressive_tokenizer_is_not_taken_for_base(kinds, tmp_path):
    llama = tmp_path / "llama"
    llama.mkdir()
    for path in (kinds["text"].llama / "out" / "text_tokenizer").iterdir():
        (llama / path.name).write_bytes(path.read_bytes())
    toy.write_json(
        llama / "config.json", {"vocab_size": 1_792, "bos_token_id": 1, "eos_token_id": 2}
    )
    with pytest.raises(InputError, match="pitch"):
        convert_tokenizer(llama, "base", tmp_path / "out", add=False)


def test_tokens_out_of_order_are_rejected(files, tmp_path):
    strings = BASE.token_strings()
    strings[3], strings[4] = strings[4], strings[3]
    mixed = toy.append_pieces(files["text"], tmp_path / "mixed.model", strings)
    folder = toy.write_llama_folder(tmp_path / "llama", mixed, BASE.padded_size)
    with pytest.raises(InputError, match=r"\[Hu1\].*1004.*1003"):
        convert_tokenizer(folder, "base", tmp_path / "out", add=False)


def test_a_damaged_list_of_added_tokens_is_rejected(files, tmp_path):
    folder = toy.write_llama_folder(tmp_path / "llama", files["text"], 1_792)
    toy.write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": {"x": {}}})
    with pytest.raises(InputError, match="tokenizer_config.json"):
        convert_tokenizer(folder, "base", tmp_path / "out", add=False)


# Ids that come one by one.


def llama_json(size):
    """A tokenizer like the `tokenizer.json` of Llama 2: an invalid byte spoils its whole run."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    vocab |= {piece: i for i, piece in enumerate(["\u2581", "a", "b", "\u2581a", "."], 259)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, [("\u2581", "a")], byte_fallback=True, unk_token="<unk>")
    )
    parts = tokenizers.decoders
    tokenizer.decoder = parts.Sequence(
        [parts.Replace("\u2581", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    vocab = Vocab.make("base", size)
    encode = lambda text, first: tokenizer.encode(text).ids  # noqa: E731
    return Kind(
        None, vocab, SplitTokenizer(encode, lambda ids, first: tokenizer.decode(ids), vocab)
    )


@pytest.mark.parametrize("name", ["pieces", "text", "json", "llama"])
def test_ids_that_come_one_by_one_give_the_text_of_all(kinds, name):
    kind = llama_json(264) if name == "llama" else kinds[name]
    vocab, draws = kind.vocab, np.random.default_rng(0)
    euro = kind.tokenizer.encode("a \u20ac\u20ac")[1:]
    for number in range(30):
        reader, ids = TextReader(kind.tokenizer, vocab), []
        # Text ids, of which some are bytes, and few units; a character of several bytes.
        drawn = draws.integers(0, vocab.text_size, 40)
        drawn[draws.random(40) < 0.3] = draws.integers(0, min(300, vocab.text_size))
        drawn = [*drawn[:20], *euro, *drawn[20:]]
        if number % 2:
            drawn[draws.integers(40)] = vocab.first_unit + 7
        for new in map(int, drawn):
            token = reader.add(new)
            ids = [new] if token else [*ids, new]
            start = len(token or reader.token)
            assert reader.text == kind.tokenizer.decode(ids)[start:], ids


def test_the_time_to_read_ids_is_linear(kind, monkeypatch):
    decoded = []
    decode = type(kind.tokenizer).decode
    count = lambda self, ids: decoded.append(len(ids)) or decode(self, ids)  # noqa: E731
    monkeypatch.setattr(type(kind.tokenizer), "decode", count)
    ids = kind.tokenizer.encode(" ".join(toy.sentences()[:100]))[1:]
    reader = TextReader(kind.tokenizer, kind.vocab)
    for new in ids:
        reader.add(new)
    assert len(ids) > 1000 and sum(decoded) < 20 * len(ids)
    assert reader.text == decode(kind.tokenizer, ids)


# Results of the release.


@pytest.fixture(scope="module", params=["base", "expressive"])
def release(request, golden, tmp_path_factory):
    """(tokenizer, expected numbers) of one of the release's models."""
    name = f"spirit-lm-{request.param}-7b"
    folder = golden / "checkpoints" / "spiritlm_model" / name
    out = tmp_path_factory.mktemp("release")
    vocab = convert_tokenizer(folder, request.param, out, add=False)
    expected = json.loads((golden / "expected.json").read_text())[name]
    assert vocab.size == expected["n_vocab"]
    return load_text_tokenizer(out / "text_tokenizer", vocab), expected


def test_ids_match_the_release(release):
    tokenizer, expected = release
    for string, ids in expected["text_ids"]:
        assert tokenizer.encode(string) == ids
    for case in expected["gen"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]


def test_decoded_strings_match_the_release(release):
    tokenizer, expected = release
    for case in expected["gen"]:
        assert tokenizer.decode(case["prompt_ids"]) == case["prompt"]
        if isinstance(tokenizer, PieceTokenizer):  # the other form joins tokens by spaces there
            ids = case["prompt_ids"] + case["generated_ids"]
            assert tokenizer.decode(ids) == case["decoded"]
