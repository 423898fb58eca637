"""A folder as a source: recordings, each with its text beside it, or texts.

What is neither is named once with counts, so that nothing is passed over in silence.
"""

import collections
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from spirit_jax import files
from spirit_jax.audio import SUFFIXES
from spirit_jax.data.items import Item
from spirit_jax.errors import InputError, InputWarning, LackError

NAMED = 3  # files that a notice names


def read_folder(folder: Path) -> Iterator[Item]:
    """The recordings of a folder and those in it with the .txt beside each, or its .txt files.

    Links to folders are followed, each folder once. Hidden files are left out.

    Raises:
      InputError: a folder in it cannot be read.
    """
    paths, skipped = list_files(folder)
    recordings = [path for path in paths if path.suffix.lower() in SUFFIXES]
    texts = {path for path in paths if path.suffix.lower() == ".txt"}
    stems = collections.Counter(path.with_suffix("") for path in recordings)
    unused = set(texts)
    with_text = 0
    for path in recordings:
        name = path.relative_to(folder).with_suffix("").as_posix()
        beside = next((t for t in _beside(path, ".txt", ".TXT") if t in texts), None)
        unused.discard(beside)
        with_text += beside is not None
        item = read_text_item(beside, name) if beside else Item(name)
        if stems[path.with_suffix("")] > 1:
            problem = f"{path}: other recordings have the same name and another suffix."
            name = path.relative_to(folder).as_posix()
            yield Item(name, audio=path, problem=problem)
        else:
            yield Item(name, path, item.text, problem=item.problem)
    others = [path for path in paths if path not in texts and path.suffix.lower() not in SUFFIXES]
    if not recordings:
        partners = {path.with_suffix(""): path for path in others}
        for path in sorted(texts):
            name = path.relative_to(folder).with_suffix("").as_posix()
            partner = partners.get(path.with_suffix(""))
            if partner is None:
                yield read_text_item(path, name)
            else:
                reason = f"{partner}: a {partner.suffix} file cannot be read as a recording"
                yield Item(name, problem=f"{reason}; convert it, such as to .flac.")
        unused = set()
    skipped.update(path.suffix or "without a suffix" for path in others)
    _say(folder, skipped, sorted(unused), len(recordings), with_text)


def read_text_item(path: Path, name: str) -> Item:
    """The item of a text file, its white space made single spaces."""
    try:
        if not path.is_file():
            return Item(name, problem=f"{path}: is not a file that can be read.")
        text = " ".join(files.read_text(path).split())
    except LackError:
        raise
    except InputError as error:
        return Item(name, problem=str(error))
    return Item(name, text=text, problem="" if text else f"{path}: is empty.")


def _beside(path: Path, *suffixes: str) -> list[Path]:
    return [path.with_suffix(suffix) for suffix in suffixes]


def list_files(folder: Path) -> tuple[list[Path], collections.Counter]:
    """All files of a folder that are not hidden, in order, and counts of what is left out."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({files.describe(error)}).") from error

    paths: list[Path] = []
    skipped: collections.Counter = collections.Counter()
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        seen.add(os.path.realpath(root))
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            if name.startswith("."):
                skipped["hidden"] += 1
            elif real in seen:
                skipped["link to a folder that is read already"] += 1
            else:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in names:
            if name.startswith("."):
                skipped["hidden"] += 1
            else:
                paths.append(Path(root, name))
    return sorted(paths), skipped


def _say(
    folder: Path,
    skipped: collections.Counter,
    unused: Sequence[Path],
    recordings: int,
    with_text: int,
) -> None:
    """Warns of what was not read, and of recordings without text among others with it."""
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
        warnings.warn(
            f"{folder}: skipped {skipped.total()} files: {kinds}.", InputWarning, stacklevel=1
        )
    if unused:
        some = ", ".join(str(path.relative_to(folder)) for path in unused[:NAMED])
        some += ", ..." if len(unused) > NAMED else ""
        reason = f"{len(unused)} texts belong to no recording and were not read: {some}."
        warnings.warn(f"{folder}: {reason}", InputWarning, stacklevel=1)
    if 0 < with_text < recordings:
        reason = f"{with_text} of {recordings} recordings have a text beside them, the others none."
        warnings.warn(f"{folder}: {reason}", InputWarning, stacklevel=1)
