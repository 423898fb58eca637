"""Reads the items of a folder: recordings, optionally with texts of the same name, or texts.

Other files are skipped, and counted in a warning.
"""

import collections
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from spirit_jax import files
from spirit_jax.audio import SUFFIXES
from spirit_jax.data.items import Item
from spirit_jax.errors import InputError, InputWarning, ResourceError, plural

NAMED = 3  # largest number of files that a warning names


def read_folder(folder: Path) -> Iterator[Item]:
    """The recordings of a folder and its subfolders with their texts, or its .txt files.

    The text of a recording is in a .txt file with the same name. Links to folders are followed,
    each folder once. Hidden files are skipped.

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
        candidates = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
        text_path = next((candidate for candidate in candidates if candidate in texts), None)
        unused.discard(text_path)
        with_text += text_path is not None
        item = read_text_item(text_path, name) if text_path else Item(name)
        if stems[path.with_suffix("")] > 1:
            problem = f"{path}: other recordings have the same name and another suffix."
            name = path.relative_to(folder).as_posix()
            yield Item(name, audio=path, problem=problem)
        else:
            yield Item(name, path, item.text, problem=item.problem)
    unknown = [path for path in paths if path not in texts and path.suffix.lower() not in SUFFIXES]
    if not recordings:
        by_stem = {path.with_suffix(""): path for path in unknown}
        for path in sorted(texts):
            name = path.relative_to(folder).with_suffix("").as_posix()
            other = by_stem.get(path.with_suffix(""))
            if other is None:
                yield read_text_item(path, name)
            else:
                reason = f"{other}: a {other.suffix} file cannot be read as a recording"
                yield Item(name, problem=f"{reason}; convert it, such as to .flac.")
        unused = set()
    skipped.update(path.suffix or "without a suffix" for path in unknown)
    _warn(folder, skipped, sorted(unused), len(recordings), with_text)


def read_text_item(path: Path, name: str) -> Item:
    """The item of a text file; runs of white space become single spaces."""
    try:
        if not path.is_file():
            return Item(name, problem=f"{path}: is not a file that can be read.")
        text = " ".join(files.read_text(path).split())
    except ResourceError:
        raise
    except InputError as error:
        return Item(name, problem=str(error))
    return Item(name, text=text, problem="" if text else f"{path}: is empty.")


def list_files(folder: Path) -> tuple[list[Path], collections.Counter]:
    """(all files of a folder and its subfolders that are not hidden, counts of skipped ones)."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({files.describe(error)}).") from error

    paths: list[Path] = []
    skipped: collections.Counter = collections.Counter()
    if files.is_bucket(folder):
        for path in folder.rglob("*"):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                skipped["hidden"] += 1
            else:
                paths.append(path)
        return sorted(paths), skipped
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        seen.add(os.path.realpath(root))
        subfolders = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            if name.startswith("."):
                skipped["hidden"] += 1
            elif real in seen:
                skipped["link to a folder that is read already"] += 1
            else:
                seen.add(real)
                subfolders.append(name)
        folders[:] = subfolders
        for name in names:
            if name.startswith("."):
                skipped["hidden"] += 1
            else:
                paths.append(Path(root, name))
    return sorted(paths), skipped


def _warn(
    folder: Path,
    skipped: collections.Counter,
    unused: Sequence[Path],
    recordings: int,
    with_text: int,
) -> None:
    """Warns of skipped files, and of recordings without text if others have one."""
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
        warnings.warn(
            f"{folder}: skipped {plural(skipped.total(), 'file')}: {kinds}.",
            InputWarning,
            stacklevel=1,
        )
    if unused:
        some = ", ".join(str(path.relative_to(folder)) for path in unused[:NAMED])
        some += ", ..." if len(unused) > NAMED else ""
        reason = f"left out {plural(len(unused), 'text')} without a recording: {some}."
        warnings.warn(f"{folder}: {reason}", InputWarning, stacklevel=1)
    if 0 < with_text < recordings:
        reason = f"only {with_text} of {recordings} recordings have a text."
        warnings.warn(f"{folder}: {reason}", InputWarning, stacklevel=1)
