"""Word times: reading TextGrid and WhisperX files, repairing times, and validating them."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spirit_jax.data import word_times
from spirit_jax.data.timing import Entry, fit_words
from spirit_jax.data.word_times import (
    check_words,
    find_files,
    normalise_words,
    read_textgrid,
    read_whisperx,
)
from spirit_jax.errors import InputError

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "{name}"
        xmin = 0
        xmax = 2.5
        intervals: size = 5
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.0
            text = "Don't"
        intervals [3]:
            xmin = 1.0
            xmax = 1.25
            text = "sil"
        intervals [4]:
            xmin = 1.25
            xmax = 2e0
            text = "caf\u00e9 ""so"" "
        intervals [5]:
            xmin = 2
            xmax = 2.5
            text = "<eps>"
    item [2]:
        class = "TextTier"
        name = "clicks 3"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "2 here"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "sp"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.5
<exists>
1
"IntervalTier"
"words"
0
2.5
5
0
0.5
""
0.5
1
"Don't"
1
1.25
"sp"
1.25
2
"caf\u00e9 ""so"" "
2
2.5
"<eps>"
"""
WORDS = (("don't", 0.5, 1.0), ("café", 1.25, 1.75), ("so", 1.75, 2.0))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom"])
@pytest.mark.parametrize("text", [LONG.format(name="words"), LONG.format(name="me - words"), SHORT])
def test_textgrids_of_every_form_and_encoding_are_read(text, encoding, tmp_path):
    path = tmp_path / "a.TextGrid"
    be = encoding == "utf-16-be-bom"
    path.write_bytes(("\ufeff" + text).encode("utf-16-be") if be else text.encode(encoding))
    assert read_textgrid(path) == WORDS
    assert read_textgrid(path, "phones" if "phones" in text else "words") in ((), WORDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG.format(name="utterance"), "no tiers 'words' among utterance, phones"),
        (LONG.format(name="a - words").replace("phones", "b - words"), "2 tiers 'words'"),
        (SHORT[: SHORT.index("1.25")], "ends early"),
        (SHORT.replace('"sp"', "7"), "not a whole TextGrid"),
        (SHORT.replace("TextGrid", "PitchTier"), "header"),
        (SHORT.replace("\n5\n0\n", "\n7\n0\n")[:-17], "4 of 7 intervals, but none from 2 to 2.5"),
        (SHORT.replace('1\n1.25\n"sp"\n', ""), "4 of 5 intervals, but none from 1 to 1.25"),
        (SHORT.replace('"IntervalTier"\n', '"TextTier"\n'), "not a whole TextGrid"),
        (LONG.format(name="x").replace("clicks 3", "words"), "'words' has points"),
        ("ooBinaryFile", "is not supported"),
        ("", "ends early"),
    ],
)
def test_damaged_and_incomplete_textgrids_are_rejected(text, message, tmp_path):
    path = tmp_path / "broken.TextGrid"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"broken.*{message}"):
        read_textgrid(path)


@pytest.mark.parametrize("count", [0, 4, 6, 900])
def test_a_textgrid_with_a_wrong_count_loses_no_words(count, tmp_path):
    path = tmp_path / "a.TextGrid"
    text = LONG.format(name="words").replace("size = 5", f"size = {count}")
    path.write_text(text.replace("size = 3\n", "size = 1\n"), encoding="utf-8")
    assert read_textgrid(path) == WORDS
    path.write_text(SHORT.replace("2.5\n5\n", f"2.5\n{count}\n"), encoding="utf-8")
    assert read_textgrid(path, "Words") == WORDS


def write_textgrid(path, intervals, start=0.0, end=9.0):
    marks = "".join(f'{low} {high} "{label}"\n' for label, low, high in intervals)
    head = f'"ooTextFile" "TextGrid" {start} {end} <exists> 1 "IntervalTier" "words" {start} {end} '
    path.write_text(f"{head}{len(intervals)}\n{marks}", encoding="utf-8")
    return path


