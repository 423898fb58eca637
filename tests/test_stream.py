"""Generation with stop strings and limits of speech, and text and speech as they come."""

import itertools
import json

import numpy as np
import pytest
from marks import slow

from spirit_jax import GenerationConfig, InputError, Modality, SpiritLM, batch, cli, units
from spirit_jax.errors import InputWarning

SAMPLING = {"do_sample": True, "temperature": 1.0}
TEXT = ("text", "Every field acts")
SPEECH = ("speech", "[St1][Pi3][Hu5][Hu6][Hu7]")


@pytest.fixture(scope="module")
def base(base_folder):
    return SpiritLM.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def expressive(expressive_folder):
    return SpiritLM.from_pretrained(expressive_folder)


@pytest.fixture(scope="module")
def tiny():
    return SpiritLM.from_pretrained("spirit-tiny-base")


def join(parts):
    """The outputs that the parts of a stream are of."""
    outputs = []
    for number, group in itertools.groupby(parts, key=lambda part: part.number):
        group = list(group)
        assert number == len(outputs) and len({part.content_type for part in group}) == 1
        assert all(len(part.content) for part in group)
        contents = [part.content for part in group]
        is_text = group[0].content_type is Modality.TEXT
        outputs.append("".join(contents) if is_text else np.concatenate(contents))
    return outputs


def assert_same(outputs, expected, tolerance=1e-5):
    assert [type(x) for x in outputs] == [type(piece.content) for piece in expected]
    for output, piece in zip(outputs, expected, strict=True):
        if isinstance(output, str):
            assert output == piece.content
            continue
        assert output.dtype == np.float32 and output.shape == piece.content.shape
        assert np.abs(output - piece.content).max() <= tolerance * piece.content.std()


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        slow("base", "text"),
        ("base", "arbitrary"),
        slow("expressive", "speech"),
        ("expressive", "arbitrary"),
    ],
)
@pytest.mark.filterwarnings("ignore:Speech without any pitch")
def test_the_parts_together_are_what_generate_returns(kind, to, request):
    lm = request.getfixturevalue(kind)
    for seed in range(2):
        settings = {"max_new_tokens": 70, "seed": seed, **SAMPLING}
        parts = list(lm.stream([TEXT], to, **settings))
        assert_same(join(parts), lm.generate([TEXT], to, **settings))


def ids_of(lm, prompt):
    """Ids without BOS."""
    return lm.text_tokenizer.encode(prompt)[1:]


def read(lm, prompt, ids, **settings):
    """What the reader of a stream makes of ids, a few at a time."""
    from spirit_jax.generation.streaming import OutputReader

    config = GenerationConfig(**settings)
    arguments = (lm.text_tokenizer, lm.vocab, config, lambda: lm.speech_tokenizer, (None, None))
    reader, parts = OutputReader(prompt, *arguments), []
    for start in range(0, len(ids), 5):
        parts += reader.add(ids[start : start + 5])
        if reader.ended:
            return parts
    return parts + list(reader.finish())


HU = "".join(f"[Hu{i % 9}]" for i in range(30))
FEW = "[Hu1][Hu2]"
GENERATED = [
    "  two words \n",
    "é 世界 a",
    f"{HU}  ",
    f" {HU}",
    f"a {FEW} b {HU} c ",
    f"{FEW}[Text] a[Speech]{HU}[Speech]{HU}",
    f"[Text] a [Text] b {FEW}",
    rf"so [\Hu5] {HU}",
    f"{FEW} {HU}",
    "",
    "[Speech]",
]


@pytest.mark.parametrize("generated", GENERATED)
@pytest.mark.parametrize("prompt", ["[Text]a", "[Text]a[Speech]", ""])
def test_rules_of_outputs_are_those_of_decode_outputs(base, prompt, generated):
    ids = ids_of(base, generated)
    (expected,) = base.decode_outputs([prompt], [base.text_tokenizer.decode_prompt(ids)])
    assert_same(join(read(base, prompt, ids)), expected)


EXPRESSIVE = [
    f"[Hu4][Pi1]{HU}[St2][Hu5]",
    f"[Pi1]{HU}",
    f"[St3][Pi1][Hu4]{HU}[Pi2]",
    f"a[St3]{HU}[Hu1]b[Pi2]{HU}",
]


@pytest.mark.parametrize("generated", EXPRESSIVE)
@pytest.mark.filterwarnings("ignore:Speech without any pitch")
def test_pitch_and_style_are_those_of_decode_outputs(expressive, generated):
    ids = ids_of(expressive, generated)
    string = expressive.text_tokenizer.decode_prompt(ids)
    (expected,) = expressive.decode_outputs(["[Text]a"], [string])
    assert_same(join(read(expressive, "[Text]a", ids)), expected)


