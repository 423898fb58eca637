"""The markup of prompt strings: tokens, text, and escaping."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spirit_jax import markup
from spirit_jax.markup import Part, escape, join, parse, render, show

FRAGMENTS = [
    "[Hu5]",
    "[Text]",
    "[Speech]",
    "[Pi0]",
    "[",
    "]",
    "\\",
    "[\\",
    "Hu5]",
    "Speech]",
    "a",
    " ",
]
strings = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", []),
        ("a", [Part("a")]),
        ("[Text]a[Hu5]", [Part("[Text]", True), Part("a"), Part("[Hu5]", True)]),
        (r"a[\Hu5]b", [Part("a[Hu5]b")]),
        (r"[\\Speech]", [Part(r"[\Speech]")]),
        (r"[\\\St9][St9]", [Part(r"[\\St9]"), Part("[St9]", True)]),
        (r"[\w]\[Hu] [\Hu]", [Part(r"[\w]\[Hu] [\Hu]")]),
        (r"\[Hu5]", [Part("\\"), Part("[Hu5]", True)]),
        ("[[Hu0]]", [Part("["), Part("[Hu0]", True), Part("]")]),
        ("[Hu01][Hu٣][hu1][Hu1234567890]", [Part("[Hu01][Hu٣][hu1][Hu1234567890]")]),
    ],
)
def test_parts_of_a_prompt_string(prompt, parts):
    assert parse(prompt) == parts
    assert render(parts) == prompt
    assert show(prompt) == "".join(part.string for part in parts)


def test_adjacent_texts_do_not_form_a_token():
    assert render([Part("[Hu"), Part("5]")]) == r"[\Hu5]"
    assert render([Part("["), Part("[Text]", True), Part("Text]")]) == "[[Text]Text]"
    assert join(["[Text]a [Hu", "5] b", "[Hu5]"]) == r"[Text]a [\Hu5] b[Hu5]"


@settings(deadline=None)
@given(strings)
def test_escaping_a_text_gives_one_text_part(text):
    assert parse(escape(text)) == ([Part(text)] if text else [])
    assert escape(text) == text or any(part.is_token for part in parse(text)) or "\\" in text


@settings(deadline=None)
@given(strings)
def test_parsing_and_rendering_a_string_gives_it_back(prompt):
    parts = parse(prompt)
    assert render(parts) == prompt
    assert all(part.string for part in parts)
    assert all(a.is_token or b.is_token for a, b in zip(parts, parts[1:], strict=False))


def test_other_names_are_read_beside_those_in_brackets():
    notation = markup.Markup({"hubert": "<Un{}>", "speech": "<speech>", "text": "<text>"})
    string = "<text> it <speech><Un7>[Hu3]<Un07> <\\Un7> [\\Text]"
    parts = notation.parse(string)
    assert [part.string for part in parts if part.is_token] == [
        "[Text]",
        "[Speech]",
        "[Hu7]",
        "[Hu3]",
    ]
    assert parts[-1].string == "<Un07> <Un7> [Text]"
    written = "<text> it <speech><Un7><Un3><Un07> <\\Un7> [\\Text]"
    assert notation.render(parts) == written
    assert notation.show(string) == "<text> it <speech><Un7><Un3><Un07> <Un7> [Text]"
    for text in ("<Un7>", "<\\Un7>", "[Hu5]<text>", "<Un7", "<text"):
        assert notation.parse(notation.escape(text)) == [markup.Part(text)]
    assert markup.parse("<text><Un7>") == [markup.Part("<text><Un7>")]
