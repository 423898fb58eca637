"""Files that are whole or absent."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes lines of JSON."""
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes a text, and makes the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