def test_speech_without_pitch_is_left_out_with_a_warning(expressive):
    with pytest.warns(InputWarning, match="without any pitch"):
        assert read(expressive, "[Text]a", ids_of(expressive, HU)) == []


def test_speech_after_speech_has_the_context_of_the_prompt(expressive, base):
    """It is what the whole speech has after the prompt's; the prompt is not vocoded again."""
    for lm, before in ((expressive, f"[St1][Pi3]{HU}{HU}"), (base, HU * 2)):
        prompt, new = f"[Text]a[Speech]{before}", HU[10:] + HU
        (wave,) = join(read(lm, prompt, ids_of(lm, new)))
        whole = lm.speech_tokenizer.decode(before + new)
        assert np.abs(wave - whole[len(whole) - len(wave) :]).max() <= 1e-5 * whole.std()
        ids_uc = lm.speech_tokenizer.vocoder_ids(units.from_string(before + new))
        stream = lm.speech_tokenizer.vocoder_stream
        state, known = stream.count_frames(stream.start(), ids_uc)
        frames = np.concatenate([known, stream.count_frames(state, None)[1]])
        new_frames = frames[units.count_hubert(before) :].sum()
        assert len(wave) == stream.config.code_hop * new_frames
        (expected,) = lm.decode_outputs([prompt], [new])[0]  # cuts by the release's rule
        rest = min(len(wave), len(expected.content))
        assert rest > 0.8 * len(wave)
        last = expected.content[len(expected.content) - rest :]
        assert np.abs(wave[len(wave) - rest :] - last).max() <= 1e-5 * whole.std()
        assert read(lm, prompt, ids_of(lm, FEW)) == []


@pytest.mark.slow
def test_the_packaged_model_speaks_and_writes_as_it_generates(tiny):
    inputs = [("text", "what is two plus two")]
    for to in ("text", "speech"):
        stream = tiny.stream(inputs, to, max_new_tokens=120)
        parts = list(stream)
        assert stream.sample_rate == 16_000 and len(parts) > 1
        # Below 3 s, decoding rounds F0 differently, so the phases of the harmonics differ.
        assert_same(join(parts), tiny.generate(inputs, to, max_new_tokens=120), 1e-3)
    ids = ids_of(tiny, "".join(f"[Hu{i * 7 % 99}]" for i in range(99)))
    (expected,) = tiny.decode_outputs(["[Text]"], [tiny.text_tokenizer.decode_prompt(ids)])
    assert len(expected[0].content) > 3.1 * 16_000
    assert_same(join(read(tiny, "[Text]", ids)), expected)


def test_leaving_the_loop_ends_the_request(base):
    engine = base.engine(*base._engine_size([]))
    for _ in range(engine.rows + 2):
        for _part in base.stream([TEXT], "speech", max_new_tokens=300):
            break
    engine.step(0)
    assert all(row.generation is None for row in engine._rows) and not engine._queue
    with base.stream([TEXT], "speech", max_new_tokens=300) as stream:
        next(stream)
    engine.step(0)
    assert all(row.generation is None for row in engine._rows)
    assert next(iter(stream), None) is None
    never_read = base.stream([TEXT], "speech", max_new_tokens=300)
    del never_read
    engine.step(0)
    assert not engine._queue


def test_two_streams_at_once_do_not_mix(base):
    settings = [{"max_new_tokens": 60, "seed": seed, **SAMPLING} for seed in (1, 2)]
    streams = [base.stream([TEXT], "arbitrary", **setting) for setting in settings]
    parts = [[], []]
    for pair in itertools.zip_longest(*streams):
        for number, part in enumerate(pair):
            parts[number] += [part] if part else []
    for setting, pieces in zip(settings, parts, strict=True):
        assert_same(join(pieces), base.generate([TEXT], "arbitrary", **setting))


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("four", "two plus two is"),
        (["plus", "is"], "two"),
        ("us tw", "two pl"),
        ("two", None),
        (("x" * 50, "r"), "two plus two is fou"),
        ("never", "two plus two is four"),
    ],
)
def test_the_output_ends_before_a_stop_string(tiny, stop, expected):
    inputs = [("text", "what is two plus two")]
    settings = {"max_new_tokens": 20, "stop": stop}
    outputs = tiny.generate(inputs, "text", **settings)
    assert [piece.content for piece in outputs] == ([expected] if expected else [])
    assert join(tiny.stream(inputs, "text", **settings)) == ([expected] if expected else [])
    stops = (stop,) if isinstance(stop, str) else stop
    (ids,) = tiny.generate_ids([tiny.build_prompt(inputs, "text")], "text", **settings)
    text = tiny.text_tokenizer.decode(ids)
    assert not any(s in tiny.text_tokenizer.decode(ids[:-1]) for s in stops)
    assert expected is None or text.strip().startswith(expected)


