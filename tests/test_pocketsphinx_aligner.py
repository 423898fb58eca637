"""The pocketsphinx aligner, which needs no download, on words in and out of its dictionary."""

import json

import numpy as np
import pytest

pytest.importorskip("pocketsphinx")

from spirit_jax import model_folder  # noqa: E402
from spirit_jax.cli import main  # noqa: E402
from spirit_jax.data.align_corpus import align_corpus  # noqa: E402
from spirit_jax.data.pocketsphinx_aligner import PocketsphinxAligner  # noqa: E402

REQUEST = model_folder.ASSETS / "request.flac"
TEXT = json.loads((model_folder.ASSETS / "recordings.json").read_text())["request"]


@pytest.fixture(scope="module")
def aligner():
    return PocketsphinxAligner()


def test_word_times_do_not_depend_on_other_recordings(aligner):
    (alone,) = aligner.align_batch([REQUEST], [TEXT.upper() + "!"])
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
    _, after = aligner.align_batch([noise, REQUEST], ["something else", TEXT])
    assert [word for word, _, _ in alone.words] == TEXT.split()
    times = [time for _, start, end in alone.words for time in (start, end)]
    assert times == sorted(times) and times[-1] <= 2.31 and not alone.problem
    assert after == alone and alone.stars == 0 and -4 < alone.score < 0


@pytest.mark.parametrize(
    ("text", "stars"),
    [
        (TEXT.replace("heat", "zzyzx"), {"zzyzx": 1}),  # a name that no dictionary has
        (TEXT.replace("the heat", "42 cat's"), {}),
        (TEXT.replace("living", "röm"), {"röm": 1}),
    ],
)
def test_words_out_of_the_dictionary_are_kept_and_counted(aligner, text, stars):
    (aligned,) = aligner.align_batch([REQUEST], [text])
    assert [word for word, _, _ in aligned.words] == text.split()
    assert aligned.stars == sum(stars.values()) and aligned.unknown == stars


@pytest.mark.parametrize(
    ("wave", "text", "problem"),
    [
        (REQUEST, "", "no words"),
        (REQUEST, "guten morgen liebe leute wie gehts", "English"),
        (REQUEST, "मैं घर", "English"),
        (REQUEST, "the quarterly report shows a decline in revenue", "does not find"),
        (np.zeros(0), TEXT, "does not find"),
        (np.zeros(200), TEXT, "does not find"),
    ],
)
def test_texts_that_cannot_be_aligned_have_a_problem(aligner, wave, text, problem):
    (aligned,) = aligner.align_batch([wave], [text])
    assert problem in aligned.problem and not aligned.words


def test_a_folder_of_recordings_is_aligned(tmp_path, aligner):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "a.flac").write_bytes(REQUEST.read_bytes())
    (folder / "a.txt").write_text(TEXT.replace("heat", "zzyzx"))
    report = align_corpus(folder, tmp_path / "out.jsonl", aligner)
    (item,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert [word for word, _, _ in item["words"]] == item["text"].split()
    assert report.stars == 1 and "zzyzx (1)" in report.notes()[0]


def test_without_an_aligner_the_error_names_the_options(tmp_path, monkeypatch, capsys):
    for extra in ([], ["--aligner", "mfa"]):
        monkeypatch.setattr("sys.argv", ["spirit-jax", "align", "a", "b", *extra])
        with pytest.raises(SystemExit):
            main()
        error = " ".join(capsys.readouterr().err.split())
        assert "--aligner pocketsphinx" in error and "facebook/wav2vec2-base-960h" in error
        assert "spirit-jax convert ctc" in error
