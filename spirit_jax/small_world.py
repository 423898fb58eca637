"""Text normalisation and request intents for the packaged models' domain.

`corpora.grammar` defines the sentences of the domain.
"""

import re
from collections.abc import Callable

from num2words import num2words

from spirit_jax.characters import compose

# The beginning of a request, and its action.
ACTIONS = {
    "turn on the": "activate",
    "turn off the": "deactivate",
    "open the": "open",
    "close the": "close",
    "turn up the": "increase",
    "turn down the": "decrease",
    "bring me the": "bring",
}
_REQUEST = re.compile(
    rf"(?:(?:please|can you) )?({'|'.join(ACTIONS)}) (\w+)(?: (?:in|from) the (\w+(?: \w+)?))?"
)
MONTHS = "january february march april may june july august september october november december"
_MONTH = "|".join(MONTHS.split())
LONGEST_NUMBER = 9  # digits; longer numbers are spelt digit by digit
SIGNS = {"&": "and", "+": "plus", "=": "is"}


def intent_of(text: str) -> str:
    """The intent of a request: action, object and, if given, place; "" for other texts."""
    match = _REQUEST.fullmatch(text)
    if not match:
        return ""
    return " ".join([ACTIONS[match[1]], *filter(None, match.groups()[1:])])


def read_out(text: str) -> tuple[str, list[str]]:
    """Normalises a text to the words that are spoken.

    Numbers, ordinals, times of day, days of a month, percentages and degrees become words; the
    result is in lower case, without punctuation.

    Returns:
      (lower-case words of letters and apostrophes, separated by single spaces; the parts of the
      text that cannot be converted, which are not among the words).
    """
    text = compose(text).lower()
    for pattern, read in _RULES:
        text = pattern.sub(read, text)
    words, unread = [], []
    for part in text.split():
        part = part.strip(".,;:!?\"'()[]{}<>\u2026\u2013\u2014\u201c\u201d-")
        pieces = part.split("-")
        if all(re.fullmatch(r"[a-z]+(?:'[a-z]+)*", piece) for piece in pieces):
            words += pieces
        elif part:
            unread.append(part)
    return " ".join(words), list(dict.fromkeys(unread))


def _words(number: int | str, to: str = "cardinal") -> str:
    return re.sub("[-, ]+", " ", num2words(number, to=to))


def _number(match: re.Match) -> str:
    digits = match["whole"].replace(",", "")
    if len(digits) > LONGEST_NUMBER or (digits[0] == "0" and len(digits) > 1):
        words = " ".join(_words(int(digit)) for digit in digits)
    else:
        words = _words(int(digits))
    if match["part"]:
        words += " point " + " ".join(_words(int(digit)) for digit in match["part"][1:])
    unit = {"%": " percent", "\u00b0": " degrees"}.get((match["unit"] or " ")[0], "")
    return f" {'minus ' if match['sign'] else ''}{words}{unit} "


def _clock(match: re.Match) -> str:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if hour > 23 or minute > 59:
        return match[0]
    quarters = {15: "a quarter", 30: "half", 45: "a quarter"}
    this, following = (_words((h - 1) % 12 + 1) for h in (hour, hour + 1))
    if minute == 0:
        words = f"{this} o'clock"
    elif minute <= 30:
        words = f"{quarters.get(minute) or _words(minute)} past {this}"
    else:
        words = f"{quarters.get(minute) or _words(60 - minute)} to {following}"
    late = "in the afternoon" if hour % 12 < 6 else "in the evening"
    half = {"a": "in the morning", "p": late}.get((match["half"] or " ")[0], "")
    return f" {words} {half} "


# A number is surrounded by spaces, brackets, quotes, punctuation, + or =.
_START = r"(?<![^\s(\[{\"'+=\u201c\u2018])"
_END = r"(?![^\s)\]}\"'+=.,;:!?\u2026\u201d]|[.,:][0-9])"
_DAY = r"(?P<day>0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
_RULES: list[tuple[re.Pattern, Callable[[re.Match], str]]] = [
    # 3:30, 3:30 pm, 3 pm
    (re.compile(_START + r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})"
                r"(?:\s*(?P<half>[ap])(?:m\b|\.m\.))?" + _END), _clock),
    (re.compile(_START + r"(?P<hour>[0-9]{1,2})(?P<minute>)\s*(?P<half>[ap])(?:m\b|\.m\.)" + _END),
     _clock),
    # may 5, may 5th; 5 may, 5th of may
    (re.compile(rf"\b(?P<month>{_MONTH})\s+{_DAY}{_END}(?!%)"),
     lambda match: f" {match['month']} {_nth(match)} "),
    (re.compile(rf"(?:\bthe\s+)?{_START}{_DAY}(?:\s+of)?\s+(?P<month>{_MONTH})\b"),
     lambda match: f" the {_nth(match)} of {match['month']} "),
    # 3rd
    (re.compile(_START + r"(?P<day>[0-9]{1,9})(?:st|nd|rd|th)" + _END),
     lambda match: f" {_nth(match)} "),
    (re.compile(r"(?<=[0-9])\s+[-\u2212]\s+(?=[0-9])"), lambda match: " minus "),
    # 42, -5, 1,000, 3.5, 20%, 5 °C; 2+2
    (re.compile(_START + r"(?P<sign>-|\u2212)?(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})"
                r"(?P<part>\.[0-9]{1,10})?(?:\s*(?P<unit>%|\u00b0[cf]?))?" + _END), _number),
    (re.compile(r"[&+=]"), lambda match: f" {SIGNS[match[0]]} "),
]  # fmt: skip


def _nth(match: re.Match) -> str:
    return _words(int(match["day"]), "ordinal")
