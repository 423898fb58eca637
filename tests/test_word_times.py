"""Word times: reading MFA's and WhisperX's files, and the rules that all word times keep."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
def test_textgrids_of_every_form_are_read(text, encoding, tmp_path):
    path = tmp_path / "a.TextGrid"
    be = encoding == "utf-16-be-bom"
    path.write_bytes(("\ufeff" + text).encode("utf-16-be") if be else text.encode(encoding))
    assert read_textgrid(path) == WORDS
    assert read_textgrid(path, "phones" if "phones" in text else "words") in ((), WORDS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LONG.format(name="utterance"), "no tiers 'words' among utterance, phones"),
        (LONG.format(name="a - words").replace("phones", "b - words"), "2 tiers 'words'"),
        (SHORT[: SHORT.index("1.25")], "ends early"),
        (SHORT.replace('"sp"', "7"), "not a whole TextGrid"),
        (SHORT.replace("TextGrid", "PitchTier"), "header"),
        (SHORT.replace("0.5\n1\n", "0.5\n0.5\n"), "does not end after it starts"),
        ("ooBinaryFile", "ends early"),
        ("", "ends early"),
    ],
)
def test_a_textgrid_that_is_not_whole_is_named(text, named, tmp_path):
    path = tmp_path / "spoilt.TextGrid"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"spoilt.*{named}"):
        read_textgrid(path)


def test_files_that_are_no_text_are_named(tmp_path):
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
def test_words_without_times_take_what_their_neighbours_leave(entries, expected, tmp_path):
    words = read_entries(tmp_path, *entries)
    assert len(words) == len(entries)
    assert set(expected) <= set(words)


def test_a_segment_without_times_leans_on_its_words(tmp_path):
    words = read_entries(tmp_path, ("42",), ("bb", 1, 3), ("17",), start=None)
    assert words == (("42", 1, 2), ("bb", 2, 2.5), ("17", 2.5, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"segments": 3}',
        '{"segments": [{"text": "no words"}]}',
        '{"segments": [{"words": [{"start": 1}]}]}',
        '{"segments": [{"words": [{"word": 3, "start": 1, "end": 2}]}]}',
        '{"segments": [{"words": [{"word": "a", "start": "x", "end": 2}]}]}',
        '{"segments": [{"words": [{"word": "a"}]}]}',
        '{"segments": [{"words": [{"word": "a"}], "start": 1, "end": 1}]}',
        '{"segments": [{"words": [{"word": "a", "start": 2, "end": 1}]}]}',
        '{"segments": [{"words": [{"word": "a", "start": NaN, "end": 1}]}]}',
    ],
)
def test_json_that_is_not_whisperx_is_named(text, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match="bad.json"):
        read_whisperx(tmp_path / "bad.json")


entries = st.tuples(st.sampled_from(["a", "bc", "7"]), st.booleans(), st.integers(0, 3))


@given(st.lists(entries, min_size=1, max_size=8))
def test_filled_times_are_always_in_order(tmp_path_factory, drawn):
    clock, words = 1.0, []
    for word, is_timed, gap in drawn:
        start, clock = clock + gap / 4, clock + gap / 4 + 0.5
        words.append((word, start, clock) if is_timed else (word,))
    folder = tmp_path_factory.getbasetemp()
    read = read_entries(folder, *words, start=0.5, end=clock + 0.5)
    assert [word for word, _, _ in read] == [word for word, *_ in words]
    times = [time for _, *pair in read for time in pair]
    assert times == sorted(times) and all(start < end for _, start, end in read)


def test_small_overlaps_are_cut_and_large_ones_refused():
    words = (("a", 0, 1.0), ("b", 0.97, 2.04))
    assert check_words(words, "x", 2.0) == (("a", 0, 1.0), ("b", 1.0, 2.0))
    assert check_words(words, "x")[1] == ("b", 1.0, 2.04)
    for later, named in (
        (("b", 0.9, 2), "before the word before it ends"),
        (("b", 1, 2.1), "beyond the audio"),
        (("b", 1, 1), "does not end after"),
        (("b", 1, float("nan")), "does not end after"),
        (("b", 0.97, 0.99), "no time of its own"),
        (("b", -1, 2), "before the word before"),
    ):
        with pytest.raises(InputError, match=f"^x: the word 'b'.*{named}"):
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
    found = find_files(tmp_path, ".json")
    assert set(found) == {"a/1", "b/1", "b/2.5", "2.5"}
    assert found["2.5"] == found["b/2.5"] == tmp_path / "b/2.5.json"
    with pytest.raises(InputError, match="TextGrid"):
        find_files(tmp_path, ".TextGrid")
