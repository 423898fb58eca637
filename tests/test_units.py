"""Units and their strings: merging by time, parsing, splitting, and planning outputs."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spirit_jax import units
from spirit_jax.errors import InputError
from spirit_jax.units import COMMON_STYLE, Piece, Spoken, Units, build_prompt, plan_outputs, split
from spirit_jax.vocab import Modality

TEXT, SPEECH, ARBITRARY = Modality

# Text that resembles units and markers, and any other text.
FRAGMENTS = [
    "[Hu1]",
    "[Hu500]",
    "[Pi3]",
    "[St71]",
    "[Text]",
    "[Speech]",
    "[",
    "]",
    "[Hu",
    "[Te",
    "xt]",
]
FRAGMENTS += [
    "12",
    "٣",
    "\n",
    " ",
    "Hu",
    "[Hu99999999999999999999]",
    "[Hu٣]",
    "[Hu-1]",
    "[]",
    "\0",
    "é",
]
near_units = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)

hubert_units = st.lists(st.integers(0, 500), max_size=60)
pitch_units = st.lists(st.integers(0, 63), max_size=30)
style_units = st.lists(st.integers(0, 99), max_size=4)


def run_of(count, kind="Hu"):
    return "".join(f"[{kind}{7 * i}]" for i in range(count))


def without_repeats(stream):
    return [unit for i, unit in enumerate(stream) if i == 0 or unit != stream[i - 1]]


# Streams to strings.


def test_dedup_keeps_the_first_of_each_run():
    assert units.dedup(np.array([5, 5, 7, 7, 7, 5])).tolist() == [0, 2, 5]
    assert units.dedup(np.array([], np.int32)).tolist() == []


def test_streams_are_merged_by_time_with_ties_in_order_style_pitch_hubert():
    # Hu at 0 and 0.04 s, Pi at 0 and 0.08 s, St at 0 and 1 s.
    assert units.to_string(Units([1, 2], [3, 4], [5, 6])) == "[St5][Pi3][Hu1][Hu2][Pi4][St6]"


def test_repeats_are_dropped_from_hubert_and_pitch_but_not_from_style():
    string = units.to_string(Units([1, 1, 1, 2], [3, 3, 4], [5, 5]))
    # The second Hu is at 0.12 s and the second Pi at 0.16 s, the time of the first of their runs.
    assert string == "[St5][Pi3][Hu1][Hu2][Pi4][St5]"


def test_phonetic_units_are_timed_at_24_99_a_second():
    # Before the style of second 100 there are 2,499 units, and 2,500 if the rate were 25.
    hubert, style = np.arange(2_502) % 2, np.arange(102) % 100
    string = units.to_string(Units(hubert, None, style))
    tokens = re.findall(r"\[(\w\w)\d+\]", string)
    second_100 = [i for i, token in enumerate(tokens) if token == "St"][100]
    assert tokens[:second_100].count("Hu") == 2_499


def test_base_units_write_phonetic_units_only():
    assert units.to_string(Units([1, 1, 2])) == "[Hu1][Hu2]"


def test_empty_units_give_an_empty_string():
    assert units.to_string(Units([], [], [])) == ""


# Strings to streams.


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("[Hu1]", {"hubert": [1]}),
        ("", {"hubert": []}),
        ("[Hu5][Hu5][Pi3][Hu7][St9][Hu8]", dict(hubert=[5, 5, 7, 8], pitch=[3] * 4, style=[9] * 4)),
        ("[St1][Hu5][St2][Hu6]", {"hubert": [5, 6], "style": [1, 2]}),
        ("[Pi1][Hu5][Pi2][Hu6]", dict(hubert=[5, 6], pitch=[1, 2], style=[COMMON_STYLE] * 2)),
        ("[Pi4][St2]", {"hubert": [], "pitch": [], "style": []}),
        ("[Hu5][Hu6][Pi2][Hu7][Pi3]", dict(hubert=[5, 6, 7], pitch=[2] * 3, style=[71] * 3)),
        (" [Speech][Hu1]\n[Hu2] [Text]", {"hubert": [1, 2]}),
    ],
)
def test_every_phonetic_unit_takes_the_latest_pitch_and_style(string, expected):
    assert units.from_string(string).to_dict() == expected | {"timed": False}


@pytest.mark.parametrize(
    "invalid",
    ["[Hu]", "[Hu-1]", "[hu1]", "[Hu٣]", "[Hu99999999999999999999]", "hello", "[", "[Hu 1]"],
)
def test_strings_that_are_not_units_are_rejected(invalid):
    with pytest.raises(InputError, match=re.escape(invalid)) as error:
        units.from_string(f"[Hu1]{invalid}[Pi2]")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("string", ["[Hu[Text]1]", "[Te[Hu1]xt]", "[Hu[Hu1]2]"])
def test_removing_units_does_not_form_new_ones(string):
    with pytest.raises(InputError):
        units.from_string(string)


@settings(deadline=None)
@given(near_units)
def test_random_strings_give_units_or_an_input_error(string):
    try:
        parsed = units.from_string(string)
    except InputError as error:
        assert "is not a unit" in str(error)
    else:
        remainder = re.sub(r"\[(Hu|Pi|St)[0-9]+\]|\[Text\]|\[Speech\]", "", string)
        assert not remainder.strip()
        assert len(parsed) == string.count("[Hu")


@settings(deadline=None)
@given(hubert_units, st.none() | pitch_units, st.none() | style_units)
def test_parsing_a_unit_string_gives_the_deduplicated_hubert_units(hubert, pitch, style):
    string = units.to_string(Units(hubert, pitch, style))
    parsed = units.from_string(string)
    assert parsed.hubert.tolist() == without_repeats(hubert)
    assert string.count("[Pi") == len(without_repeats(pitch or []))
    assert string.count("[St") == len(style or [])
    for stream in (parsed.pitch, parsed.style):
        assert stream is None or len(stream) == len(parsed)
    assert (parsed.pitch is None) == (not pitch)
    assert (parsed.style is None) == (not pitch and not style)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["[Hu1]", "[Hu2]", "[Pi3]", "[Pi4]", "[St5]", "[St6]"]), max_size=12)
)
def test_units_parsed_from_a_string_survive_a_round_trip(tokens):
    parsed = units.from_string("".join(tokens))
    if len(parsed):
        assert units.from_string(units.to_string(parsed)) == parsed


def test_units_parsed_from_a_string_are_not_merged_by_time():
    string = "[St5][Pi1][Hu1][Pi2][Hu2][Pi3][St6][Hu3]"
    assert units.to_string(units.from_string(string)) == string.replace("[Pi3][St6]", "[St6][Pi3]")


# The streams themselves.


def test_streams_are_int32_rows_and_equal_by_value():
    value = Units([1, 2], np.array([3], np.int64), ())
    assert value.hubert.dtype == value.pitch.dtype == value.style.dtype == np.int32
    assert len(value) == 2
    assert Units.from_dict(value.to_dict()) == value
    assert value != Units([1, 2], [3])
    assert value != Units([1, 2], [4], [])
    assert json.loads(json.dumps(value.to_dict())) == {"hubert": [1, 2], "pitch": [3], "style": []}


def test_units_parsed_from_a_string_are_untimed():
    timed, of_string = Units([7], [3], [1]), units.from_string("[St1][Pi3][Hu7]")
    assert (timed.timed, of_string.timed) == (True, False)
    assert timed != of_string
    assert Units.from_dict(json.loads(json.dumps(of_string.to_dict()))) == of_string
    with pytest.raises(InputError, match="2 pitch units for 1 phonetic units"):
        Units([7], [3, 4], timed=False)


@pytest.mark.parametrize("stream", [[[1, 2]], [0.5], 3, "12", [[1], [1, 2]], [2**40], [None]])
def test_invalid_streams_are_rejected(stream):
    with pytest.raises(InputError, match="pitch"):
        Units([1], stream)


@pytest.mark.parametrize("values", [[1], "hubert", {"hubert": [1], "ptch": [2]}, {"hubert": "a"}])
def test_invalid_mappings_are_rejected(values):
    with pytest.raises(InputError, match="nits"):
        Units.from_dict(values)


def test_units_and_strings_of_wrong_values_are_rejected():
    with pytest.raises(InputError, match="no pitch unit -2"):
        units.to_string(Units([1], [3, -2]))
    with pytest.raises(InputError, match="unit string was expected, not list"):
        units.from_string(["[Hu1]"])


# Strings with text and speech.


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("", []),
        ("[Text][Speech]", []),
        ("abc[]", [(TEXT, "abc[]")]),
        ("[Hu5]", [(SPEECH, "[Hu5]")]),
        ("a[Hu5][St1]b[", [(TEXT, "a"), (SPEECH, "[Hu5][St1]"), (TEXT, "b[")]),
        ("x[Text]y", [(TEXT, "xy")]),
        ("[Hu1][Speech][Hu2]", [(SPEECH, "[Hu1][Hu2]")]),
        ("[Hu1] [Hu2]", [(SPEECH, "[Hu1]"), (TEXT, " "), (SPEECH, "[Hu2]")]),
        ("[[Hu1]]", [(TEXT, "["), (SPEECH, "[Hu1]"), (TEXT, "]")]),
        ("[Hu٣][Hu99999999999999999999]", [(TEXT, "[Hu٣][Hu99999999999999999999]")]),
        (r"a[\Hu5][Hu5][\Text]", [(TEXT, "a[Hu5]"), (SPEECH, "[Hu5]"), (TEXT, "[Text]")]),
        ("[Hu05]", [(TEXT, "[Hu05]")]),
    ],
)
def test_split(string, expected):
    assert split(string) == [Piece(*piece) for piece in expected]


@settings(deadline=None)
@given(near_units)
def test_split_drops_only_markers_and_alternates_modality(string):
    pieces = split(string)
    assert "".join(piece.content for piece in pieces) == re.sub(r"\[(Text|Speech)\]", "", string)
    for piece, after in zip(pieces, pieces[1:], strict=False):
        assert piece.modality is not after.modality
    for piece in pieces:
        assert piece.content
        if piece.modality is SPEECH:
            units.from_string(piece.content)


# Prompts.


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        ([], ARBITRARY, ""),
        ([], SPEECH, "[Speech]"),
        ([(TEXT, "a")], ARBITRARY, "[Text]a"),
        ([(TEXT, "a")], TEXT, "[Text]a"),
        ([(TEXT, "a")], SPEECH, "[Text]a[Speech]"),
        ([(SPEECH, "[Hu1]")], TEXT, "[Speech][Hu1][Text]"),
        ([(TEXT, "a"), (TEXT, " b"), (SPEECH, "[Hu1]")], SPEECH, "[Text]a b[Speech][Hu1]"),
        (
            [(TEXT, "[Hu1]"), (SPEECH, "[Hu1]"), (TEXT, "["), (TEXT, "Text]")],
            TEXT,
            r"[Text][\Hu1][Speech][Hu1][Text][\Text]",
        ),
        (
            [(SPEECH, "[Hu1]"), (TEXT, "a"), (SPEECH, "[Hu2]")],
            ARBITRARY,
            "[Speech][Hu1][Text]a[Speech][Hu2]",
        ),
    ],
)
def test_prompts_have_markers_where_the_modality_changes(inputs, output, expected):
    assert build_prompt(inputs, output) == expected


text_content = st.sampled_from(["[Hu5]", "[Text]", "[", "Hu5]", "\\"]) | st.text(
    min_size=1, max_size=5
)
speech_content = st.integers(1, 4).map(run_of)
prompt_items = st.tuples(st.just(TEXT), text_content) | st.tuples(st.just(SPEECH), speech_content)


@settings(deadline=None)
@given(st.lists(prompt_items, max_size=6), st.sampled_from(Modality))
def test_a_prompt_splits_into_its_inputs(inputs, output):
    joined = []
    for modality, content in inputs:
        if joined and joined[-1].modality is modality:
            content = joined.pop().content + content
        joined.append(Piece(modality, content))
    assert split(build_prompt(inputs, output)) == joined


# Outputs.


def test_text_is_stripped_only_at_the_ends_of_a_generation():
    outputs = plan_outputs("[Text]hello", f"  a {run_of(24)} b ")
    assert outputs == ["a ", Spoken(run_of(24)), " b"]


@pytest.mark.parametrize(("count", "is_output"), [(23, False), (24, True)])
def test_short_speech_after_text_is_dropped(count, is_output):
    expected = ["so", *([Spoken(run_of(count))] if is_output else []), "on"]
    assert plan_outputs("[Text]hello", f"so[Speech]{run_of(count)}[Text]on") == expected


def test_short_speech_at_the_start_is_kept():
    assert plan_outputs("[Text]hello", "[Speech]" + run_of(1)) == [Spoken(run_of(1))]
    assert plan_outputs("[Text]hello[Speech]", run_of(1)) == [Spoken(run_of(1))]
    assert plan_outputs("[Speech][Hu1][Text]", run_of(1)) == [Spoken(run_of(1))]


def test_continued_speech_includes_the_last_run_of_the_prompt():
    prompt = "[Speech][Hu9][Text]a[Speech][St1]" + run_of(5)
    assert plan_outputs(prompt, run_of(24)) == [
        Spoken("[St1]" + run_of(5) + run_of(24), skip=5 / 30)  # 5 of the 5 + 24 + 1
    ]
    assert plan_outputs(prompt, run_of(23)) == []
    assert plan_outputs(prompt, f"b[Speech]{run_of(24)}") == ["b", Spoken(run_of(24))]
    (short,) = plan_outputs(prompt, run_of(3), least=3)
    assert short.content.endswith(run_of(3)) and 0 < short.skip < 1
    assert plan_outputs(prompt, run_of(2), least=3) == []


def test_speech_without_phonetic_units_is_dropped():
    assert plan_outputs("", "[St1][Pi2]") == []
    assert plan_outputs("", " ") == []


@settings(deadline=None)
@given(near_units, near_units)
def test_random_generations_have_valid_outputs(prompt, generated):
    for output in plan_outputs(prompt, generated):
        assert output
        if isinstance(output, Spoken):
            assert 0 <= output.skip < 1
            assert len(units.from_string(output.content))


# Results of the release.


@pytest.fixture(scope="module", params=["base", "expressive"])
def expected(request, golden):
    return json.loads((golden / "expected.json").read_text())[f"spirit-lm-{request.param}-7b"]


def numbers(row):
    return None if row is None else np.array(row.split(), np.int64)


def as_units(streams, timed=True):
    arrays = (numbers(streams.get(name)) for name in ("hubert", "pitch", "style"))
    return Units(*arrays, timed=timed)


def test_unit_strings_match_the_release(expected):
    assert expected["audio"]
    for streams in expected["audio"].values():
        assert units.to_string(as_units(streams)) == streams["string"]


def test_merging_long_streams_matches_the_release(expected):
    (case,) = expected["merge"]
    streams = as_units(case)
    assert len(streams) > 100 * 25
    expected_units = streams if "[Pi" in case["string"] else Units(streams.hubert)
    assert units.to_string(expected_units) == case["string"]


def test_parsed_units_match_the_release(expected):
    for string, streams in expected["units_of"]:
        assert units.from_string(string) == as_units(streams, timed=False)


def test_split_pieces_match_the_release(expected):
    for string, pieces in expected["parse"]:
        assert [[piece.content, piece.modality[0]] for piece in split(string)] == pieces


def test_planned_outputs_match_the_release(expected):
    for case in expected["decode_rules"]:
        kinds = [
            "SPEECH" if isinstance(output, Spoken) else output
            for output in plan_outputs(case["prompt"], case["generated"])
        ]
        assert kinds == [o["text"] if o["type"] == "TEXT" else o["type"] for o in case["outputs"]]


def test_prompts_match_the_release(expected):
    for case in expected["gen"]:
        pieces = [(piece.modality, piece.content) for piece in split(case["prompt"])]
        assert [modality.name for modality, _ in pieces] == case["inputs"]
        assert build_prompt(pieces, Modality.of(case["output_modality"])) == case["prompt"]


def test_runs_of_equal_units():
    assert units.runs(np.array([5, 5, 7, 5])) == [(0, 2, 5), (2, 1, 7), (3, 1, 5)]
    assert units.runs(np.zeros(0, np.int32)) == []
