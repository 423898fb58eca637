"""Characters that are written in several ways."""

import unicodedata

# Characters that are written for an apostrophe. NFKC would change some of them to a space.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07`\u00b4\u2032", "'"))


def compose(text: str) -> str:
    """A text in NFKC (no ligatures, no full width), with one form of the apostrophe."""
    return unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
