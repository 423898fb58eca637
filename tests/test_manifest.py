"""Sources: what manifests and folders mean, and that nothing of them is passed over in silence."""

import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import soundfile

from spirit_jax.audio import SAMPLE_RATE, AudioPiece, load_audio
from spirit_jax.data import datasets
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.manifest import fingerprint, read_source, source_checksum
from spirit_jax.data.prepare import prepare
from spirit_jax.errors import InputError, InputWarning


@pytest.fixture(autouse=True)
def no_notice_is_missed():
    """A notice that a test does not expect is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


def write(path, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read_one(tmp_path, **fields):
    (item,) = read_source(write(tmp_path / "one.jsonl", {"id": "a", "text": "t"} | fields))
    return item


def texts(source):
    return {item.id: item.problem or item.text for item in read_source(str(source))}


ALL = {"a": "hello a", "b": "hello b", "c": "hello c"}


@pytest.mark.parametrize("name", ["bom", "crlf"])
def test_byte_order_marks_and_windows_line_ends_are_not_text(name, tmp_path, cases):
    assert texts(cases / "manifests" / f"{name}.jsonl") == ALL


def test_strings_may_contain_other_line_ends(cases):
    items = texts(cases / "manifests" / "u2028.jsonl")
    assert items == {"a": "hello\u2028there\u0085you\x0cx", "b": "hello b"}


def test_a_line_in_another_encoding_is_named_with_its_byte(cases, tmp_path):
    items = texts(cases / "manifests" / "latin1.jsonl")
    assert "Line 1: is not UTF-8 text (0xe9 at byte 46)" in items["line 1"]
    assert items["b"] == "hello b"


def test_half_a_character_rejects_only_its_item(cases, tmp_path):
    for name in ("surrogate.jsonl",):
        shutil.copy(cases / "manifests" / name, tmp_path)
    lines = (tmp_path / "surrogate.jsonl").read_text().replace('"audio"', '"x"')
    (tmp_path / "surrogate.jsonl").write_text(lines)
    with pytest.warns(InputWarning, match=r"the fields x \(1 item\) are ignored"):
        report = prepare(str(tmp_path / "surrogate.jsonl"), tmp_path / "corpus", None)
    assert (report["items"], report["rejected"]) == (1, 1)
    (path,) = (tmp_path / "corpus").glob("rejects-*.jsonl")
    assert "lone surrogate" in json.loads(path.read_text())["reason"]
    assert [utterance.text for utterance in Corpus(tmp_path / "corpus")] == ["hello b"]


@pytest.fixture
def tone(tmp_path):
    wave = np.sin(np.arange(SAMPLE_RATE) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.wav")
    return wave


def test_nemos_fields_are_understood(tone, tmp_path, cases):
    for name in ("nemo", "offset"):
        shutil.copy(cases / "manifests" / f"{name}.jsonl", tmp_path)
    a, b = read_source(str(tmp_path / "nemo.jsonl"))
    assert (a.id, a.text, b.id, b.text) == ("a", "hello a", "b", "hello b")
    np.testing.assert_array_equal(load_audio(a.audio), tone)
    first, second = read_source(str(tmp_path / "offset.jsonl"))
    assert (first.id, first.text, second.id, second.text) == ("a0", "one", "a1", "two")
    np.testing.assert_array_equal(load_audio(first.audio), tone[:8000])
    np.testing.assert_array_equal(load_audio(second.audio), tone[8000:])
    assert first.audio_name != second.audio_name
    assert fingerprint(first) != fingerprint(second)
    assert pickle.loads(pickle.dumps(first)) == first  # workers get items


def test_segments_that_differ_by_a_millisecond_have_different_names(tone, tmp_path):
    """Long recordings: six digits are not enough for the time in a name."""
    fields = {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}
    rows = [fields | {"offset": offset} for offset in (1234567.001, 1234567.002, 0.1)]
    items = list(read_source(write(tmp_path / "n.jsonl", *rows)))
    assert [item.id for item in items] == ["a@1234567.001", "a@1234567.002", "a@0.1"]
    assert [item.audio_name.rpartition("(")[2] for item in items] == [
        "1234567.001 to 1234568.001 s)",
        "1234567.002 to 1234568.002 s)",
        "0.1 to 1.1 s)",
    ]


def test_items_without_an_id_have_that_of_nemos_file(tone, tmp_path):
    source = write(
        tmp_path / "n.jsonl",
        {"audio_filepath": "x/a.wav", "duration": 1.0, "text": "a"},
        {"audio_filepath": str(tmp_path / "b.wav"), "text": "b"},
        {"audio_filepath": "a.wav", "offset": 0.25, "duration": 0.5, "text": "c"},
        {"audio_filepath": "a.wav", "offset": 0.75, "text": "d"},
        {"audio_filepath": "/there/x.y.wav", "text": "e"},
        {"audio": "a.wav"},
    )
    texts_by_id = texts(source)
    assert texts_by_id == {
        "x/a": "a",
        "b": "b",
        "a@0.25": "c",
        "a@0.75": "d",
        "there/x.y": "e",
        "line 6": "Line 6: has no id.",
    }
    items = list(read_source(source))
    assert items[2].audio == AudioPiece(tmp_path / "a.wav", 0.25, 0.5)
    assert items[3].audio == AudioPiece(tmp_path / "a.wav", 0.75, None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"offset": -1}, "'offset' is -1"),
        ({"offset": "1"}, "'offset' is '1'"),
        ({"duration": True}, "'duration' is True"),
        ({"duration": 0}, "'duration' is 0"),
        ({"duration": float("inf")}, "the number Infinity is not finite"),
        ({"offset": float("nan")}, "the number NaN is not finite"),
        ({"audio": "https://example.org/a.wav"}, "is a URL"),
        ({"audio": "ftp://host/a.wav"}, "is a URL"),
        ({"audio": "C:\\audio\\a.wav"}, "Windows drive"),
        ({"audio": ["a.wav"]}, "'audio' is"),
        ({"text": 7}, "'text' is 7"),
        ({"speaker": 1.5}, "'speaker' is 1.5"),
        ({"id": True}, "'id' is True"),
        ({"id": ["x" * 500]}, r"'id' is \['xxx.*\.\.\., expected"),
        ({"id": "a\nb"}, "control characters"),
        ({"id": "a\0"}, "control characters"),
        ({"words": "hello"}, "not a list"),
        ({"words": {"word": "a"}}, "not a list"),
        ({"words": ["hello"]}, "not a list"),
        ({"words": [["a", 1]]}, "not a list"),
        ({"words": [[None, 0, 1]]}, "expected"),
        ({"words": [["a", "0", 1]]}, "expected"),
        ({"words": [["a", [0], 1]]}, "expected"),
    ],
)
def test_what_a_line_cannot_mean_is_named(fields, named, tmp_path):
    item = read_one(tmp_path, **({"audio": "a.wav"} | fields))
    with pytest.raises(InputError, match=named):
        raise InputError(item.problem)
    assert len(item.problem) < 300


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": "a", "n": ' + "9" * 400 + "}", "400 digits"),
        ('{"id": ' + "[" * 100_000, "nested too deeply|not JSON"),
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("a.wav|hello", "not JSON"),
        ('{"id": "\\ud83d", "text": "t"}', "lone surrogate"),
    ],
)
def test_a_line_that_is_no_object_is_rejected_alone(line, named, tmp_path):
    good = {"id": "b", "text": "hello b"}
    items = texts(write(tmp_path / "m.jsonl", good, "", line))
    assert items.pop("b") == "hello b"
    with pytest.raises(InputError, match=f"Line 3: .*({named})"):
        raise InputError(items["line 3"])


def test_paths_are_found_as_they_are_written(tone, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    shutil.copy(tmp_path / "a.wav", tmp_path / "sub")
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("sub\\a.wav", "~/a.wav", str(tmp_path / "a.wav"), "./sub/../a.wav"):
        np.testing.assert_array_equal(load_audio(read_one(tmp_path, audio=written).audio), tone)
    shutil.copy(tmp_path / "b.wav", tmp_path / "back\\slash.wav")
    assert read_one(tmp_path, audio="back\\slash.wav").audio.is_file()
    for written in ("x\0.wav", "x" * 5000, "gone\\a.wav"):
        with pytest.raises(InputError, match="no such file"):
            load_audio(read_one(tmp_path, audio=written).audio)


def test_names_may_be_numbers_and_words_objects(tmp_path):
    words = [{"word": "a", "start": 0, "end": 1}, [1984, 1, 2.5], ["b", None, None]]
    item = read_one(tmp_path, id=7, speaker=19, document=3, words=words)
    assert (item.id, item.speaker, item.document, item.problem) == ("7", "19", "3", "")
    assert item.words[:2] == (("a", 0.0, 1.0), ("1984", 1.0, 2.5)) and item.text == "t"
    item = read_one(tmp_path, text=None, audio="a.wav", words=words)
    assert item.text == "a 1984 b" and np.isnan(item.words[2][1:]).all()


def test_ignored_fields_and_labels_are_reported_once_with_counts(tmp_path):
    lines = [{"id": str(n), "text": "t", "lang": "en", "score": -1} for n in range(3)]
    lines[0] |= {"pred_text": "x", "words": [["{LG}", 0, 1], ["[noise]", 1, 2], ["t", 2, 3]]}
    source = write(tmp_path / "m.jsonl", *lines)
    with pytest.warns(InputWarning) as caught:
        items = list(read_source(source))
    fields, labels = (str(warning.message) for warning in caught)
    assert "the fields lang (3 items), pred_text (1 item) are ignored" in fields
    assert "left out 2 labels in place of words" in labels
    assert [word for word, _, _ in items[0].words] == ["t"]


def test_ids_that_come_twice_are_rejected(tmp_path):
    source = write(tmp_path / "m.jsonl", *({"id": name, "text": "t"} for name in ("7", 7, "8")))
    assert [item.problem for item in read_source(source)] == ["", "The id is not unique.", ""]


def test_sources_that_are_no_manifest_are_named(tone, tmp_path):
    write(tmp_path / "array.json", "", "[", '{"id": "a", "text": "t"}', "]")
    for name, named in (
        ("array.json", "is a JSON array; expected a JSON object"),
        ("a.wav", "is a recording"),
        ("gone.jsonl", "no such file or folder"),
        ("x\0y", "no such file or folder"),
        ("x" * 5000, "no such file or folder"),
    ):
        with pytest.raises(InputError, match=named):
            list(read_source(str(tmp_path / name)))
    write(tmp_path / "line.json", [{"id": "a", "text": "t"}])
    with pytest.raises(InputError, match="is a JSON array"):
        list(read_source(str(tmp_path / "line.json")))
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="no items"):
        list(read_source(str(tmp_path / "empty.jsonl")))


# Folders.


@pytest.fixture
def folder(tone, tmp_path):
    """A folder with two recordings, of which one has a text."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(tmp_path / "a.wav", folder)
    shutil.copy(tmp_path / "a.wav", folder / "sub" / "b.WAV")
    (folder / "a.txt").write_bytes("\ufeffhello\r\nthere\r\n".encode())
    (folder / "sub" / "b.TXT").write_text("it is b")
    return folder