def test_a_bad_interval_gets_the_time_between_its_neighbours(tmp_path):
    intervals = [("a", 1, 2), ("b", 3, 3), ("c", 4, 5), ("d", 9, 8), ("e", 6, 7), ("f", 6.5, 8)]
    path = write_textgrid(tmp_path / "a.TextGrid", [("z", -1, 0.5), *intervals])
    assert read_textgrid(path) == (
        ("z", 0, 0.5),
        ("a", 1, 2),
        ("b", 2, 4),
        ("c", 4, 5),
        ("d", 5, 6),
        ("e", 6, 6.75),
        ("f", 6.75, 8),
    )


def test_noise_labels_are_not_words_in_any_reader(tmp_path):
    labels = ["{LG}", "{NS}", "<unk>", "[laughter]", "(noise)", "<eps>", "[background noise]"]
    labels += ["*coughs*", "<SIL>", "(inaudible)", "[BLANK_AUDIO]", "{B_TRANS}"]
    transcript = ["yes", *labels, "(and", "so)", "no"]
    words = ("yes", "and", "so", "no")
    timed = [(label, place, place + 0.9) for place, label in enumerate(transcript)]
    codes = [("SIL", 20, 21), ("spn", 21, 22), ("#", 22, 23), ("sp", 23, 24)]
    grid = write_textgrid(tmp_path / "a.TextGrid", timed + codes, end=24)
    assert tuple(word for word, _, _ in read_textgrid(grid)) == words
    split_words = [(p, *times) for label, *times in timed for p in label.split()]
    assert tuple(word for word, _, _ in read_entries(tmp_path, *split_words, end=30)) == words
    assert tuple(normalise_words(" ".join(transcript))) == words
    assert normalise_words("sil sp (and a laugh) 3 < 4 > 2 *really*") == (
        "sil sp and a laugh 3 4 2 really".split()
    )


def test_a_known_text_fills_in_unknown_words(tmp_path):
    intervals = [("hello", 0, 1), ("<unk>", 1, 2), ("{LG}", 2, 3), ("and", 3, 4), ("spn", 4, 5)]
    entries = word_times.textgrid_entries(write_textgrid(tmp_path / "a.TextGrid", intervals))
    result = word_times.finish(entries, "a", text="Hello, Zbigniew [laughs] and Ny-Ålesund!")
    assert [word for word, _, _ in result.words] == "hello zbigniew and ny ålesund".split()
    assert result.words[1] == ("zbigniew", 1, 2) and result.words[4][2] == 5
    for text, unknown in (("", 2), ("hello and", 2), ("hello you and", 1), ("x", 2)):
        result = word_times.finish(entries, "a", text=text)
        assert (len(result.words), result.unknown) == (4 - unknown, unknown)


def test_files_that_cannot_be_read_as_text_are_rejected(tmp_path):
    (tmp_path / "a.TextGrid").write_bytes(b"caf\xe9 \xff")
    with pytest.raises(InputError, match="a.TextGrid.*UTF-8"):
        read_textgrid(tmp_path / "a.TextGrid")
    with pytest.raises(InputError, match="b.json.*cannot be read"):
        read_whisperx(tmp_path / "b.json")


def read_entries(tmp_path, *entries, start=0.0, end=3.0):
    names = ("word", "start", "end")
    words = [dict(zip(names, entry, strict=False)) for entry in entries]
    segment = {"text": "", "words": words}
    if start is not None:
        segment |= {"start": start, "end": end}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"segments": [segment], "word_segments": []}))
    return read_whisperx(path)


def test_whisperx_words_lose_case_and_punctuation(tmp_path):
    words = read_entries(tmp_path, (" Well,", 0.1, 0.5), ("-", 0.5, 0.6), ("co-op.", 1, 2))
    assert words == (("well", 0.1, 0.5), ("co", 1, 1.5), ("op", 1.5, 2))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("a", 0, 1), ("42",), ("1",), ("b", 2, 3)], [("42", 1, 1.6667), ("1", 1.6667, 2)]),
        ([("42",), ("b", 2, 3)], [("42", 0, 2)]),
        ([("a", 0, 1), ("42",)], [("42", 1, 3)]),
        ([("42",), ("17",)], [("42", 0, 1.5), ("17", 1.5, 3)]),
        ([("aa", 0, 1), ("42",), ("b", 1, 3)], [("aa", 0, 0.5), ("42", 0.5, 1)]),
        ([("42",), ("bb", 0, 3)], [("42", 0, 1.5), ("bb", 1.5, 3)]),
    ],
    ids=["between", "first", "last", "alone", "no gap after", "no gap before"],
)
def test_words_without_times_share_the_time_between_their_neighbours(entries, expected, tmp_path):
    words = read_entries(tmp_path, *entries)
    assert len(words) == len(entries)
    assert set(expected) <= set(words)


