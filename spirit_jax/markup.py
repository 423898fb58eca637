"""The markup of prompt strings: markers and units in brackets, and escaped text.

A prompt string is text with tokens in it: `[Text]`, `[Speech]`, `[Hu5]`, `[Pi3]`, `[St7]`. A
backslash after the bracket escapes text that looks like a token: the prompt string `[\\Hu5]` is the
text `[Hu5]`, `[\\\\Hu5]` is the text `[\\Hu5]`, and so on. Anywhere else a backslash is an ordinary
character. `escape` gives the prompt string of a text.

A model may have other names of its tokens, such as `<text>` and `<Un5>` (see `Vocab.tokens`). Its
prompt strings are written with these names, and may be read with either. A `Part` has the name in
brackets in any case, so that only this module knows of other names.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping

# Names of tokens by what they are, with {} for the number of a unit.
NAMES = {
    "text": "[Text]",
    "speech": "[Speech]",
    "hubert": "[Hu{}]",
    "pitch": "[Pi{}]",
    "style": "[St{}]",
}
# A number has no leading zero, and at most nine digits, so that it fits in int32.
_NUMBER = "(?:0|[1-9][0-9]{0,8})"
UNIT = re.compile(rf"\[(Hu|Pi|St)({_NUMBER})\]")
MARKER = re.compile(r"\[(?:Text|Speech)\]")


@dataclasses.dataclass(frozen=True)
class Part:
    """A text or a token of a prompt string.

    Attributes:
      string: a text without escapes, or a token such as "[Hu5]".
      is_token: whether it is a token.
    """

    string: str
    is_token: bool = False


class Markup:
    """Reads and writes prompt strings.

    Attributes:
      unit_starts: how names of units begin, such as "[Hu".
    """

    def __init__(self, names: Mapping[str, str] = NAMES):
        """`names` are those of a model, by the keys of `NAMES`."""
        self._names = {NAMES[key]: name for key, name in names.items() if name != NAMES[key]}
        units = [name for name in (*NAMES.values(), *names.values()) if "{}" in name]
        self.unit_starts = tuple({name.partition("{}")[0] for name in units})
        all_names = sorted({*NAMES.values(), *self._names.values()})
        groups = itertools.groupby(all_names, key=lambda name: name[0])
        patterns = [
            rf"{re.escape(first)}(?P<escapes{i}>\\*)(?P<rest{i}>{'|'.join(map(_rest, group))})"
            for i, (first, group) in enumerate(groups)
        ]
        self._token = re.compile("|".join(patterns))

    def escape(self, text: str) -> str:
        """The prompt string of a text: whatever looks like a token gets a backslash."""
        return self._token.sub(lambda match: rf"{match[0][0]}\{match[0][1:]}", text)

    def parse(self, prompt: str) -> list[Part]:
        """The texts and tokens of a prompt string; no text is empty or follows another."""
        parts, text, end = [], "", 0
        for match in self._token.finditer(prompt):
            text += prompt[end : match.start()]
            end = match.end()
            group = match.lastgroup.removeprefix("rest")
            if match[f"escapes{group}"]:
                text += match[0][0] + match[0][2:]
                continue
            parts += [Part(text)] if text else []
            parts.append(Part(self._in_brackets(match[0]), is_token=True))
            text = ""
        text += prompt[end:]
        return parts + ([Part(text)] if text else [])

    def render(self, parts: Iterable[Part]) -> str:
        """The prompt string of parts; adjacent texts are escaped together."""
        prompt, text = [], []
        for part in parts:
            if not part.is_token:
                text.append(part.string)
                continue
            prompt += [self.escape("".join(text)), self.name_of(part.string)]
            text = []
        return "".join([*prompt, self.escape("".join(text))])

    def join(self, prompts: Iterable[str]) -> str:
        """The prompt string of prompt strings in order; texts of two never form a token."""
        return self.render(part for prompt in prompts for part in self.parse(prompt))

    def show(self, prompt: str) -> str:
        """A prompt string without escapes, for display."""
        return "".join(
            self.name_of(part.string) if part.is_token else part.string
            for part in self.parse(prompt)
        )

    def name_of(self, token: str) -> str:
        """The model's name of a token, such as "[Hu5]"."""
        if not self._names:
            return token
        unit = UNIT.fullmatch(token)
        template, number = (f"[{unit[1]}{{}}]", unit[2]) if unit else (token, "")
        return self._names.get(template, template).replace("{}", number)

    def _in_brackets(self, name: str) -> str:
        """The inverse of `name_of`; names in brackets stay."""
        for token, template in self._names.items():
            before, _, after = template.partition("{}")
            if name == template:
                return token
            number = name[len(before) : len(name) - len(after)]
            if name == f"{before}{number}{after}" and re.fullmatch(_NUMBER, number):
                return token.replace("{}", number)
        return name


def _rest(name: str) -> str:
    """A regular expression for a name without its first character."""
    return re.escape(name[1:]).replace(r"\{\}", _NUMBER)


BRACKETS = Markup()  # of Spirit LM
escape, parse, render = BRACKETS.escape, BRACKETS.parse, BRACKETS.render
join, show = BRACKETS.join, BRACKETS.show