@pytest.mark.parametrize("step", [1, 3, 50])
def test_a_part_of_a_stop_string_is_never_given_out(base, step):
    from spirit_jax.generation.streaming import OutputReader

    ids = ids_of(base, "one two <E <EN three\n\nUser: four <END> five")
    for stop, expected in (
        ("<END>", "one two <E <EN three\n\nUser: four"),
        ("\n\nUser:", "one two <E <EN three"),
        ("o <E <E", "one tw"),
        ("<ENx", "one two <E <EN three\n\nUser: four <END> five"),
    ):
        config = GenerationConfig(stop=stop)
        reader = OutputReader("[Text]", base.text_tokenizer, base.vocab, config, None, ())
        text = ""
        for start in range(0, len(ids), step):
            text += "".join(part.content for part in reader.add(ids[start : start + step]))
            assert expected.startswith(text)
            if reader.ended:
                break
        else:
            text += "".join(part.content for part in reader.finish())
        assert text == expected


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.7345])
def test_speech_ends_at_the_most_seconds(base, tiny, seconds):
    for lm, seed in ((base, 1), (tiny, None)):
        inputs, sampling = [("text", "what is two plus two")], {"seed": seed, **SAMPLING}
        settings = {"max_new_tokens": 200, "max_speech_seconds": seconds}
        settings |= sampling if lm is base else {}
        (piece,) = lm.generate(inputs, "speech", **settings)
        assert len(piece.content) == int(16_000 * seconds)
        (wave,) = join(lm.stream(inputs, "speech", **settings))
        assert_same([wave], [piece], 1e-5 if lm is base else 1e-3)
        (ids,) = lm.generate_ids([lm.build_prompt(inputs, "speech")], "speech", **settings)
        assert len(ids) <= seconds * 25 + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ""}, "A stop string is ''; expected text that is not empty"),
        ({"stop": ["a", 5]}, "A stop string is '5'"),
        ({"stop": 5}, "stop is '5'; expected at most 64 strings"),
        ({"stop": ["a"] * 65}, "expected at most 64 strings"),
        ({"max_speech_seconds": 0}, "max_speech_seconds is 0; expected a number from 0.001"),
        ({"max_speech_seconds": float("nan")}, "max_speech_seconds is nan"),
        ({"max_speech_seconds": "5"}, "max_speech_seconds is 5"),
    ],
)
def test_bad_settings_are_one_clear_sentence(base, settings, message):
    with pytest.raises(InputError, match=message):
        base.stream([TEXT], "text", **settings)


def test_a_prompt_that_cannot_be_used_is_an_error_at_once(base):
    with pytest.raises(InputError, match="there is no room"):
        base.stream([("text", "word " * 5000)], "text")
    with pytest.raises(InputError, match="no speaker 'nobody'"):
        base.stream([TEXT], "speech", speaker_id="nobody")


def test_a_file_of_requests_has_the_limits(tiny, tmp_path):
    common = {"inputs": [["text", "what is two plus two"]]}
    requests = [
        common | {"id": "stop", "to": "text", "stop": ["four"]},
        common | {"id": "short", "to": "speech", "max_speech_seconds": 0.25},
        common | {"id": "wrong", "to": "text", "stop": [""]},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    batch.run(tiny, batch.read_requests(path), tmp_path / "out", 2)
    lines = (tmp_path / "out" / batch.RESULTS).read_text().splitlines()
    results = {result["id"]: result for result in map(json.loads, lines)}
    assert results["stop"]["outputs"] == [{"text": "two plus two is"}]
    assert results["stop"]["generated"].strip() == "two plus two is"
    assert [piece["seconds"] for piece in results["short"]["outputs"]] == [0.25]
    assert "A stop string is ''" in results["wrong"]["error"]


def test_the_command_has_the_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["spirit-jax", "generate", "spirit-tiny-base", *arguments])
        cli.main()
        return capsys.readouterr().out

    sum_ = ("text:what is two plus two", "--to", "text", "--greedy")
    assert run(*sum_, "--stop", "four", "--stop", "is") == "text: two plus two\n"
    spoken = ("text:what is two plus two", "--to", "speech", "--greedy", "--output", str(tmp_path))
    run(*spoken, "--max-speech-seconds", "0.5")
    assert (tmp_path / "speech-0.wav").stat().st_size == 44 + 2 * 8000
    monkeypatch.setattr("sys.argv", ["x", "generate", "spirit-tiny-base", *sum_, "--stop", ""])
    with pytest.raises(SystemExit):
        cli.main()
    assert "A stop string is ''" in capsys.readouterr().err
