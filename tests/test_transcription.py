"""Transcripts: their text and scores, and audio without speech."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from spirit_jax import (
    InputError,
    SpiritLM,
    Units,
    config,
    demo,
    markup,
    model_folder,
    transcription,
)
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data.prepare import prepare
from spirit_jax.transcription import TranscriptionConfig, is_still
from spirit_jax.vocab import Vocab

OTHER = Path(__file__).with_name("quarterly-report.flac")  # a sentence from elsewhere
NAMES = "question", "request", "lively", "sad"
USED_BY_DEMO = "vocab", "text_tokenizer", "transcription_config"


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained("spirit-tiny-base")


@pytest.fixture(scope="module")
def recordings():
    return [load_audio(model_folder.ASSETS / f"{name}.flac") for name in NAMES] + [
        load_audio(OTHER)
    ]


@pytest.fixture(scope="module")
def transcripts(lm, recordings):
    """The transcripts of the recordings, and of silence."""
    return lm.transcribe([*recordings, np.zeros(16_000, np.float32)])


def test_sentences_of_the_world_are_understood_and_others_are_not(lm, transcripts):
    *known, other, _ = transcripts
    texts = json.loads((model_folder.ASSETS / "recordings.json").read_text())
    assert [transcript.text for transcript in known] == [texts[name] for name in NAMES]
    assert all(transcript.understood and transcript.log_prob > -0.15 for transcript in known)
    assert [transcript.describe() for transcript in known] == [texts[name] for name in NAMES]
    assert other.has_speech and other.understood is False and other.describe() == "not understood"
    assert other.log_prob < lm.transcription_config.min_log_prob - 0.3


@pytest.mark.slow
def test_a_recording_that_is_too_short_or_clipped_is_not_understood(lm, recordings):
    """Both have high scores."""
    question = recordings[0]
    short = question[8_000:14_400]
    loud, clipped, badly_clipped = (np.clip(gain * question, -1, 1) for gain in (10, 50, 100))
    right, *transcripts = lm.transcribe([loud, short, clipped, badly_clipped])
    assert right.understood and right.text == "what is two plus two"
    assert not any(transcript.understood for transcript in transcripts)
    least = lm.transcription_config.min_seconds
    near_peak = "of the samples are near the largest value, as in a clipped recording"
    assert [transcript.describe() for transcript in transcripts] == [
        f"not understood: the recording has 0.40 s, and a whole sentence at least {least} s; "
        "record a whole sentence",
        f"not understood: 27% {near_peak}; record it at a lower volume",
        f"not understood: 37% {near_peak}; record it at a lower volume",
    ]
    uncalibrated = TranscriptionConfig("{speech}")
    for wave, has_problem in ((short, False), (clipped, True), (np.zeros(0, np.float32), False)):
        assert bool(transcription.find_problem(uncalibrated, wave)) is has_problem
    for wave in recordings:  # also if somewhat too loud
        for gain in (1, 3):
            loud = np.clip(gain * wave, -1, 1)
            assert not transcription.find_problem(lm.transcription_config, loud)


def test_a_transcript_does_not_depend_on_the_others(lm, recordings, transcripts):
    encoded = lm.speech_tokenizer.encode(recordings[0])
    for speech, expected in zip((encoded, recordings[1]), transcripts, strict=False):
        transcript = lm.transcribe(speech)
        same = dataclasses.replace(transcript, log_prob=expected.log_prob)
        assert same == expected
        assert transcript.log_prob == pytest.approx(expected.log_prob, abs=1e-6)  # rounding
    assert lm.transcribe([]) == []


def test_audio_with_blank_units_has_no_speech(lm, recordings, tmp_path):
    seconds = np.arange(1_600) / 16_000
    wave = (0.3 * np.cos(2 * np.pi * (100 + 19_500 * seconds) * seconds)).astype(np.float32)
    assert not is_still(wave)
    tokenizer = lm.speech_tokenizer
    assert tokenizer.is_blank(tokenizer.encode(wave))
    assert not tokenizer.is_blank(tokenizer.encode(recordings[0]))
    assert lm.transcribe(wave).describe() == "nothing was said"
    with pytest.raises(InputError, match="no units: no speech was noticed"):
        lm.generate([("speech", wave)], "text")
    write_wav(tmp_path / "chirp.wav", wave)
    row = {"id": "a", "audio": "chirp.wav"}, {"id": "b", "text": "a text"}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(each) + "\n" for each in row))
    summary = prepare(str(tmp_path / "all.jsonl"), tmp_path / "corpus", tokenizer)
    assert (summary["items"], summary["rejected"]) == (1, 1)


def test_the_score_is_the_mean_log_probability_of_the_tokens(lm, recordings, transcripts):
    transcript = transcripts[1]
    string = lm.speech_tokenizer.encode_string(recordings[1])
    prompt = f"[Speech]{string}[Text] T:"
    tokens = lm.text_tokenizer.encode(f"{prompt} {transcript.text}") + [lm.vocab.eos[0]]
    logits_tv = lm.logits(f"{prompt} {transcript.text}")
    logits_tv = np.where(lm.vocab.allowed("text"), logits_tv, -np.inf)
    logs_tv = np.asarray(jax.nn.log_softmax(logits_tv))
    start = len(lm.text_tokenizer.encode(prompt))
    wanted = [logs_tv[i - 1, tokens[i]] for i in range(start, len(tokens))]
    np.testing.assert_allclose(transcript.log_prob, np.mean(wanted), atol=1e-4)
    ((total, count),) = lm.score([(f"[Text] T: {transcript.text}[Speech]", string)])
    np.testing.assert_allclose(transcript.read_aloud, total / count, rtol=1e-5)


@pytest.mark.slow
def test_sampling_does_not_change_what_a_log_probability_is(lm, recordings):
    prompt = f"[Speech]{lm.speech_tokenizer.encode_string(recordings[4])}[Text] T:"
    options = {"do_sample": True, "temperature": 3.0, "top_k": 5, "repetition_penalty": 1.5}
    (generation,) = lm.continue_prompts([prompt], "text", max_new_tokens=8, **options)
    tokens = lm.text_tokenizer.encode(prompt)
    logits_tv = np.where(lm.vocab.allowed("text"), lm.logits(prompt), -np.inf)
    first = jax.nn.log_softmax(logits_tv[len(tokens) - 1])[generation.ids[0]]
    np.testing.assert_allclose(generation.log_probs[0], first, atol=1e-4)
    assert len(generation.log_probs) == len(generation.ids)


def steady_sounds():
    rng = np.random.default_rng(0)
    t = np.arange(32_000) / 16_000
    noise = rng.standard_normal(32_000)
    brown = np.fft.irfft(np.fft.rfft(noise) / np.maximum(np.arange(16_001), 40))
    yield "silence", np.zeros(32_000)
    yield "dither", rng.integers(-1, 2, 32_000) / 32_768
    yield "constant", np.full(32_000, 0.2)
    yield "hum", 0.2 * np.sin(2 * np.pi * 50 * t)
    yield "tone", 0.2 * np.sin(2 * np.pi * 440 * t)
    for level in (1e-3, 0.05, 0.3):
        yield f"white {level}", level * noise
        yield f"brown {level}", level * brown / brown.std()
    yield "empty", np.zeros(0)
    yield "too short", noise[:1000]


def test_audio_without_speech_has_no_text(lm):
    names, waves = zip(*steady_sounds(), strict=True)
    assert [is_still(np.float32(wave)) for wave in waves] == [True] * len(names)
    for transcript in lm.transcribe([np.float32(wave) for wave in waves]):
        assert not transcript.has_speech and transcript.text == "" and transcript.log_prob is None
        assert transcript.describe() == "nothing was said"


def test_speech_in_loud_noise_is_not_still(recordings):
    for wave in recordings:
        noise = np.random.default_rng(0).standard_normal(len(wave)) * wave.std()
        assert not is_still((wave + noise).astype(np.float32))
        assert not is_still(0.003 * wave)


def test_each_score_alone_can_refuse_a_transcript():
    how = TranscriptionConfig("{speech}", min_log_prob=-0.4, read_aloud="{text}", min_read_aloud=-3)
    scores = {(-0.3, -2.0): True, (-0.5, -2.0): False, (-0.3, -4.0): False, (-0.4, -3.0): True}
    for (log_prob, read_aloud), understood in scores.items():
        transcript = transcription.Transcript("a word", log_prob, read_aloud, None)
        assert transcription.apply_thresholds(how, transcript).understood is understood
    uncalibrated = TranscriptionConfig("{speech}", read_aloud="{text}")
    assert transcription.apply_thresholds(uncalibrated, transcript).understood is None


@pytest.mark.slow
def test_sounds_without_words_are_not_understood(lm):
    t = np.arange(32_000) / 16_000
    noise = np.random.default_rng(0).standard_normal(32_000)
    beeps = 0.3 * np.sin(2 * np.pi * 600 * t) * (t * 4 % 2 < 1) + 3e-4 * noise
    bursts = 0.1 * noise * (t * 3 % 2 < 1)
    for transcript in lm.transcribe([np.float32(beeps), np.float32(bursts)]):
        assert transcript.understood is False


def test_the_flag_of_a_transcript_is_no_part_of_a_text(tmp_path):
    folder = model_folder.ASSETS / "spirit-tiny-base"
    assert transcription.read_config(folder).flag == "T:"
    assert transcription.drop_flag(folder, " T: it is hot") == "it is hot"
    assert transcription.drop_flag(folder, " T is a letter") == " T is a letter"
    assert transcription.drop_flag(tmp_path, " T: it is hot") == " T: it is hot"
    assert TranscriptionConfig("[Text]T: a[Speech]{speech}[Text]").flag == ""


def test_a_recording_that_is_too_long_is_named(lm):
    units = Units(np.arange(4000) % 100)
    with pytest.raises(InputError, match="recording 1: is too long to transcribe: 40"):
        lm.transcribe([Units([1, 2, 3]), units])


def test_a_model_that_does_not_say_how_it_transcribes_is_named(base_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    lm = SpiritLM.from_pretrained(folder)
    wave = np.sin(np.arange(16_000) ** 1.5 / 900).astype(np.float32)
    with pytest.raises(InputError, match="has no transcription.json"):
        lm.transcribe(wave)
    # With examples, and uncalibrated: no verdict. An end that is written at once leaves no words.
    prompt = "[Speech][Hu1][Hu2][Text]a<END>[Speech]{speech}[Text]"
    how = {"prompt": prompt, "end": "<END>", "max_new_tokens": 5}
    (folder / "transcription.json").write_text(json.dumps(how))
    transcript = SpiritLM.from_pretrained(folder).transcribe(wave)
    assert transcript.understood is None and transcript.read_aloud is None
    assert transcript.text and "<END>" not in transcript.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "[Text]T:"}, "{speech} once"),
        ({"read_aloud": "[Text]T:"}, "{text} once"),
        ({"read_aloud": ""}, "needs the prompt read_aloud"),
        ({"min_read_aloud": float("nan")}, "min_read_aloud is nan"),
        ({"min_log_prob": 0.5}, "min_log_prob is 0.5"),
        ({"min_seconds": -1.0}, "min_seconds is -1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_a_bad_prompt_is_named(change, message):
    good = {"prompt": "[Speech]{speech}[Text]", "read_aloud": "{text}", "min_read_aloud": -3.0}
    TranscriptionConfig(**good)
    with pytest.raises(InputError, match=message):
        TranscriptionConfig(**good | change)


def test_what_was_calibrated_is_not_copied_to_a_model_trained_further(tmp_path):
    transcription.copy_config(model_folder.ASSETS / "spirit-tiny-base", tmp_path)
    calibrated = transcription.read_config(model_folder.ASSETS / "spirit-tiny-base")
    copied = transcription.read_config(tmp_path)
    assert calibrated.min_log_prob is not None and calibrated.figures
    assert copied.prompt == calibrated.prompt and copied.read_aloud == calibrated.read_aloud
    assert copied.min_log_prob is None and copied.min_read_aloud is None and not copied.figures
    assert calibrated.min_seconds and not copied.min_seconds
    transcription.copy_config(tmp_path / "none", tmp_path)  # has none


def run_on(lm, wave, tmp_path, capsys):
    """What the demo tells of a recording."""
    results = demo.Results(tmp_path, Console(width=500))
    demo.transcribe_and_answer(results, lm, wave, "answer")
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_demo_does_not_answer_what_is_not_understood(lm, recordings, tmp_path, capsys):
    lines = run_on(lm, recordings[4], tmp_path, capsys)
    assert "transcript not understood" in lines
    assert lines[-1].startswith("scores mean log probability -")
    assert len(lines) == 3 and not list(tmp_path.iterdir())
    lines = run_on(lm, np.zeros(16_000, np.float32), tmp_path, capsys)
    assert lines == ["input 1.0 s: nothing was said"]


def test_an_intent_that_contradicts_the_transcript_is_not_printed(lm, recordings, transcripts):
    string = lm.speech_tokenizer.encode_string(recordings[1])
    generate = functools.cache(lambda rows, new: lm.generate_ids(rows, max_new_tokens=new))
    model = SimpleNamespace(**{name: getattr(lm, name) for name in USED_BY_DEMO})
    model.generate_ids = lambda rows, max_new_tokens: generate(tuple(rows), max_new_tokens)
    words = transcripts[1].text
    assert demo.find_intent(model, string, words) == "'activate heat living room'"
    for other in ("turn off the heat in the living room", "turn on the heat", "it is hot"):
        assert demo.find_intent(model, string, other) == demo.UNCLEAR


def test_brackets_in_what_the_demo_writes_are_text(base_folder):
    tokenizer = SpiritLM.from_pretrained(base_folder).text_tokenizer
    vocab = config.read(Vocab, base_folder / "vocab.json")
    ids = tokenizer.encode(f"the list[0] of {markup.escape('[Hu5]')} is[Hu5][Hu6]")[1:]
    answer = SimpleNamespace(
        vocab=vocab, text_tokenizer=tokenizer, generate_ids=lambda *_, **__: [ids]
    )
    assert demo.complete(answer, "[Text]what") == "the list[0] of [Hu5] is"


def test_a_text_that_is_too_long_for_the_demo_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="The text has .* tokens; at most .* can be synthesised"):
        demo.run(tmp_path / "out", None, "turn on the lights " * 600, Console())
    assert not (tmp_path / "out").exists()
