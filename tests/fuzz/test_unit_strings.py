"""Damaged unit strings, prompts and options: read exactly, or rejected with an `InputError`."""

import pytest
import toy_tokenizers as toy

from fuzz.mutate import attempt, mutate_json, mutate_text, seeds
from spirit_jax import GenerationConfig, Modality, SpiritLM, Units, config, markup, units
from spirit_jax.text import load_text_tokenizer
from spirit_jax.vocab import Vocab

PROMPT = r"[Text]the cat [\Hu3] sat[Speech][St3][Pi5][Hu7][Hu12][Hu500][Text] on a [\\Text]  mat"
SPEECH = "[St3][Pi5][Hu7][Hu12][Pi63][Hu500][Hu500] [St99][Hu1][Speech][Hu7]"
VOCAB = Vocab.make("expressive", toy.TEXT_SIZE)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One tokenizer of each kind, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("text", "pieces", "json"):
        (folder / name).mkdir()
    text = toy.train_sentencepiece(folder / "text" / "tokenizer.model")
    toy.append_pieces(text, folder / "pieces" / "tokenizer.model", VOCAB.token_strings())
    path = toy.train_bpe(folder / "json" / "tokenizer.json")
    toy.add_tokens(path, VOCAB.token_strings())
    return [load_text_tokenizer(folder / name, VOCAB) for name in ("text", "pieces", "json")]


def tokens_of(ids):
    return [i for i in ids if i >= VOCAB.text_size]


@seeds
def test_damaged_prompts(seeds, tokenizers):
    known = {string: i for i, string in enumerate(VOCAB.token_strings(), VOCAB.text_size)}
    for seed in seeds:
        prompt = mutate_text(PROMPT, seed)
        parts = markup.parse(prompt)
        assert markup.render(parts) == prompt, seed
        expected = [known[p.string] for p in parts if p.is_token and p.string in known]
        for tokenizer in tokenizers:
            ids = attempt(lambda t=tokenizer, p=prompt: t.encode(p), seed)
            if ids is None:
                assert not prompt.isascii(), seed  # half a surrogate pair
                continue
            assert tokens_of(ids) == expected, seed
            assert tokenizer.decode(ids) == markup.show(prompt), seed
            again = tokenizer.encode(tokenizer.decode_prompt(ids))
            assert tokens_of(again) == expected, seed


@seeds
def test_damaged_prompts_as_text(seeds, tokenizers):
    for seed in seeds:
        text = mutate_text(PROMPT, seed)
        prompt = units.build_prompt([(Modality.TEXT, text)], Modality.SPEECH)
        assert [piece.content for piece in units.split(prompt)] == [text] * bool(text), seed
        for tokenizer in tokenizers:
            ids = attempt(lambda t=tokenizer, p=prompt: t.encode(p), seed)
            if ids is not None:
                assert tokens_of(ids) == [VOCAB.text_marker, VOCAB.speech_marker], seed
                assert tokenizer.decode(ids) == f"[Text]{text}[Speech]", seed


@seeds
def test_damaged_unit_strings(seeds):
    for seed in seeds:
        string = mutate_text(SPEECH, seed)
        parsed = attempt(lambda s=string: units.from_string(s), seed)
        if parsed is not None:
            tokens = [part.string for part in markup.parse(string) if part.is_token]
            hubert_tokens = [f"[Hu{unit}]" for unit in parsed.hubert]
            assert hubert_tokens == [token for token in tokens if token.startswith("[Hu")], seed
            text = "".join(part.string for part in markup.parse(string) if not part.is_token)
            assert not text.strip(), seed
            reparsed = units.from_string(units.to_string(parsed))
            assert reparsed == parsed or not len(parsed), seed


@seeds
def test_damaged_generations(seeds):
    for seed in seeds:
        prompt, generated = mutate_text(PROMPT, seed), mutate_text(SPEECH + PROMPT, seed)
        outputs = attempt(lambda p=prompt, g=generated: units.plan_outputs(p, g, 1), seed)
        texts = [piece for piece in outputs if isinstance(piece, str)]
        parts = markup.parse(generated.strip())
        assert "".join(texts) == "".join(p.string for p in parts if not p.is_token), seed
        for piece in outputs:
            if not isinstance(piece, str):
                assert 0 <= piece.skip < 1 and len(units.from_string(piece.content)), seed


@seeds
def test_damaged_streams(seeds):
    valid = {"hubert": [5, 5, 7, 500], "pitch": [3, 3, 63], "style": [1]}
    for seed in seeds:
        values = mutate_json(valid, seed)
        parsed = attempt(lambda v=values: Units.from_dict(v), seed)
        if parsed is not None:
            expected = {k: v for k, v in values.items() if v is not None} | {
                "hubert": values.get("hubert") or []
            }
            assert parsed.to_dict() == expected, seed
            string = attempt(lambda g=parsed: units.to_string(g), seed)
            negative = any(unit < 0 for stream in expected.values() for unit in stream)
            assert (string is None) == negative, seed


@seeds
def test_damaged_options(seeds):
    valid = {
        "max_new_tokens": 5,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "repetition_penalty": 2.0,
        "seed": 1,
    }
    for seed in seeds:
        values = mutate_json(valid, seed)
        if isinstance(values, dict) and set(values) <= set(valid):
            parsed = attempt(lambda v=values: GenerationConfig(**v), seed)
            if parsed is not None:
                assert all(getattr(parsed, name) == value for name, value in values.items()), seed
        if isinstance(values, dict):
            attempt(lambda v=values: config.from_dict(GenerationConfig, v), seed)


@seeds
def test_damaged_inputs(seeds, base_folder):
    lm = SpiritLM.from_pretrained(base_folder)
    valid = [["text", "say [Hu5]"], ["speech", "[Hu5][Hu7]"], ["text", " twice"]]
    for seed in seeds:
        inputs = mutate_json(valid, seed)
        prompt = attempt(lambda i=inputs: lm.build_prompt(i, "text"), seed)
        if prompt is not None:
            texts = [content for kind, content in inputs if kind == "text"]
            pieces = units.split(prompt)
            text_pieces = [piece.content for piece in pieces if piece.modality is Modality.TEXT]
            assert "".join(text_pieces) == "".join(texts), seed
