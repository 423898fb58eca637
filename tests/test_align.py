"""The times of words in recordings of tones, and manifests of whole corpora."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spirit_jax import checkpoint
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data import align as align_lib
from spirit_jax.data.align import Aligner
from spirit_jax.data.align_corpus import align_corpus
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.models import ctc
from spirit_jax.models.ctc import CtcConfig, CtcModel
from spirit_jax.models.wav2vec2 import TrunkConfig, frame_lengths

# The aligner, with a small network that was trained on a tone for every label.

TRUNK = TrunkConfig(
    input_norm_eps=1e-7,
    conv_layers=((24, 40, 20), (24, 16, 16)),
    conv_norm="layer",
    conv_pos=4,
    conv_pos_groups=2,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    ffn_size=16,
)
CONFIG = CtcConfig(trunk=TRUNK, labels=("<pad>", "<s>", "|", *"ABCDE'"))
RATE, TONE, SILENCE = 16_000, 1_280, 640  # samples of a tone and of the silence after it
FRAME = TRUNK.stride / RATE


def sing(labels, seed=0, silence=SILENCE):
    """A recording that has a tone for every label: (samples, the label at every sample)."""
    waves, labels_t = [np.zeros(silence)], [np.zeros(silence, int)]
    for label in labels:
        tone = 0.5 * np.sin(2 * np.pi * (400 + 500 * label) * np.arange(TONE) / RATE)
        waves += [tone, np.zeros(silence)]
        labels_t += [np.full(TONE, label), np.zeros(silence, int)]
    wave = np.concatenate(waves)
    wave += np.random.default_rng(seed).normal(0, 0.02, len(wave))
    return wave.astype(np.float32), np.concatenate(labels_t)


def sing_words(text, silence=SILENCE):
    """A recording of a text in the letters a to e: (samples, words with their true times)."""
    ids = {label.lower(): number for number, label in enumerate(CONFIG.labels)}
    wave, _ = sing([ids[c] for c in text.replace(" ", "|")], silence=silence)
    words, place = [], 0
    for word in text.split():
        start = (silence + place * (TONE + silence)) / RATE
        words.append((word, start, start + (len(word) * (TONE + silence) - silence) / RATE))
        place += len(word) + 1
    return wave, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a network trained on tones."""
    rng = np.random.default_rng(0)
    examples = [sing(rng.integers(2, 9, 8), seed) for seed in range(128)]
    waves_nt, labels_nt = (np.stack(arrays) for arrays in zip(*examples, strict=True))
    frames = int(frame_lengths(waves_nt.shape[1], TRUNK.conv_layers))
    targets_nt = labels_nt[:, np.arange(frames) * TRUNK.stride + TRUNK.receptive_field // 2]
    model, optimizer = CtcModel(CONFIG), optax.adam(1e-2)

    def loss(params, wave_bt, targets_bt):
        lengths_b = jnp.full(len(wave_bt), wave_bt.shape[1])
        logits_btv, _ = model.apply({"params": params}, wave_bt, lengths_b)
        return optax.softmax_cross_entropy_with_integer_labels(logits_btv, targets_bt).mean()

    def step(carry, rows):
        params, state = carry
        grads = jax.grad(loss)(params, jnp.array(waves_nt)[rows], jnp.array(targets_nt)[rows])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def learn(key):
        params = model.init(key, jnp.zeros((1, 800)), jnp.array([800]))["params"]
        rows = jax.random.randint(key, (60, 16), 0, len(waves_nt))
        return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]

    folder = tmp_path_factory.mktemp("ctc") / "ctc"
    checkpoint.save_network(folder, CONFIG, jax.device_get(learn(jax.random.key(0))))
    return folder


@pytest.fixture(scope="module")
def aligner(folder):
    return Aligner.from_pretrained(folder)


def assert_times(words, expected, frames=1.5):
    """The same words; times within frames (a frame's centre is what decides its label)."""
    assert [word for word, _, _ in words] == [word for word, _, _ in expected]
    times, expected_times = (np.array([pair for _, *pair in each]) for each in (words, expected))
    assert np.abs(times - expected_times).max() <= frames * FRAME


def test_words_have_their_true_times(aligner):
    wave, expected = sing_words("abc de c aab'e")
    aligned = aligner.align(wave, "ABC, de -- c (Aab\u2019e)!")
    assert_times(aligned.words, expected)
    assert -0.5 < aligned.score <= 0


