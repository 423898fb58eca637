"""Measures of resynthesised speech, on samples with known results."""

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

for package in ("pocketsphinx", "pyworld", "sklearn"):
    pytest.importorskip(package, reason="the extra `corpora` is not installed")

from corpora import programs  # noqa: E402
from evaluators import phonetic_units, recognise, resynthesis, speech_tokenizer  # noqa: E402
from evaluators.resynthesis import MannerClassifier, SpeechSample  # noqa: E402
from evaluators.speech_tokenizer import allowed_errors  # noqa: E402
from spirit_jax.audio import load_audio  # noqa: E402
from spirit_jax.cli import running  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models.wav2vec2 import TrunkConfig  # noqa: E402

PROMPT = "login incorrect please enter your agent number followed by the pound key"


def make_sample(
    mean: float, spread: float, seed: int = 0, style: str = "", voice: str = "a"
) -> SpeechSample:
    """A sample with a contour of F0, voiced except in its last tenth."""
    wander_t = np.cumsum(np.random.default_rng(seed).standard_normal(200)) / 10
    f0_t = mean * np.exp(spread * np.sin(wander_t))
    voiced_t = np.arange(200) < 180
    return SpeechSample(np.zeros(1), "", voice, style, np.where(voiced_t, f0_t, 0), voiced_t)


def test_f0_figures_count_pitch_and_voicing_errors():
    sample, other = make_sample(120, 0.2, 1), make_sample(120, 0.2, 2)
    same = resynthesis.f0_figures([sample, other], [sample, other])
    assert same == {"f0_correlation": pytest.approx(1), "f0_frame_error": 0}
    octave = SpeechSample(sample.samples, "", f0_t=2 * sample.f0_t, voiced_t=sample.voiced_t)
    figures = resynthesis.f0_figures([sample], [octave])
    assert figures == {"f0_correlation": pytest.approx(1), "f0_frame_error": pytest.approx(90)}
    less_voiced = SpeechSample(
        sample.samples, "", f0_t=sample.f0_t, voiced_t=sample.voiced_t & (np.arange(200) >= 50)
    )
    figures = resynthesis.f0_figures([sample], [less_voiced])
    assert figures == {"f0_correlation": pytest.approx(1), "f0_frame_error": pytest.approx(25)}
    unlike = resynthesis.f0_figures([sample], [other])
    assert unlike["f0_correlation"] < 0.9 and unlike["f0_frame_error"] > 0


def test_manners_are_classified_per_voice_from_f0():
    manners = {"lively": (1.25, 0.3), "neutral": (1.0, 0.15), "sad": (0.85, 0.05)}

    def make_samples(seeds, voices=("low", "high")):
        return [
            make_sample({"low": 110, "high": 200}[voice] * pitch, spread, seed, style, voice)
            for style, (pitch, spread) in manners.items()
            for voice in voices
            for seed in seeds
        ]

    classifier = MannerClassifier(make_samples(range(8)))
    assert classifier.accuracy(make_samples(range(20, 26))) == 100
    flat = [
        make_sample(110, 0.15, seed, style, "low") for style in manners for seed in range(20, 26)
    ]
    assert classifier.accuracy(flat) < 50


def test_the_recogniser_reads_a_real_recording_and_not_noise(tmp_path):
    grammar = tmp_path / "prompts.gram"
    others = ["your account number is", "followed by the pound key", "please try again later"]
    grammar.write_text(resynthesis.sentence_grammar([PROMPT, *others]))
    wave = load_audio(Path(__file__).with_name("agent-incorrect.flac"))
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)

    def errors(*samples):
        recognised = [resynthesis.recogniser(grammar)(sample) for sample in samples]
        return resynthesis.word_error_rate(samples, recognised)

    assert errors(SpeechSample(wave, PROMPT)) == 0
    assert errors(SpeechSample(wave, PROMPT), SpeechSample(wave, "your account number is")) > 50
    assert errors(SpeechSample(noise, PROMPT)) > 30
    assert errors(SpeechSample(wave, PROMPT)) == 0  # independent of the samples before