def test_a_folder_has_its_recordings_with_their_texts(folder):
    assert texts(folder) == {"a": "hello there", "sub/b": "it is b"}


def test_files_that_are_not_read_are_named_with_counts(folder):
    for name in ("x.TextGrid", "y.TextGrid", "z.jpg", "LICENSE", ".DS_Store", "._a.wav", "n.txt"):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "c.wav").write_text("x")
    with pytest.warns(InputWarning) as caught:
        assert texts(folder) == {"a": "hello there", "sub/b": "it is b"}
    skipped, unused = (str(warning.message) for warning in caught)
    assert "skipped 7 files: 3 hidden, 2 .TextGrid, 1 " in skipped
    assert "1 .jpg" in skipped and "1 without a suffix" in skipped
    assert "left out 1 text without a recording: n.txt" in unused


def test_recordings_without_text_among_others_are_counted(folder):
    (folder / "a.txt").unlink()
    with pytest.warns(InputWarning, match="only 1 of 2 recordings have a text"):
        texts(folder)
    (folder / "sub" / "b.TXT").unlink()
    assert texts(folder) == {"a": "", "sub/b": ""}


def test_recordings_in_formats_that_are_not_read_are_no_text_corpus(tmp_path):
    for name in ("a.mpc", "a.txt", "b.txt"):
        (tmp_path / name).write_text("hello")
    with pytest.warns(InputWarning, match="skipped 1 file: 1 .mpc"):
        items = texts(tmp_path)
    assert items.pop("b") == "hello"
    assert "a.mpc: a .mpc file cannot be read as a recording" in items["a"]


