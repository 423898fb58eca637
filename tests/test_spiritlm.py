"""Prompts of text and speech in, text and speech out."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from marks import slow

from spirit_jax import GenerationConfig, InputError, Modality, SpiritLM, Units
from spirit_jax.errors import InputWarning
from spirit_jax.sharding import make_mesh

SPEECH = ("speech", "[St1][Pi3][Hu5][Hu6][Hu7]")
TEXT = ("text", "Every field acts")


@pytest.fixture(scope="module")
def lm(expressive_folder):
    return SpiritLM.from_pretrained(expressive_folder)


def test_prompts_have_a_marker_wherever_the_modality_changes(lm):
    assert lm.build_prompt([TEXT, SPEECH]) == f"[Text]{TEXT[1]}[Speech]{SPEECH[1]}"
    assert lm.build_prompt([SPEECH, SPEECH], "speech") == f"[Speech]{SPEECH[1] * 2}"
    assert lm.build_prompt([SPEECH], "text") == f"[Speech]{SPEECH[1]}[Text]"
    assert lm.build_prompt([], Modality.SPEECH) == "[Speech]"


def test_a_text_input_is_text_whatever_it_spells(lm):
    text = "say [Hu5], [Speech] [Text]"
    inputs = [("text", text), ("text", "[H"), ("text", "u7]"), SPEECH, ("text", "[Pi1]")]
    ids = lm.text_tokenizer.encode(lm.build_prompt(inputs, "speech"))
    texts = f"[Text]{text}[Hu7][Speech]{SPEECH[1]}[Text][Pi1][Speech]"
    assert lm.text_tokenizer.decode(ids) == texts
    vocab = lm.vocab
    marked = lm.text_tokenizer.encode(f"[Text]a[Speech]{SPEECH[1]}[Text]a[Speech]")
    assert [i for i in ids if i >= vocab.text_size] == [i for i in marked if i >= vocab.text_size]


def test_generated_text_that_spells_units_is_not_spoken(lm):
    spelled = "so " + "".join(rf"[\Hu{i}]" for i in range(40))
    ids = lm.text_tokenizer.encode(spelled)[1:]
    (outputs,) = lm.decode_outputs(["[Text]a"], [lm.text_tokenizer.decode_prompt(ids)])
    assert [(piece.content, piece.content_type) for piece in outputs] == [
        (spelled.replace("\\", ""), Modality.TEXT)
    ]


def test_speech_may_be_audio_units_or_a_string(lm):
    wave = np.sin(np.arange(16_000) / 20).astype(np.float32)
    units = lm.speech_tokenizer.encode(wave)
    string = lm.speech_tokenizer.encode_string(wave)
    prompts = {
        lm.build_prompt([("speech", form)])
        for form in (wave, (np.stack([wave, wave]), 16_000), units, string)
    }
    assert prompts == {"[Speech]" + string}


def test_a_model_that_is_loaded_again_is_not_compiled_again(lm, expressive_folder, caplog):
    wave = np.sin(np.arange(16_000) / 20).astype(np.float32)
    units = lm.speech_tokenizer.encode(wave)
    again = SpiritLM.from_pretrained(expressive_folder).speech_tokenizer
    with jax.log_compiles():
        assert again.encode(wave) == units
    assert not [line for line in caplog.messages if line.startswith("Compiling")]


def test_a_score_is_the_log_probability_of_the_continuation_alone(lm):
    pairs = [
        ("[Text]Every field", " acts on time"),
        ("[Text]Every field acts[Speech]", "[St1][Pi3][Hu5][Hu6][Hu7]"),
        ("", "[Speech][Hu5]"),
    ]
    scores = lm.score(pairs)
    for (context, continuation), (total, count) in zip(pairs, scores, strict=True):
        tokens = lm.text_tokenizer.encode(context + continuation)
        logits_tv = lm.logits(context + continuation)[:, : lm.vocab.size]
        logs_tv = np.asarray(jax.nn.log_softmax(logits_tv))
        log_probs = [logs_tv[i - 1, tokens[i]] for i in range(len(tokens) - count, len(tokens))]
        assert count == len(tokens) - len(lm.text_tokenizer.encode(context))
        np.testing.assert_allclose(total, np.sum(log_probs), rtol=1e-5)
    assert [count for _, count in scores][1:] == [5, 2]
    np.testing.assert_allclose(scores, [lm.score([pair])[0] for pair in pairs], rtol=1e-5)
    ((_, count),) = lm.score([("a [Hu", "5] b")])  # two texts do not form a unit
    sizes = [len(lm.text_tokenizer.encode(text)) for text in (r"a [\Hu5] b", "a [Hu")]
    assert count == sizes[0] - sizes[1]
    with pytest.raises(InputError, match="no tokens"):
        lm.score([("[Text]a", "")])


@pytest.mark.parametrize("modality", ["text", "speech", "arbitrary"])
def test_a_batch_continues_each_prompt_as_a_batch_of_one_does(lm, modality):
    prompts = [lm.build_prompt(inputs, modality) for inputs in ([TEXT], [TEXT, SPEECH], [SPEECH])]
    together = lm.generate_ids(prompts, modality, max_new_tokens=20)
    assert together == [
        lm.generate_ids([prompt], modality, max_new_tokens=20)[0] for prompt in prompts
    ]
    allowed = lm.vocab.allowed(modality)
    assert all(allowed[token] for row in together for token in row)


@pytest.mark.compat
def test_text_and_speech_come_out_as_asked(lm):
    texts = lm.generate([SPEECH], "text", max_new_tokens=30, do_sample=True)
    assert texts and all(
        piece.content_type == "text" and isinstance(piece.content, str) for piece in texts
    )
    speech = lm.generate([TEXT], "speech", max_new_tokens=80, do_sample=True, speaker_id="ex02")
    assert speech and all(piece.content_type is Modality.SPEECH for piece in speech)
    assert all(piece.content.dtype == np.float32 and len(piece.content) for piece in speech)
    again = lm.generate([TEXT], "speech", max_new_tokens=80, do_sample=True, speaker_id="ex02")
    np.testing.assert_array_equal(again[0].content, speech[0].content)
    other = lm.generate([TEXT], "speech", max_new_tokens=80, do_sample=True, seed=1)
    assert not np.array_equal(other[0].content, speech[0].content)


def test_batches_of_outputs_are_those_of_each_prompt(lm):
    batch = [[TEXT], lm.build_prompt([TEXT, SPEECH], "text")]
    together = lm.generate_batch(batch, "text", max_new_tokens=12)
    assert together == [
        lm.generate([TEXT], "text", max_new_tokens=12),
        lm.generate(prompt=batch[1], output_modality="text", max_new_tokens=12),
    ]
    assert lm.generate_batch([], "text") == []


def test_generated_speech_follows_the_prompt_without_repeating_it(lm):
    """The prompt's units are spoken with the new ones, and their share is cut off."""
    old, new = [f"[Hu{i}]" for i in range(30)], [f"[Hu{i}]" for i in range(40, 70)]
    prompt = "[Speech][St2][Pi9]" + "".join(old)
    ((output,),) = lm.decode_outputs([prompt], ["".join(new)])
    whole = lm.speech_tokenizer.decode("[St2][Pi9]" + "".join(old + new))
    skipped = int(np.ceil(len(whole) * 30 / 61))
    np.testing.assert_array_equal(output.content, whole[skipped:])