def test_a_missing_grammar_is_rejected(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="worl.gram: there is no such grammar"):
        resynthesis.recogniser(tmp_path / "worl.gram")
    monkeypatch.setattr(sys, "argv", ["recognise", "--grammar", str(tmp_path / "worl.gram")])
    with pytest.raises(SystemExit, match="1"):
        running.run(recognise.main)
    assert "error:" in capsys.readouterr().err


def test_a_killed_worker_process_ends_the_evaluation():
    with pytest.raises(BrokenProcessPool):
        resynthesis.in_processes(os._exit, [1, 1], "Dying")


def test_missing_and_failing_programs_are_reported():
    assert programs.run(["echo", "output"], "coreutils") == b"output\n"
    with pytest.raises(InputError, match="nosuch: is not there; apt-get install some-package"):
        programs.run(["nosuch"], "some-package")
    with pytest.raises(InputError, match="false: fails .status 1"):
        programs.run(["false"], "coreutils")


def test_phones_are_sampled_at_the_frame_rate_of_the_trunk():
    trunk = TrunkConfig(conv_layers=((4, 320, 320),))  # 50 frames a second
    phones = [["ah", 0.0, 0.1], ["b", 0.1, 0.2]]
    assert phonetic_units._label(phones, 10, trunk).tolist() == ["ah"] * 5 + ["b"] * 5


def test_the_word_error_target_of_a_voice_is_for_phrases(tmp_path, monkeypatch):
    texts = {"a": "red", "b": "red green blue"}
    for part in ("train", "valid", "test"):
        rows = [{"id": id, "audio": f"{id}.wav", "text": text} for id, text in texts.items()]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"asterisk-{part}.jsonl").write_text(lines)
    samples = [SpeechSample(np.zeros(1), text) for text in texts.values()]
    monkeypatch.setattr(speech_tokenizer, "load_audio", lambda audio: np.zeros(1))
    monkeypatch.setattr(speech_tokenizer, "resynthesise", lambda *_: ([], samples))
    monkeypatch.setattr(
        speech_tokenizer, "_recognise", lambda *_: [["green"], ["red", "green", "blue"]]
    )
    figures, rows = speech_tokenizer.measure_voice(tmp_path, tmp_path, None)
    assert figures["voice"] == {"word_errors": 25, "word_errors_of_phrases": 0}
    targets = {name: (value, met) for name, value, target, met in rows if target}
    assert targets == {"word errors of 3 words or more, prompts in the new voice": (0, True)}


@pytest.mark.parametrize("options", [["--plain"], ["--base"], ["--base", "--voice"], []])
def test_incomplete_sets_of_folders_are_rejected(options, monkeypatch, capsys):
    sets = [part for option in options for part in (option, "nowhere")]
    monkeypatch.setattr(sys, "argv", ["speech_tokenizer", "--corpus", "nowhere", *sets])
    with pytest.raises(SystemExit, match="1"):
        running.run(speech_tokenizer.main)
    assert "Give --base with --plain or --expressive" in capsys.readouterr().err


def test_pairs_compare_the_same_and_another_sentence_in_two_voices():
    encoded = {
        "a/sad/1": np.array([1, 1, 2, 3]),
        "b/sad/1": np.array([1, 2, 2, 3]),
        "a/sad/2": np.array([7, 8, 9]),
        "b/sad/2": np.array([7, 5, 9]),
    }
    pairs = [{"first": f"a/sad/{n}", "second": f"b/sad/{n}"} for n in (1, 2)]
    same, other = phonetic_units.compare_pairs(pairs, encoded)
    np.testing.assert_allclose(same, [0, 100 / 3])
    np.testing.assert_allclose(other, [100, 100])


def test_resynthesis_may_add_two_points_or_thirty_percent_of_errors():
    assert allowed_errors(0) == 2 and allowed_errors(20) == 26