def test_a_segment_without_times_takes_those_of_its_words(tmp_path):
    words = read_entries(tmp_path, ("42",), ("bb", 1, 3), ("17",), start=None)
    assert words == (("42", 1, 2), ("bb", 2, 2.5), ("17", 2.5, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"segments": 3}',
        f'{{"segments": "{999 * "a"}"}}',
        '{"segments": [null]}',
        '{"segments": [{"words": 3}]}',
        '{"segments": [{"words": ["a"]}]}',
        '{"segments": [{"words": [], "text": 3}]}',
        '{"segments": [{"text": "no words"}]}',
        '{"segments": [{"words": [{"start": 1}]}]}',
        '{"segments": [{"words": [{"word": null, "start": 1, "end": 2}]}]}',
        '{"segments": [{"words": [{"word": "a", "start": "x", "end": 2}]}]}',
        '{"segments": [{"words": [{"word": "a"}]}]}',
        '{"segments": [{"words": [{"word": "a"}], "start": 1, "end": 1}]}',
        '{"segments": [{"words": [{"word": "a", "start": 2, "end": 1}]}]}',
        '{"segments": [{"words": [{"word": "a", "start": NaN, "end": 1}]}]}',
    ],
)
def test_json_that_is_not_whisperx_is_rejected(text, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match="bad.json") as raised:
        read_whisperx(tmp_path / "bad.json")
    assert not re.search("object has|attribute|None|iterable|'word'|a{99}", str(raised.value))


def segment(start, end, text, *words):
    items = [dict(zip(("word", "start", "end"), word, strict=False)) for word in words]
    return {"start": start, "end": end, "text": text, "words": items}