def test_a_wrong_text_scores_less(aligner):
    wave, _ = sing_words("abc de c aab'e")
    right, wrong = (aligner.align(wave, text).score for text in ("abc de c aab'e", "dda bb e ca"))
    assert wrong < right - 1


def test_a_word_that_cannot_be_spelt_takes_what_is_left(aligner):
    wave, expected = sing_words("abc de cab e")
    words = aligner.align(wave, "abc 42 cab 7").words
    renamed = [
        (word, *pair) for word, (_, *pair) in zip("abc 42 cab 7".split(), expected, strict=True)
    ]
    assert_times(words, renamed)
    assert aligner.align(wave, "abxyzc de cab e").words[0][0] == "abxyzc"
    assert aligner.align(wave, "abxyzc de cab e").words[0][1:] == words[0][1:]


def test_long_recordings_are_aligned_across_chunks(aligner):
    rng = np.random.default_rng(1)
    text = " ".join("".join(rng.choice(list("abcde"), rng.integers(1, 6))) for _ in range(120))
    wave, expected = sing_words(text, silence=960)
    assert len(wave) > 2 * align_lib.CHUNK_SECONDS * RATE
    assert_times(aligner.align(wave, text).words, expected)


def test_recordings_together_give_what_each_gives_alone(aligner):
    texts = ["abc de", "e 5 ab", "c"]
    waves = [sing_words("abc de")[0], sing_words("e d ab")[0], sing_words("c")[0]]
    for wave, text, together in zip(waves, texts, aligner.align_batch(waves, texts), strict=True):
        alone = aligner.align(wave, text)
        assert together.words == alone.words
        assert together.score == pytest.approx(alone.score, abs=1e-5)


@pytest.mark.parametrize(
    ("seconds", "text", "named"),
    [
        (1, "... --", "no words"),
        (1, "42 xyz", "Every word has characters"),
        (0.2, "abcdeabcdeabcde", "15 characters, too many for 0.20 s"),
        (0, "abc", "too many for 0.00 s"),
    ],
)
def test_texts_that_cannot_be_aligned_are_refused(seconds, text, named, aligner):
    wave = np.zeros(int(seconds * RATE), np.float32)
    with pytest.raises(InputError, match=named):
        aligner.align(wave, text)
    refused, aligned = aligner.align_batch([wave, sing_words("a b")[0]], [text, "a b"])
    assert (refused.words, refused.score) == ((), -np.inf) and named in refused.problem
    assert len(aligned.words) == 2 and not aligned.problem