def test_speech_without_pitch_is_left_out_with_a_warning(lm):
    with pytest.warns(UserWarning, match="without any pitch"):
        (outputs,) = lm.decode_outputs(["[Text]a"], ["b[Speech]" + "[Hu1][Hu2]" * 20])
    assert [piece.content for piece in outputs] == ["b"]


@pytest.mark.parametrize("shape", [slow((1, 4, 2)), slow((8, 1, 1)), slow((2, 1, 4))])
def test_a_mesh_changes_nothing(lm, expressive_folder, shape):
    sharded = SpiritLM.from_pretrained(expressive_folder, mesh=make_mesh(*shape))
    prompts = [lm.build_prompt(inputs) for inputs in ([TEXT], [TEXT, SPEECH])]
    assert sharded.generate_ids(prompts, max_new_tokens=12) == lm.generate_ids(
        prompts, max_new_tokens=12
    )
    logits, expected = sharded.logits(prompts[1]), lm.logits(prompts[1])
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    pairs = [(prompt, "[Text] fields") for prompt in prompts]
    np.testing.assert_allclose(sharded.score(pairs), lm.score(pairs), rtol=1e-5)


def test_a_mesh_with_explicit_axes_works(expressive_folder, lm):
    explicit = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(explicit, explicit))
    sharded = SpiritLM.from_pretrained(expressive_folder, mesh=mesh)
    assert sharded.generate_ids(["[Text]ab"], max_new_tokens=5) == lm.generate_ids(
        ["[Text]ab"], max_new_tokens=5
    )