SO, IT, IS = ("so", 0.1, 0.4), ("it", 0.4, 0.6), ("is", 0.7, 0.9)
CASES = {
    "unaligned": (
        [segment(0, 1, "so it", SO, IT), segment(1, 2.5, " 1984."), segment(2.6, 3, "is")],
        [SO, IT, ("1984", 1, 2.5), ("is", 2.6, 3)],
    ),
    "unaligned alone": ([segment(0, 1.2, "In 1984")], [("in", 0, 0.4), ("1984", 0.4, 1.2)]),
    "no list of words": (
        [{"start": 1, "end": 2, "text": "so"}, segment(2, 3, "it", ("it", 2, 2.5))],
        [("so", 1, 2), ("it", 2, 2.5)],
    ),
    "missing in the list": (
        [segment(0, 1, "So, it is", SO, IS)],
        [SO, ("it", 0.4, 0.7), IS],
    ),
    "zero length first": (
        [segment(0, 2, "so it is", ("so", 0.1, 0.1), ("it", 0.1, 0.5), IS)],
        [("so", 0, 0.1), ("it", 0.1, 0.5), IS],
    ),
    "zero length in the middle": (
        [segment(0, 2, "so it is", SO, ("it", 0.4, 0.4), ("is", 0.4, 0.9))],
        [("so", 0.1, 0.25), ("it", 0.25, 0.4), ("is", 0.4, 0.9)],
    ),
    "end before start": (
        [segment(0, 2, "so it is", SO, ("it", 0.6, 0.5), IS)],
        [SO, ("it", 0.4, 0.7), IS],
    ),
    "not a number": (
        [segment(0, 2, "so it is", SO, ("it", float("nan"), 0.5), IS)],
        [SO, ("it", 0.4, 0.7), IS],
    ),
    "text for a time": (
        [segment(0, 2, "so it is", SO, ("it", "x", None), IS)],
        [SO, ("it", 0.4, 0.7), IS],
    ),
    "far away": (
        [segment(0, 2, "so it is", SO, ("it", 7, 7.5), IS)],
        [SO, ("it", 0.4, 0.7), IS],
    ),
    "overlap": (
        [segment(0, 2, "so it", SO, ("it", 0.5, 1.2)), segment(1, 3, "is", ("is", 1.0, 1.3))],
        [SO, ("it", 0.5, 1.1), ("is", 1.1, 1.3)],
    ),
    "segments out of order": (
        [segment(1, 2, "is", ("is", 1.1, 1.5)), segment(0, 1, "so it", SO, IT)],
        [SO, IT, ("is", 1.1, 1.5)],
    ),
    "empty segments": (
        [segment(0, 0, ""), segment(0, 1, "so", SO), segment(1, 2, " ...")],
        [SO],
    ),
    "whisper-timestamped": (
        [{"start": 0, "end": 1, "words": [{"text": "So,", "start": 0.1, "end": 0.4}]}],
        [SO],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_word_with_bad_times_is_kept_and_the_others_unchanged(name, tmp_path):
    segments, expected = CASES[name]
    (tmp_path / "a.json").write_text(json.dumps({"segments": segments}))
    assert read_whisperx(tmp_path / "a.json") == tuple(expected)


def test_words_without_segments_are_read(tmp_path):
    words = [{"word": "So,", "start": 0.1, "end": 0.4}]
    (tmp_path / "a.json").write_text(json.dumps({"word_segments": words}))
    assert read_whisperx(tmp_path / "a.json") == (SO,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unaligned_segment", "we met in 1984 and married"),
        ("zero_length", "so it is"),
        ("zero_length_middle", "so it is"),
        ("end_before_start", "so it is"),
        ("overlap_segments", "so it is it"),
    ],
)
def test_files_of_real_tools_keep_all_words(name, expected, cases):
    words = read_whisperx(cases / "whisperx" / f"{name}.json")
    assert [word for word, _, _ in words] == expected.split()
    assert check_words(words, name) == words


def test_repaired_words_are_counted(tmp_path):
    for name, count in (
        ("unaligned", 2),
        ("overlap", 1),
        ("zero length first", 1),
        ("empty segments", 0),
    ):
        (tmp_path / "a.json").write_text(json.dumps({"segments": CASES[name][0]}))
        entries = word_times.whisperx_entries(tmp_path / "a.json")
        assert word_times.finish(entries, "a").repaired == count, name


def test_times_of_another_recording_are_rejected():
    ordered = [Entry(f"w{i}", i, i + 0.9) for i in range(12)]
    assert fit_words(ordered, "x", 12.0).repaired == 0
    late = [entry._replace(end=99.0) if i == 3 else entry for i, entry in enumerate(ordered)]
    assert fit_words(late, "x", 12.0).words[3] == ("w3", 2.9, 4)
    for entries, seconds in ((ordered, 9.0), (ordered[::-1], None), (ordered[6:] + ordered, None)):
        with pytest.raises(InputError, match="^x: "):
            fit_words(entries, "x", seconds)
    lost = [Entry("a", 0, 1), Entry("b"), *ordered[::-1]]
    with pytest.raises(InputError, match="11 of 14 words contradict"):
        fit_words(lost, "x", 12.0)


numbers = st.one_of(st.none(), st.floats(-1, 5), st.sampled_from([0.0, 1.0, 9.0, float("nan")]))


@given(st.lists(st.tuples(numbers, numbers), max_size=8), st.sampled_from([None, 4.0]))
def test_fitted_words_are_valid_for_random_times(random_times, seconds):
    entries = [Entry(f"w{n}", start, end, 0.0, 4.0) for n, (start, end) in enumerate(random_times)]
    try:
        fitted = fit_words(entries, "x", seconds)
    except InputError:
        return
    assert [word for word, _, _ in fitted.words] == [entry.word for entry in entries]
    assert check_words(fitted.words, "x", seconds) == fitted.words


entries = st.tuples(st.sampled_from(["a", "bc", "7"]), st.booleans(), st.integers(0, 3))


@given(st.lists(entries, min_size=1, max_size=8))
def test_filled_times_are_in_order_for_random_words(tmp_path_factory, random_words):
    clock, words = 1.0, []
    for word, is_timed, gap in random_words:
        start, clock = clock + gap / 4, clock + gap / 4 + 0.5
        words.append((word, start, clock) if is_timed else (word,))
    folder = tmp_path_factory.getbasetemp()
    filled = read_entries(folder, *words, start=0.5, end=clock + 0.5)
    assert [word for word, _, _ in filled] == [word for word, *_ in words]
    times = [time for _, *pair in filled for time in pair]
    assert times == sorted(times) and all(start < end for _, start, end in filled)


def test_small_overlaps_are_trimmed_and_large_ones_rejected():
    words = (("a", 0, 1.0), ("b", 0.97, 2.04))
    assert check_words(words, "x", 2.0) == (("a", 0, 1.0), ("b", 1.0, 2.0))
    assert check_words(words, "x")[1] == ("b", 1.0, 2.04)
    for later, message in (
        (("b", 0.9, 2), "before the word before it ends"),
        (("b", 1, 2.1), "beyond the audio"),
        (("b", 1, 1), "does not end after"),
        (("b", 1, float("nan")), "does not end after"),
        (("b", 0.97, 0.99), "within the word before it"),
        (("b", -1, 2), "before the word before"),
    ):
        with pytest.raises(InputError, match=f"^x: the word 'b'.*{message}"):
            check_words((words[0], later), "x", 2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t stop, O'Neil's 'rock' dogs'!", ["don't", "stop", "o'neil's", "rock", "dogs"]),
        ("well-known — and/or 3rd", ["well", "known", "and", "or", "3rd"]),
        ("ÄRGER Ёлка हिन्दी ﬁne", ["ärger", "ёлка", "हिन्दी", "fine"]),
        ("co\u00adoperate _x_ ' ...", ["cooperate", "x"]),
        ("", []),
    ],
)
def test_words_keep_letters_and_inner_apostrophes(text, words):
    assert normalise_words(text) == words


