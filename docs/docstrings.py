"""A Griffe extension for the API pages: names that share a description get one each.

Docstrings have lines such as "data, fsdp, tensor: number of devices along each axis.", which Griffe
reads as one parameter of that name.
"""

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)$", flags=re.MULTILINE)


class SplitNames(griffe.Extension):
    """Repeats a description that parameters or attributes share."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of each object that Griffe has read."""
        if obj.docstring:
            obj.docstring.value = SHARED.sub(_split, obj.docstring.value)


def _split(line: re.Match[str]) -> str:
    return "\n".join(f"{line[1]}{name}: {line[3]}" for name in line[2].split(", "))