def test_links_are_followed_once(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / "a.wav", outside / "c.wav")
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "gone.wav").symlink_to(tmp_path / "nothing")
    with pytest.warns(InputWarning) as caught:
        items = {item.id: item for item in read_source(str(folder))}
    assert set(items) == {"a", "sub/b", "link/c", "gone"}
    assert any(
        "1 link to a folder that is read already" in str(warning.message) for warning in caught
    )
    with pytest.raises(InputError, match=r"gone\.wav: there is no such file"):
        load_audio(items["gone"].audio)
    before = source_checksum(str(folder))
    shutil.copy(folder / "a.wav", outside / "d.wav")
    assert source_checksum(str(folder)) != before


def test_recordings_of_the_same_name_are_rejected(folder):
    shutil.copy(folder / "a.wav", folder / "a.flac")
    items = texts(folder)
    assert items["sub/b"] == "it is b" and set(items) == {"a.wav", "a.flac", "sub/b"}
    assert "other recordings have the same name" in items["a.wav"]


def test_texts_that_cannot_be_read_are_rejected(folder, tmp_path):
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (folder / "sub" / "b.TXT").write_text(" \n")
    items = texts(folder)
    assert "0xe9 at line 1, byte 4" in items["a"] and "is empty" in items["sub/b"]
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")  # reading it would wait for ever
    assert "is not a file" in texts(folder)["a"]