def test_files_are_found_by_path_and_by_name(tmp_path):
    for name in ("a/1.json", "b/1.json", "b/2.5.json", "3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    files = find_files(tmp_path, ".json")
    assert set(files) == {"a/1", "b/1", "b/2.5", "2.5"}
    assert files["2.5"] == files["b/2.5"] == tmp_path / "b/2.5.json"
    with pytest.raises(InputError, match="TextGrid"):
        find_files(tmp_path, ".TextGrid")


def test_comments_in_a_textgrid_are_ignored(tmp_path):
    path = tmp_path / "a.TextGrid"
    write_textgrid(path, [("hi! there", 0, 4), ("you", 4, 9)])
    words = word_times.read_textgrid(path)
    lines = path.read_text().splitlines()
    path.write_text("".join(f'{line} ! line 3 "of" many\n' for line in lines))
    assert word_times.read_textgrid(path) == words
    assert len(words) == 3


def test_a_json_number_is_read_as_a_word(tmp_path):
    words = [{"word": "room", "start": 0, "end": 1}, {"word": 5, "start": 1, "end": 2}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"segments": [{"start": 0, "end": 2, "words": words}]}))
    assert word_times.read_whisperx(path) == (("room", 0, 1), ("5", 1, 2))


def test_missing_tiers_are_rejected(tmp_path):
    path = tmp_path / "a.TextGrid"
    head, sep, tail = SHORT.partition("<exists>\n")
    count = int(tail.split("\n")[0])
    path.write_text(head + sep + tail.replace(str(count), str(count + 2), 1))
    with pytest.raises(InputError, match=f"{count} of {count + 2} tiers"):
        read_textgrid(path)


def test_a_segment_without_words_and_text_is_rejected(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"segments": [{"start": 0, "end": 1}]}')
    with pytest.raises(InputError, match="neither words nor text"):
        read_whisperx(path)
