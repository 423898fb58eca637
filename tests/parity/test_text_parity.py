"""Text tokenizers against those of transformers: the same ids for the same prompts.

Names of special tokens (`<s>`) in a text are plain text here; `split_special_tokens` makes
transformers do the same.
"""

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
spm = pytest.importorskip("transformers.tokenization_utils_sentencepiece")

import toy_tokenizers as toy  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from convert.tokenizer import convert_tokenizer  # noqa: E402
from spirit_jax.text import load_text_tokenizer  # noqa: E402
from spirit_jax.vocab import Vocab  # noqa: E402

VOCAB = Vocab.make("expressive", toy.TEXT_SIZE)
SPECIAL = dict(unk_token=toy.UNKNOWN, bos_token=toy.BOS, eos_token=toy.EOS)
PROMPTS = [
    "",
    " ",
    "Hello, world!",
    "[Text]the cat[Speech][Hu12][Hu499] sat",
    "[Speech][St3][Pi1][Hu5][Hu500][Text] and then he said[Speech]",
    "  two  spaces  [Hu1]  two  ",
    "one\ntwo\n\n[Text]\n\tthree\r\n",
    "naïve café — 你好 😀[Hu1]👩‍👩‍👧",
    "[Hu500][Hu501][Pi64][hu1][Hu01][[Hu1]]",
    "[Te[Hu1]xt][Text",
    "a[Text] b[Text]c",
]
parts = ["[Text]", "[Speech]", "[Hu7]", "[Pi63]", "[St0]", "[Hu501]", "[", " ", "  ", "\n", "the "]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
prompts = st.lists(st.sampled_from(parts) | any_text, max_size=8).map("".join)


def convert(path, folder):
    """(the converted tokenizer, the folder that it was written to)."""
    llama = toy.write_llama_folder(folder / "llama", path, toy.TEXT_SIZE)
    vocab = convert_tokenizer(llama, "expressive", folder / "out", add=True)
    assert vocab == VOCAB
    return load_text_tokenizer(folder / "out" / "text_tokenizer", vocab), folder / "out"


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """The converted SentencePiece model, and transformers' slow tokenizer with added tokens."""
    folder = tmp_path_factory.mktemp("added")
    path = toy.train_sentencepiece(folder / "text.model")
    tokenizer, _ = convert(path, folder)
    reference = spm.SentencePieceBackend(vocab_file=str(path), legacy=True, **SPECIAL)
    reference.add_tokens(
        [transformers.AddedToken(string, normalized=False) for string in VOCAB.token_strings()]
    )
    return tokenizer, reference


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """The converted `tokenizer.json`, in this package and in transformers."""
    folder = tmp_path_factory.mktemp("fast")
    tokenizer, out = convert(toy.train_bpe(folder / "text.json"), folder)
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(out / "text_tokenizer" / "tokenizer.json"), **SPECIAL
    )
    return tokenizer, reference


def ids_of(reference, string, **settings):
    return [VOCAB.bos, *reference.encode(string, add_special_tokens=False, **settings)]


@pytest.mark.parametrize("pair", ["added", "fast"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_match_transformers(pair, prompt, request):
    tokenizer, reference = request.getfixturevalue(pair)
    assert tokenizer.encode(prompt) == ids_of(reference, prompt)


@settings(deadline=None)
@given(prompts)
def test_ids_of_random_prompts_match_transformers(added, fast, prompt):
    for tokenizer, reference in (added, fast):
        assert tokenizer.encode(prompt) == ids_of(reference, prompt)


@pytest.mark.parametrize("pair", ["added", "fast"])
@pytest.mark.parametrize("text", ["<s>", "a</s> b", "<unk><s>\n"])
def test_names_of_special_tokens_are_split_like_text(pair, text, request):
    tokenizer, reference = request.getfixturevalue(pair)
    assert tokenizer.encode(text) == ids_of(reference, text, split_special_tokens=True)
    assert tokenizer.encode(text) != ids_of(reference, text)


@settings(deadline=None)
@given(prompts)
def test_decoded_strings_match_the_fast_tokenizer(fast, prompt):
    tokenizer, reference = fast
    ids = tokenizer.encode(prompt)
    plain = reference.decode(ids[1:], clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids) == plain == prompt


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_transformers_reads_a_converted_tokenizer(added, fast, tmp_path, name):
    """A converted tokenizer, copied beside an exported model, has the tokens at their ids."""
    source = toy.train_sentencepiece if name == "tokenizer.model" else toy.train_bpe
    tokenizer, out = convert(source(tmp_path / f"text{name.removeprefix('tokenizer')}"), tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(out / "text_tokenizer")
    for string, token in [
        ("[Text]", VOCAB.text_marker),
        ("[Hu0]", VOCAB.first_unit),
        ("[St99]", VOCAB.size - 1),
    ]:
        assert reference.convert_tokens_to_ids(string) == token
    if name == "tokenizer.json":  # for SentencePiece, transformers 5 adds other prefix spaces
        prompt = "[Text]the cat[Speech][Hu12]  sat\n"
        assert tokenizer.encode(prompt) == ids_of(reference, prompt)