def test_names_that_are_no_unicode_are_rejected(folder, tmp_path):
    shutil.copy(folder / "a.wav", os.fsencode(folder) + b"/\xe9.wav")
    with pytest.warns(InputWarning, match="2 of 3"):
        items = list(read_source(str(folder)))
    bad = [item for item in items if item.problem]
    assert [item.id for item in bad] == ["\\udce9"] and "half a character" in bad[0].problem


def test_bytes_of_a_dataset_that_are_no_text_are_no_text():
    assert datasets._as_text("é".encode()) == "é"
    with pytest.raises(UnicodeEncodeError):
        datasets._as_text(b"\xe9").encode()


# Preparing.


def test_pieces_and_bad_words_are_prepared(tone, tmp_path, expressive_folder):
    from spirit_jax import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(expressive_folder)
    words = [["so", 0.0, 0.1], ["it", 0.2, 0.2], ["is", 0.3, 0.45]]
    source = write(
        tmp_path / "m.jsonl",
        {"id": "piece", "audio": "a.wav", "offset": 0.25, "duration": 0.5, "words": words},
        {"id": "whole", "audio": "a.wav"},
        {"id": "beyond", "audio": "a.wav", "offset": 0.75, "duration": 0.5},
    )
    report = prepare(source, tmp_path / "corpus", tokenizer)
    piece, whole = Corpus(tmp_path / "corpus")
    assert piece.seconds == 0.5 and whole.seconds == 1.0
    units = tokenizer.encode(tone[4000:12000])
    np.testing.assert_array_equal(piece.units.hubert, units.hubert)
    assert piece.words == (("so", 0.0, 0.1), ("it", 0.1, 0.3), ("is", 0.3, 0.45))
    assert report["words_repaired"] == 1 and report["rejected"] == 1
    assert any("there is no segment" in reason for reason in report["rejects"])


def test_two_recordings_of_an_item_are_named(tone, tmp_path):
    item = read_one(tmp_path, id="a", audio="tone.wav", audio_filepath="other.wav")
    assert "both 'audio' and 'audio_filepath'" in item.problem
