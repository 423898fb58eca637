"""The markup of prompt strings: markers and units in brackets, and escaped text.

A prompt string is text with tokens in it: `[Text]`, `[Speech]`, `[Hu5]`, `[Pi3]`, `[St7]`. A
backslash after the bracket escapes text that looks like a token: the prompt string `[\\Hu5]` is the
text `[Hu5]`, `[\\\\Hu5]` is the text `[\\Hu5]`, and so on. Anywhere else a backslash is an ordinary
character. `escape` gives the prompt string of a text.
"""

import dataclasses
import re
from collections.abc import Iterable

# A number has no leading zero, and at most nine digits, so that it fits in int32.
UNIT = re.compile(r"\[(Hu|Pi|St)(0|[1-9][0-9]{0,8})\]")
MARKER = re.compile(r"\[(?:Text|Speech)\]")
_INSIDE = rf"(?:{UNIT.pattern}|{MARKER.pattern})".replace(r"\[", "")
_TOKEN = re.compile(rf"\[(?P<escapes>\\*)(?={_INSIDE})(?P<inside>[^\]]*\])")


@dataclasses.dataclass(frozen=True)
class Part:
    """A text or a token of a prompt string.

    Attributes:
      string: a text without escapes, or a token such as "[Hu5]".
      is_token: whether it is a token.
    """

    string: str
    is_token: bool = False


def escape(text: str) -> str:
    """The prompt string of a text: whatever looks like a token gets a backslash."""
    return _TOKEN.sub(r"[\\\g<escapes>\g<inside>", text)


def parse(prompt: str) -> list[Part]:
    """The texts and tokens of a prompt string, in order; no text is empty or follows another."""
    parts, text, end = [], "", 0
    for match in _TOKEN.finditer(prompt):
        text += prompt[end : match.start()]
        end = match.end()
        if match["escapes"]:
            text += f"[{match['escapes'][1:]}{match['inside']}"
            continue
        parts += [Part(text)] if text else []
        parts.append(Part(match[0], is_token=True))
        text = ""
    text += prompt[end:]
    return parts + ([Part(text)] if text else [])


def render(parts: Iterable[Part]) -> str:
    """The prompt string of parts; adjacent texts are escaped together."""
    prompt, text = [], []
    for part in parts:
        if not part.is_token:
            text.append(part.string)
            continue
        prompt += [escape("".join(text)), part.string]
        text = []
    return "".join([*prompt, escape("".join(text))])


def join(prompts: Iterable[str]) -> str:
    """The prompt string of prompt strings one after another; texts of two never form a token."""
    return render(part for prompt in prompts for part in parse(prompt))


def show(prompt: str) -> str:
    """A prompt string without escapes, for display."""
    return "".join(part.string for part in parse(prompt))