def test_bfloat16_is_near_float32(lm, expressive_folder):
    prompt = lm.build_prompt([TEXT, SPEECH])
    exact = lm.logits(prompt)
    low = SpiritLM.from_pretrained(expressive_folder, dtype=jax.numpy.bfloat16).logits(prompt)
    assert 1e-5 < np.abs(low - exact).max() / np.abs(exact).max() < 0.05


def test_options_override_a_config(lm):
    config = GenerationConfig(max_new_tokens=3)
    prompts = ["[Text]a"]
    assert len(lm.generate_ids(prompts, "text", config)[0]) <= 3
    assert lm.generate_ids(prompts, "text", config, max_new_tokens=9) == lm.generate_ids(
        prompts, "text", max_new_tokens=9
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.generate([("image", "x")]), "'image' is not a modality"),
        (lambda lm: lm.generate([("arbitrary", "x")]), "text or speech, not arbitrary"),
        (lambda lm: lm.generate([("text", b"x")]), "must be a string, not bytes"),
        (lambda lm: lm.generate([("speech", "nowhere.wav")]), "nowhere.wav: there is no such file"),
        (lambda lm: lm.generate([("speech", "[Hu5]junk")]), "'junk' is not a unit"),
        (lambda lm: lm.generate([("speech", np.zeros(100))]), "shorter than 80 ms"),
        (lambda lm: lm.generate([("speech", Units([]))]), "shorter than 80 ms"),
        (lambda lm: lm.generate([TEXT], prompt="x"), "not both"),
        (lambda lm: lm.generate([TEXT], max_tokens=3), "'max_tokens' is not an option"),
        (lambda lm: lm.generate([TEXT], temperature=0), "temperature is 0"),
        (lambda lm: lm.generate([TEXT], "sound"), "'sound' is not a modality"),
        (lambda lm: lm.generate([TEXT], "text", speaker_id=9), "no speaker '9'"),
        (lambda lm: lm.generate([TEXT], "text", speaker_id="9" * 5000), "no speaker '999"),
        (lambda lm: lm.generate([TEXT], "text", speaker_id="٠"), "no speaker"),
        (lambda lm: lm.generate([TEXT], "text", style_id=["a"]), "style"),
        (lambda lm: lm.generate("hello"), "list of inputs was expected, not str"),
        (lambda lm: lm.generate(["hello"]), "pair such as .*'hello'"),
        (lambda lm: lm.generate([("text", "a", "b")]), "pair such as"),
        (lambda lm: lm.generate([("text", "ab\ud83d")]), "not valid Unicode.*at position 2"),
        (lambda lm: lm.generate(5), "list of inputs was expected, not int"),
        (lambda lm: lm.generate([(5, "a")]), "'5' is not a modality"),
        (lambda lm: lm.generate(prompt=["a"]), "must be a string, not list"),
        (lambda lm: lm.generate(prompt="[Text]a[Hu501]"), r"\[Hu501\] is not a unit of this model"),
        (lambda lm: lm.generate([("speech", "[Hu7][Hu999]")]), r"\[Hu999\] is not a unit"),
        (lambda lm: lm.generate([("speech", Units([7, 999]))]), r"\[Hu999\] is not a unit"),
        (lambda lm: lm.generate([("speech", Units([7, -1]))]), "no hubert unit -1"),
        (
            lambda lm: lm.generate([TEXT], generation_config={"seed": 1}),
            "Expected a GenerationConfig",
        ),
        (lambda lm: lm.generate([TEXT], top_k=3), "top_k would change nothing"),
        (lambda lm: lm.generate([TEXT], max_new_tokens=1.5), "max_new_tokens is 1.5"),
        (lambda lm: lm.generate([TEXT], seed=-1), "seed is -1"),
        (lambda lm: lm.generate_batch("hello"), "list of prompts was expected, not str"),
        (lambda lm: lm.generate_batch(None), "list of prompts was expected, not NoneType"),
        (lambda lm: lm.generate_batch([None]), "list of inputs was expected, not NoneType"),
        (lambda lm: lm.generate_ids("hello"), "list of prompts was expected, not str"),
        (lambda lm: lm.generate_ids([b"hello"]), "must be a string, not bytes"),
        (lambda lm: lm.generate_ids(["a" * 3000]), "[0-9]+ tokens, .* 2048 positions"),
        (lambda lm: lm.logits(["a"]), "must be a string, not list"),
        (lambda lm: lm.logits("a" * 3000), "[0-9]+ tokens, .* 2048 positions"),
        (lambda lm: lm.logits("[Pi64]"), r"\[Pi64\] is not a unit"),
        (lambda lm: lm.score("hello"), "list of pairs was expected, not str"),
        (lambda lm: lm.score(["ab"]), "A pair is a context and a continuation, not 'ab'"),
        (lambda lm: lm.score([("a", "b"), ("a", None)]), "A pair is"),
        (lambda lm: lm.score([("a" * 2000, "a" * 2000)]), "[0-9]+ tokens, .* 2048 positions"),
        (lambda lm: lm.decode_outputs("[Text]", "a"), "list of prompts was expected"),
        (lambda lm: lm.decode_outputs(["[Text]"], ["a", "b"]), "1 prompts and 2 generated"),
        (lambda lm: lm.decode_outputs(["[Text]"], [[1, 2]]), "must be a string, not list"),
        (lambda lm: lm.speech_tokenizer.encode_batch("a.wav"), "list of recordings was expected"),
        (lambda lm: lm.speech_tokenizer.encode(np.zeros(9), channel=0.0), "channel is 0.0"),
        (lambda lm: lm.speech_tokenizer.decode_batch("[Hu1]"), "list of units was expected"),
        (lambda lm: lm.speech_tokenizer.decode([1, 2]), "unit string were expected, not list"),
        (lambda lm: lm.speech_tokenizer.to_string([1, 2]), "Units were expected, not list"),
        (lambda lm: SpiritLM.from_pretrained(None), "not NoneType"),
        (lambda lm: SpiritLM.from_pretrained("x" * 5000), "no such folder"),
        (lambda lm: SpiritLM.from_pretrained("spirit-tiny-base", mesh=8), "A mesh is"),
        (lambda lm: SpiritLM.from_pretrained("spirit-tiny-base", dtype="int8"), "dtype is int8"),
        (lambda lm: SpiritLM.from_pretrained("spirit-tiny-base", dtype="big"), "dtype is 'big'"),
    ],
)
def test_bad_calls_are_one_clear_sentence(lm, call, message):
    with pytest.raises(InputError, match=message):
        call(lm)