@pytest.mark.parametrize(
    ("changes", "named"), [({"blank": 9}, "blank is 9"), ({"separator": "#"}, "separator '#'")]
)
def test_impossible_configs_are_refused(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(CONFIG, **changes)


def test_a_network_for_another_rate_is_refused(folder, tmp_path):
    model, params = ctc.load(folder)
    checkpoint.save_network(tmp_path / "8k", dataclasses.replace(CONFIG, sample_rate=8000), params)
    with pytest.raises(InputError, match="8000 Hz"):
        Aligner.from_pretrained(tmp_path / "8k")


# Manifests.


@pytest.fixture
def corpus(tmp_path):
    """(manifest, the words with true times by id) of seven lines, of which four are good."""
    lines, expected = [], {}
    for name, text in (("one", "abc de"), ("two", "e d ab"), ("b/three", "c"), ("four", "dd e")):
        wave, expected[name] = sing_words(text)
        write_wav(tmp_path / f"audio/{name}.wav", wave)
        item = {"id": name, "audio": f"audio/{name}.wav", "text": text.upper(), "speaker": "é"}
        lines.append(json.dumps(item))
    lines.insert(1, "{broken")
    lines.insert(2, "")
    lines.insert(3, json.dumps({"id": "gone", "audio": "audio/gone.wav", "text": "a"}))
    lines.append(json.dumps({"id": "long", "audio": "audio/one.wav", "text": "ab" * 100}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.jsonl", expected


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_corpus_gets_words_and_scores(aligner, corpus, tmp_path):
    source, expected = corpus
    output, done = tmp_path / "out/aligned.jsonl", []
    report = align_corpus(source, output, aligner, batch_size=3, progress=done.append)
    assert (report.aligned, report.rejected, done) == (4, 3, [3, 6, 7])
    items = read_lines(output)
    assert [item["id"] for item in items] == list(expected)
    for item in items:
        assert (output.parent / item["audio"]).is_file() and item["speaker"] == "é"
        assert_times(item["words"], expected[item["id"]])
        assert -0.5 < item["score"] <= 0
    rejects = read_lines(tmp_path / "out/aligned.jsonl.rejects.jsonl")
    assert [(r["line"], r.get("id")) for r in rejects] == [(2, None), (4, "gone"), (8, "long")]
    for reject, reason in zip(rejects, ("not JSON", "no such file", "too many"), strict=True):
        assert reason in reject["reason"]
    assert len(os.listdir(output.parent)) == 2


def test_an_interrupted_run_resumes(aligner, corpus, tmp_path):
    source, _ = corpus
    align_corpus(source, tmp_path / "whole.jsonl", aligner)

    class Stop(Exception):
        pass

    def stop(done):
        if done == 4:
            raise Stop

    output, partial = tmp_path / "parts.jsonl", tmp_path / "parts.jsonl.partial"
    with pytest.raises(Stop):
        align_corpus(source, output, aligner, batch_size=2, progress=stop)
    assert not output.exists()
    with partial.open("a") as file:
        file.write('{"item": {"id": "cut sh')
    with pytest.raises(InputError, match="other settings"):
        align_corpus(source, output, aligner, min_score=-1.0)
    seen = []
    align_corpus(source, output, aligner, batch_size=2, progress=seen.append)
    assert seen == [6, 7]
    for end in ("", ".rejects.jsonl"):
        whole, parts = (tmp_path / f"{name}.jsonl{end}" for name in ("whole", "parts"))
        assert read_lines(parts) == read_lines(whole)
    assert not partial.exists()
    with pytest.raises(InputError, match="parts.jsonl: exists already"):
        align_corpus(source, output, aligner)


def test_parts_together_are_the_whole(aligner, corpus, tmp_path):
    source, _ = corpus
    align_corpus(source, tmp_path / "whole.jsonl", aligner)
    for part in (1, 2, 3):
        align_corpus(source, tmp_path / f"{part}.jsonl", aligner, part=part, parts=3)
    for end in ("", ".rejects.jsonl"):
        parts = [tmp_path / f"{part}.jsonl{end}" for part in (1, 2, 3)]
        lines = [line for path in parts if path.exists() for line in read_lines(path)]
        assert lines == read_lines(tmp_path / f"whole.jsonl{end}")
    with pytest.raises(InputError, match="fewer items than 9 parts"):
        align_corpus(source, tmp_path / "5.jsonl", aligner, part=1, parts=9)


def test_a_part_resumes_only_as_the_same_part(aligner, corpus, tmp_path):
    source, _ = corpus

    def stop(done):
        raise KeyError(done)

    output, settings = tmp_path / "out.jsonl", {"batch_size": 1, "parts": 2}
    with pytest.raises(KeyError):
        align_corpus(source, output, aligner, part=2, **settings, progress=stop)
    with pytest.raises(InputError, match="part '2/2', now '1/2'"):
        align_corpus(source, output, aligner, part=1, **settings)
    assert align_corpus(source, output, aligner, part=2, **settings).aligned == 3


def test_two_processes_do_not_align_to_one_output(aligner, corpus, tmp_path):
    source, _ = corpus
    output = tmp_path / "out/aligned.jsonl"

    def second(done):
        with pytest.raises(InputError, match="aligned.jsonl: is in use by process"):
            align_corpus(source, output, aligner)
        align_corpus(source, tmp_path / "out" / f"{done}.jsonl", aligner)  # another one is free

    assert align_corpus(source, output, aligner, batch_size=4, progress=second).aligned == 4
    assert read_lines(tmp_path / "out/4.jsonl") == read_lines(output)
    assert not list(output.parent.glob("*.lock*"))


def test_low_scores_are_rejected(aligner, corpus, tmp_path):
    source, _ = corpus
    lines = source.read_text().splitlines()
    wrong = json.loads(lines[0]) | {"text": "eed aa c"}
    source.write_text("\n".join([json.dumps(wrong), *lines[4:6]]))
    report = align_corpus(source, tmp_path / "out.jsonl", aligner, min_score=-1.0)
    assert (report.aligned, report.rejected) == (2, 1)
    (reject,) = read_lines(tmp_path / "out.jsonl.rejects.jsonl")
    assert "less than -1.0" in reject["reason"]


def test_nothing_but_bad_items_is_an_error(aligner, tmp_path):
    source, output = tmp_path / "manifest.jsonl", tmp_path / "out.jsonl"
    for line, named in (
        ('{"id": "a", "audio": "a.wav"}', "no 'text'"),
        ('{"id": 3, "audio": "a.wav"}', "no 'text'"),
        ('{"id": "a", "text": "a"}', "no 'audio'"),
        ("[]", "expected a JSON object"),
        (" \n", "no items"),
    ):
        source.write_text(line)
        with pytest.raises(InputError, match=named):
            align_corpus(source, output, aligner)
        assert not output.exists() and not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("kind", ["textgrid", "whisperx"])
def test_word_times_are_imported(kind, corpus, tmp_path):
    source, expected = corpus
    for name in ("one", "b/three", "four"):
        words = [(w, round(start, 3), round(end, 3)) for w, start, end in expected[name]]
        if name == "four":
            words[-1] = (*words[-1][:2], 9.0)  # beyond its audio
        path = tmp_path / "times" / f"{name}{'.TextGrid' if kind == 'textgrid' else '.json'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "textgrid":
            marks = [f'{start} {end} "{word}"' for word, start, end in words]
            head = f'"ooTextFile" "TextGrid" 0 9 <exists> 1 "IntervalTier" "words" 0 9 {len(words)}'
            path.write_text("\n".join([head, *marks]))
        else:
            named = [dict(zip(("word", "start", "end"), word, strict=True)) for word in words]
            path.write_text(json.dumps({"segments": [{"words": named}]}))
    report = align_corpus(source, tmp_path / "out.jsonl", **{kind: tmp_path / "times"})
    assert (report.aligned, report.rejected) == (2, 5)
    items = read_lines(tmp_path / "out.jsonl")
    assert [item["id"] for item in items] == ["one", "b/three"]
    reasons = {r.get("id"): r["reason"] for r in read_lines(tmp_path / "out.jsonl.rejects.jsonl")}
    assert "beyond the audio" in reasons["four"] and "no file two" in reasons["two"]
    for item in items:
        assert_times(item["words"], expected[item["id"]], 0.1)
        assert "score" not in item


def test_a_run_resumes_only_with_the_same_source_and_aligner(aligner, folder, corpus, tmp_path):
    source, _ = corpus
    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"

    class Stop(Exception):
        pass

    def stop(done):
        raise Stop

    def run(**changes):
        align_corpus(source, output, **{"aligner": aligner, "batch_size": 2} | changes)

    with pytest.raises(Stop):
        run(progress=stop)
    text, before = source.read_text(), os.stat(source)
    source.write_text(text.replace("ABC DE", "ABD DE"))  # of the same length and time
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=r"other settings \(content of the source\); remove it"):
        run()
    source.write_text(text)  # the same content at another time
    model, params = ctc.load(folder)
    params["head"]["bias"] = params["head"]["bias"] + 1e-3
    with pytest.raises(InputError, match=r"\(content of the aligner\)"):
        run(aligner=Aligner(model, params, aligner.name))
    with pytest.raises(InputError, match=r"\(min_score None, now -3\)"):
        run(min_score=-3)
    with pytest.raises(Stop):
        run(progress=stop)
    lines = partial.read_bytes().splitlines(keepends=True)
    for damaged, named in (
        ([b"{", *lines[1:]], "first line is damaged"),
        ([lines[0], b"{}\n", *lines[2:]], "line 2 is damaged"),
        ([lines[0], b"{\n", *lines[2:]], "line 2 is damaged"),
    ):
        partial.write_bytes(b"".join(damaged))
        with pytest.raises(InputError, match=named):
            run()
        assert not output.exists()
    partial.write_bytes(b"".join(lines))
    run()
    assert len(read_lines(output)) == 4


def test_a_folder_with_texts_is_aligned(aligner, corpus, tmp_path):
    source, expected = corpus
    (tmp_path / "audio" / "one.txt").write_text("abc de")
    (tmp_path / "audio" / "b" / "three.txt").write_text("c")
    with pytest.warns(InputWarning, match="2 of 4 recordings have a text"):
        report = align_corpus(tmp_path / "audio", tmp_path / "out" / "a.jsonl", aligner)
    assert (report.aligned, report.rejected) == (2, 2)
    items = list(read_source(str(tmp_path / "out" / "a.jsonl")))
    assert [(item.id, item.text) for item in items] == [("b/three", "c"), ("one", "abc de")]
    for item in items:
        assert item.audio.is_file()
        assert_times(item.words, expected[item.id])


def test_pieces_of_recordings_are_aligned_each_by_itself(aligner, tmp_path):
    (first, first_words), (second, second_words) = sing_words("abc de"), sing_words("c dd")
    write_wav(tmp_path / "a.wav", np.concatenate([first, second]))
    middle = len(first) / RATE
    lines = [
        {"audio_filepath": "a.wav", "offset": 0, "duration": middle, "text": "abc de"},
        {"audio_filepath": "a.wav", "offset": middle, "duration": len(second) / RATE},
    ]
    lines[1]["text"] = "c dd"
    (tmp_path / "nemo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    align_corpus(tmp_path / "nemo.jsonl", tmp_path / "b" / "out.jsonl", aligner)
    items = list(read_source(str(tmp_path / "b" / "out.jsonl")))
    assert [item.id for item in items] == ["a@0", f"a@{middle:g}"]
    for item, wave, words in zip(items, (first, second), (first_words, second_words), strict=True):
        assert len(load_audio(item.audio)) == len(wave)
        assert_times(item.words, words)


def test_words_that_cannot_be_spelt_are_counted_with_their_letters(aligner, tmp_path):
    wave, _ = sing_words("abc de c aa")
    write_wav(tmp_path / "a.wav", wave)
    line = {"id": "a", "audio": "a.wav", "text": "ab\u0301c de {LG} c à"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    report = align_corpus(tmp_path / "a.jsonl", tmp_path / "out.jsonl", aligner)
    assert report.stars == 2 and report.letters == {"à": 1, "\u0301": 1}
    (note,) = report.notes()
    assert "The times of 2 words are less exact" in note and "à (1)" in note


def test_bad_words_of_other_tools_are_repaired_and_counted(corpus, tmp_path):
    source, expected = corpus
    (tmp_path / "times").mkdir()
    words = [{"word": w, "start": s, "end": e} for w, s, e in expected["one"]]
    words[1]["end"] = words[1]["start"]
    segments = [{"start": 0, "end": 1, "words": [*words, {"word": "<unk>", "start": 9, "end": 9}]}]
    (tmp_path / "times" / "one.json").write_text(json.dumps({"segments": segments}))
    (tmp_path / "times" / "other.JSON").write_text("{}")
    with pytest.warns(InputWarning, match="1 file with the name of no item: other.JSON"):
        report = align_corpus(source, tmp_path / "out.jsonl", whisperx=tmp_path / "times")
    assert (report.aligned, report.repaired, report.unknown) == (1, 2, 1)
    assert [note.split()[0] for note in report.notes()] == ["2", "1"]
    (item,) = read_lines(tmp_path / "out.jsonl")
    assert [word for word, _, _ in item["words"]] == ["abc", "de"]


def test_a_broken_link_to_word_times_rejects_its_item_only(tmp_path):
    for name in ("a", "b"):
        write_wav(tmp_path / f"{name}.wav", np.zeros(16_000))
    lines = [{"id": name, "audio": f"{name}.wav", "text": "hi"} for name in ("a", "b")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "times").mkdir()
    segment = {"start": 0, "end": 1, "words": [{"word": "hi", "start": 0, "end": 0.5}]}
    (tmp_path / "times" / "a.json").write_text(json.dumps({"segments": [segment]}))
    (tmp_path / "times" / "b.json").symlink_to(tmp_path / "elsewhere")
    output = tmp_path / "out.jsonl"
    report = align_corpus(tmp_path / "m.jsonl", output, whisperx=tmp_path / "times")
    assert (report.aligned, report.rejected) == (1, 1)


def test_one_way_is_chosen(aligner, tmp_path):
    for ways in ({}, {"textgrid": tmp_path, "whisperx": tmp_path}):
        with pytest.raises(InputError, match="one of"):
            align_corpus(tmp_path / "a.jsonl", tmp_path / "b.jsonl", **ways)
    with pytest.raises(InputError, match="a.jsonl: there is no such file or folder"):
        align_corpus(tmp_path / "a.jsonl", tmp_path / "b.jsonl", aligner)
