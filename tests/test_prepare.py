"""Preparing: nothing lost or mixed up, rejects with reasons, stopped and resumed."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile

from spirit_jax import InputError, SpeechTokenizer, cli
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.data import prepare as prepare_lib
from spirit_jax.data import report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.encode_items import find_splits
from spirit_jax.data.prepare import prepare

SECONDS = (1.3, 0.7, 1.0, 0.9, 1.2, 0.5)


@pytest.fixture(scope="module")
def tokenizer(expressive_folder):
    return SpeechTokenizer.from_pretrained(expressive_folder)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Six recordings; the third and fourth are one document."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    lines = []
    for number, seconds in enumerate(SECONDS):
        wave = 0.1 * rng.standard_normal(int(seconds * 8000))
        soundfile.write(folder / f"r{number}.flac", wave, 8000)
        lines.append(
            {
                "id": f"r{number}",
                "audio": f"r{number}.flac",
                "text": f"number {number}",
                "words": [["number", 0.1, 0.3], [str(number), 0.3, 0.45]],
                "speaker": "noise",
                "document": "both" if number in (2, 3) else "",
            }
        )
    write_lines(folder / "all.jsonl", lines)
    return folder


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder):
    return [utterance.to_bytes() for utterance in Corpus(folder)]


def test_a_manifest_becomes_a_corpus(recordings, tokenizer, tmp_path):
    config = PrepareConfig(shard_items=2, window=2)
    figures = prepare(str(recordings / "all.jsonl"), tmp_path / "corpus", tokenizer, config)
    corpus = list(Corpus(tmp_path / "corpus"))
    assert [utterance.id for utterance in corpus] == [f"r{number}" for number in range(6)]
    for number, (utterance, seconds) in enumerate(zip(corpus, SECONDS, strict=True)):
        alone = tokenizer.encode(recordings / f"r{number}.flac")
        np.testing.assert_array_equal(utterance.units.hubert, alone.hubert)
        np.testing.assert_array_equal(utterance.units.pitch, alone.pitch)
        assert utterance.seconds == pytest.approx(seconds, abs=1e-3)
        assert utterance.text == f"number {number}" and utterance.speaker == "noise"
        assert utterance.words == (("number", 0.1, 0.3), (str(number), 0.3, 0.45))
    assert [utterance.document for utterance in corpus] == ["", "", "both", "both", "", ""]
    assert figures["utterances"] == figures["items"] == 6 and figures["words"] == 12
    assert figures["hours"] * 3600 == pytest.approx(sum(SECONDS), abs=0.01)
    assert sum(figures["histogram"].values()) == sum(
        len(utterance.units.hubert) for utterance in corpus
    )


def test_parts_share_a_corpus_and_keep_documents_whole(recordings, tokenizer, tmp_path):
    source = str(recordings / "all.jsonl")
    config = PrepareConfig(shard_items=1)
    for part in (1, 2):
        prepare(source, tmp_path / "both", tokenizer, config, part, 2)
    prepare(source, tmp_path / "one", tokenizer, config)
    assert sorted(read(tmp_path / "both")) == sorted(read(tmp_path / "one"))
    together = [utterance.id for utterance in Corpus(tmp_path / "both")]
    assert together.index("r3") == together.index("r2") + 1


def test_two_processes_prepare_different_parts_only(recordings, tokenizer, tmp_path):
    source, output = str(recordings / "all.jsonl"), tmp_path / "corpus"
    config = PrepareConfig(shard_items=1)

    def second(items):
        with pytest.raises(InputError, match="part 1 of .*corpus: is in use by process"):
            prepare(source, output, tokenizer, config, 1, 2)
        prepare(source, output, tokenizer, config, 2, 2)

    prepare(source, output, tokenizer, config, 1, 2, second)
    assert len(list(Corpus(output))) == 6
    assert not list(output.glob("*.lock*"))


def test_a_stopped_run_resumes_where_it_was(recordings, tokenizer, tmp_path):
    source, output = str(recordings / "all.jsonl"), tmp_path / "corpus"
    config = PrepareConfig(shard_items=1)

    class Stopped(Exception):
        pass

    def stop(items, seen=[]):  # noqa: B006 (it counts)
        seen.append(items)
        if len(seen) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(source, output, tokenizer, config, progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.arrayrecord")}
    assert 0 < len(before) < 5
    (output / "part-00001-of-00001-00004.arrayrecord.unfinished").write_bytes(b"half")
    prepare(source, output, tokenizer, config)
    for name, written in before.items():
        assert (output / name).stat().st_mtime_ns == written
    prepare(source, tmp_path / "whole", tokenizer, config)
    assert read(output) == read(tmp_path / "whole")
    again = prepare(source, output, tokenizer, config)
    assert again["utterances"] == 6


def test_other_settings_in_the_same_folder_are_refused(recordings, tokenizer, tmp_path):
    source = str(recordings / "all.jsonl")
    prepare(source, tmp_path, tokenizer, PrepareConfig(shard_items=3))
    with pytest.raises(InputError, match="was prepared with shard_items 3, and now it is 4"):
        prepare(source, tmp_path, tokenizer, PrepareConfig(shard_items=4))


def test_rejects_have_reasons_and_the_rest_is_prepared(recordings, tokenizer, tmp_path):
    for number in range(6):
        shutil.copy(recordings / f"r{number}.flac", tmp_path)
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), SAMPLE_RATE)
    good = {"id": "good", "audio": "r0.flac"}
    lines = [
        json.dumps(good),
        "{not json",
        json.dumps(good),
        json.dumps({"audio": "r1.flac"}),
        json.dumps({"id": "nothing"}),
        json.dumps({"id": "gone", "audio": "gone.wav"}),
        json.dumps({"id": "cut", "audio": "cut.wav"}),
        json.dumps({"id": "short", "audio": "short.wav"}),
        json.dumps({"id": "beyond", "audio": "r1.flac", "words": [["late", 0.5, 3.0]]}),
        json.dumps({"id": "back", "audio": "r1.flac", "words": [["b", 0.4, 0.5], ["a", 0.1, 0.2]]}),
        json.dumps({"id": "list", "audio": "r1.flac", "words": [["b", 0.4]]}),
        json.dumps({"id": "number", "audio": 7}),
        json.dumps({"id": "text", "text": "only words"}),
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    figures = prepare(str(tmp_path / "all.jsonl"), tmp_path / "corpus", tokenizer)
    assert [utterance.id for utterance in Corpus(tmp_path / "corpus")] == ["good", "text"]
    (path,) = (tmp_path / "corpus").glob("rejects-*.jsonl")
    rejects = [json.loads(line) for line in path.read_text().splitlines()]
    reasons = {reject["id"]: reject["reason"] for reject in rejects}
    for name, part in (
        ("line 2", "not JSON"),
        ("good", "not unique"),
        ("line 4", "no id"),
        ("nothing", "neither audio nor text"),
        ("gone", "no such file"),
        ("cut", "cut"),
        ("short", "no units"),
        ("beyond", "late"),
        ("back", "'a'"),
        ("list", "[word, start, end]"),
        ("number", "expected a str"),
    ):
        assert part in reasons[name], (name, reasons[name])
    assert figures["rejected"] == len(rejects) == 11


def test_a_source_of_which_nothing_can_be_used_is_an_error(tokenizer, tmp_path):
    write_lines(tmp_path / "bad.jsonl", [{"id": "a", "audio": "gone.wav"}])
    with pytest.raises(InputError, match="none of 1 items can be used; the first: a"):
        prepare(str(tmp_path / "bad.jsonl"), tmp_path / "corpus", tokenizer)
    assert not (tmp_path / "corpus").exists()
    for source, message in (
        (str(tmp_path / "no.jsonl"), "no such file or folder"),
        ("tfds:speech", "expected tfds:NAME"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(source, tmp_path / "other", tokenizer)


def test_a_corpus_prepared_without_a_model_can_be_prepared_with_one(
    recordings, tokenizer, tmp_path
):
    source, output = str(recordings / "all.jsonl"), tmp_path / "corpus"
    with pytest.raises(InputError, match="none of 6 items can be used; .*no model"):
        prepare(source, output, None)
    assert not output.exists()
    prepare(source, output, tokenizer)
    assert len(read(output)) == 6
    with pytest.raises(InputError, match="was prepared with a model .*, and now there is none; "):
        prepare(source, output, None)
    write_lines(tmp_path / "text.jsonl", [{"id": "a", "text": "a text"}])
    prepare(str(tmp_path / "text.jsonl"), tmp_path / "text", None)
    with pytest.raises(InputError, match=r"was prepared without a model \(--model\); choose"):
        prepare(str(tmp_path / "text.jsonl"), tmp_path / "text", tokenizer)


def test_folders_of_recordings_and_of_texts(recordings, tokenizer, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(recordings / "r0.flac", tmp_path / "a" / "b" / "one.flac")
    (tmp_path / "a" / "b" / "one.txt").write_text("what is\nsaid")
    shutil.copy(recordings / "r1.flac", tmp_path / "a" / "two.flac")
    prepare(str(tmp_path / "a"), tmp_path / "speech", tokenizer)
    texts = {utterance.id: utterance.text for utterance in Corpus(tmp_path / "speech")}
    assert texts == {"b/one": "what is said", "two": ""}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "story.txt").write_text("once upon a time")
    figures = prepare(str(tmp_path / "texts"), tmp_path / "text", None)
    (story,) = Corpus(tmp_path / "text")
    assert story.units is None and story.text == "once upon a time" and story.id == "story"
    assert figures["characters"] == len(story.text)


def test_long_recordings_are_split_at_silences_between_words(tokenizer, tmp_path):
    rng = np.random.default_rng(1)
    wave = 0.1 * rng.standard_normal(5 * SAMPLE_RATE)
    silent = int(1.5 * SAMPLE_RATE)
    wave[silent : silent + SAMPLE_RATE // 10] = 0
    words = [[f"w{i}", 0.5 * i, 0.5 * i + 0.4] for i in range(10)]
    soundfile.write(tmp_path / "long.wav", wave, SAMPLE_RATE)
    write_lines(
        tmp_path / "long.jsonl",
        [
            {"id": "known", "audio": "long.wav", "words": words},
            {"id": "unknown", "audio": "long.wav", "text": "who knows when"},
        ],
    )
    config = PrepareConfig(max_seconds=2.0)
    figures = prepare(str(tmp_path / "long.jsonl"), tmp_path / "corpus", tokenizer, config)
    utterances = list(Corpus(tmp_path / "corpus"))
    known = [utterance for utterance in utterances if utterance.id.startswith("known")]
    unknown = [utterance for utterance in utterances if utterance.id.startswith("unknown")]
    assert [utterance.id for utterance in known] == [f"known#{i}" for i in range(len(known))]
    assert {utterance.document for utterance in known} == {"known"}
    for pieces in (known, unknown):
        assert len(pieces) >= 3 and max(utterance.seconds for utterance in pieces) <= 2.0
        assert sum(utterance.seconds for utterance in pieces) == pytest.approx(5.0, abs=1e-3)
    assert unknown[0].seconds == pytest.approx(1.55, abs=0.06)
    begin, times = 0.0, []
    for utterance in known:
        times += [(word, start + begin, end + begin) for word, start, end in utterance.words]
        assert utterance.text == " ".join(word for word, _, _ in utterance.words)
        begin += utterance.seconds
    assert [word for word, _, _ in times] == [word for word, _, _ in words]
    np.testing.assert_allclose([t for _, *t in times], [t for _, *t in words], atol=1e-6)
    assert {utterance.text for utterance in unknown} == {""} and figures["texts_lost"] == 1


def test_splits_never_lose_a_sample_and_keep_to_the_limit():
    rng = np.random.default_rng(2)
    for seconds in (0.5, 2.0, 2.01, 7.7):
        wave = rng.standard_normal(int(seconds * SAMPLE_RATE))
        bounds = find_splits(wave, [("endless", 0.0, seconds)], 2.0)
        assert bounds[0] == 0 and bounds[-1] == len(wave)
        assert 0 < np.diff(bounds).min() and np.diff(bounds).max() <= 2 * SAMPLE_RATE


def test_the_command_reports_draws_and_is_strict_if_asked(
    recordings, expressive_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)
    with (recordings / "all.jsonl").open() as file:
        text = file.read() + "oops\n"
    (recordings / "some.jsonl").write_text(text)
    arguments = ["prepare", str(recordings / "some.jsonl"), str(tmp_path / "corpus")]
    options = ["--model", str(expressive_folder), "--json", "--strict"]
    picture = tmp_path / "units.png"
    monkeypatch.setattr(sys, "argv", ["x", *arguments, *options, "--plot", str(picture)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    figures = json.loads(capsys.readouterr().out)
    assert figures["items"] == 6 and figures["rejected"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    for shard, message in (("2", "expected I/N"), ("3/2", "expected I/N")):
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--shard", shard])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(recordings, tokenizer, tmp_path, monkeypatch):
    def full(path, utterances):
        list(utterances)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_lib, "write_shard", full)
    with pytest.raises(InputError, match="the disk is full"):
        prepare(str(recordings / "all.jsonl"), tmp_path / "corpus", tokenizer)
    assert not list((tmp_path / "corpus").glob("part-*"))


def test_without_tensorflow_datasets_one_sentence_says_so(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'spirit-jax\[tfds\]'"):
        prepare("tfds:librispeech:train", tmp_path, tokenizer)


def test_what_changed_since_a_preparation_began_is_noticed(recordings, tokenizer, tmp_path):
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    source, config = str(folder / "all.jsonl"), PrepareConfig(shard_items=2)
    prepare(source, tmp_path / "a", tokenizer, config)
    text = (folder / "all.jsonl").read_text()
    (folder / "all.jsonl").write_text(text.replace("number 5", "number 6"))
    with pytest.raises(InputError, match="was prepared from other content"):
        prepare(source, tmp_path / "a", tokenizer, config)
    (folder / "all.jsonl").write_text(text)
    wave = 0.1 * np.random.default_rng(9).standard_normal(9000)
    soundfile.write(folder / "r5.flac", wave, 8000)
    with pytest.raises(InputError, match="was prepared from other items"):
        prepare(source, tmp_path / "a", tokenizer, config)
    prepare(str(folder), tmp_path / "b", tokenizer, config)
    soundfile.write(folder / "added.flac", wave, 8000)
    with pytest.raises(InputError, match="was prepared from other content"):
        prepare(str(folder), tmp_path / "b", tokenizer, config)


def test_damaged_notes_are_named(recordings, tokenizer, tmp_path):
    source = str(recordings / "all.jsonl")
    prepare(source, tmp_path, tokenizer)
    for path in [*tmp_path.glob("prepare.json"), *tmp_path.glob("part-*.json")]:
        whole = path.read_bytes()
        for damage in (whole[:40], whole.replace(b"1", b"2", 1), b"[]", b"\xff"):
            path.write_bytes(damage)
            with pytest.raises(InputError, match=path.name):
                prepare(source, tmp_path, tokenizer)
        path.write_bytes(whole)
    assert prepare(source, tmp_path, tokenizer)["items"] == 6


def test_a_corpus_that_is_not_prepared_to_its_end_is_not_opened(recordings, tokenizer, tmp_path):
    source = str(recordings / "all.jsonl")
    prepare(source, tmp_path, tokenizer, PrepareConfig(shard_items=1), part=1, parts=2)
    with pytest.raises(InputError, match="not finished part 2 of 2"):
        Corpus(tmp_path)
    for path in tmp_path.glob("corpus-*.json"):
        path.unlink()
    with pytest.raises(InputError, match="prepare has not finished"):
        Corpus(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "bit", "swapped"])
def test_a_lost_or_damaged_shard_is_prepared_again(tmp_path, capsys, damage):
    lines = [{"id": str(number), "text": f"text {number}"} for number in range(4)]
    source, folder = tmp_path / "m.jsonl", tmp_path / "corpus"
    settings = PrepareConfig(shard_items=2)
    write_lines(source, lines)
    prepare(str(source), folder, None, settings)
    first, second = sorted(folder.glob("*.arrayrecord"))
    before = second.read_bytes()
    if damage == "missing":
        second.unlink()
    elif damage == "truncated":
        second.write_bytes(before[:100])
    elif damage == "bit":
        second.write_bytes(before[:-70] + bytes([before[-70] ^ 1]) + before[-69:])
    else:
        shutil.copy(first, second)
    prepare(str(source), folder, None, settings)
    notices = capsys.readouterr().err
    assert second.name in notices and first.name not in notices
    assert [each.text for each in Corpus(folder)] == [line["text"] for line in lines]


def test_a_report_counts_one_item_as_one():
    total = report.Counts(items=1, utterances=1, seconds=2.0, units=1, words=1, characters=2)
    text = report.describe(report.summarise(total, {}))
    assert text.startswith("1 item, 1 utterance, 0.00 hours\n1 unit, ")
    assert "1 word with times, 2 characters of text" in text