def test_white_space_and_markers_of_a_unit_string_are_no_text(lm):
    assert lm.build_prompt([("speech", " [Hu5]\n[Speech][Hu6] ")]) == "[Speech][Hu5][Hu6]"


def test_a_prompt_longer_than_in_training_is_reported_once(lm):
    long = SpiritLM(
        "somewhere",
        lm.vocab,
        lm.text_tokenizer,
        None,
        lm._model.clone(config=dataclasses.replace(lm._model.config, trained_positions=8)),
        lm._params,
        None,
    )
    with pytest.warns(InputWarning, match="has 1[0-9] tokens, .* of at most 8"):
        long.score([("[Text]", "x" * 11)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        long.score([("[Text]", "x" * 11)])
        lm.score([("[Text]", "x" * 11)])
    assert long.logits("[Text]a").shape == lm.logits("[Text]a").shape


def test_folders_that_do_not_fit_are_named(base_folder, expressive_folder, tmp_path):
    with pytest.raises(InputError, match="is not a model folder"):
        SpiritLM.from_pretrained(tmp_path)

    text_only = tmp_path / "text"
    shutil.copytree(base_folder, text_only)
    shutil.rmtree(text_only / "speech_tokenizer")
    lm = SpiritLM.from_pretrained(text_only)
    assert lm.generate([TEXT], "text", max_new_tokens=3) is not None
    with pytest.raises(InputError, match="has no speech tokenizer"):
        lm.generate([("speech", np.zeros(16_000))])

    shutil.copytree(expressive_folder / "speech_tokenizer", text_only / "speech_tokenizer")
    with pytest.raises(InputError, match="kind base, but the speech tokenizer of kind expressive"):
        SpiritLM.from_pretrained(text_only)

    vocab = tmp_path / "vocab"
    shutil.copytree(base_folder, vocab)
    (vocab / "checksums.json").unlink()  # it is edited by hand
    values = json.loads((vocab / "vocab.json").read_text())
    (vocab / "vocab.json").write_text(json.dumps(values | {"padded_size": 2048}))
    with pytest.raises(InputError, match="rows, but vocab.json has 2048"):
        SpiritLM.from_pretrained(vocab)

    half = tmp_path / "half"
    shutil.copytree(base_folder, half)
    (half / "llama" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not a whole network folder"):
        SpiritLM.from_pretrained(half)
