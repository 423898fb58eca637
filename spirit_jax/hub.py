"""Models on the Hugging Face hub, by a name such as `org/name` or `org/name@revision`.

huggingface_hub reads HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the stored token.
"""

import functools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files, network_folder
from spirit_jax.errors import InputError, InputWarning

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OURS = ("checksums.json", "llama/config.json", "speech_tokenizer/speech_tokenizer.json")


def parse_name(name: str | os.PathLike) -> tuple[str, str | None] | None:
    """(repository, revision or None) of a name of the hub; None for what cannot be one.

    The revision is what follows the first "@"; it may have slashes, as branches can.

    Raises:
      InputError: there is nothing after the "@".
    """
    repository, at, revision = os.fspath(name).partition("@")
    if not _NAME.fullmatch(repository):
        return None
    if at and not revision:
        raise InputError(f"{name}: has no revision after the @; leave the @ out for the newest.")
    return repository, revision or None


@functools.cache  # all parts of a model are from one commit, also if a branch moves meanwhile
def fetch(repository: str, revision: str | None = None) -> Path:
    """The folder of a model of the hub, in huggingface_hub's cache.

    The revision is resolved to a commit first. What the cache has of this commit is not fetched
    again; a full commit hash whose files are all cached needs no connection.

    Args:
      repository: such as "org/name".
      revision: a branch, a tag or a full commit hash; None for the main branch.

    Returns:
      The folder, with all files.

    Raises:
      InputError: there is no such model or revision, access is refused, or the model is neither
        reachable nor complete in the cache.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name = f"{repository}@{revision}" if revision else repository
    if revision and _COMMIT.fullmatch(revision):
        cached = _find_cached(repository, revision)
        if cached and not find_missing(cached):
            return cached
    try:
        about = huggingface_hub.HfApi().repo_info(repository, revision=revision)
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        if _is_outage(error):
            return _fall_back(name, repository, revision, error)
        raise InputError(_explain(name, repository, revision, error)) from error
    except Exception as error:  # no connection; the library's errors differ between versions
        return _fall_back(name, repository, revision, error)
    names = {file.rfilename for file in about.siblings or ()}
    if names.isdisjoint(_OURS):
        raise InputError(
            f"{name}: is not a spirit_jax model on the hub ({' and '.join(_OURS)} are absent). "
            "Others are downloaded and then converted; see spirit-jax convert --help."
        )
    folder = _find_cached(repository, about.sha)
    if folder is None or _absent(folder, names) or find_missing(folder):
        try:
            folder = Path(huggingface_hub.snapshot_download(repository, revision=about.sha))
        except Exception as error:
            raise InputError(_explain(name, repository, revision, error)) from error
        if missing := _absent(folder, names) or find_missing(folder):
            raise InputError(f"{name}: is incomplete after the download; it lacks {missing[0]}.")
    # As the library does for a download by branch or tag; without a connection it is read.
    files.write_text(folder.parents[1] / "refs" / (revision or "main"), about.sha)
    return folder


def fetch_files(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a repository that need not be a model of this package.

    Args:
      repository: such as "org/name".
      revision: a branch, a tag or a full commit hash; None for the main branch.
      patterns: of the names of the files that are wanted; those in subfolders are not.

    Returns:
      The folder in huggingface_hub's cache; without a connection, what the cache has.

    Raises:
      InputError: there is no such repository or revision, access is refused, or it is neither
        reachable nor in the cache.
    """
    import huggingface_hub

    try:
        return files.as_path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # connection errors differ between versions of the library
        name = f"{repository}@{revision}" if revision else repository
        raise InputError(_explain(name, repository, revision, error)) from error


def find_missing(folder: str | Path) -> list[str]:
    """What a model folder lacks by its configs and its lists of checksums; relative paths.

    Files of arrays must have the size that their header gives.
    """
    folder = files.as_path(folder)
    missing = set()
    for path in folder.rglob(checksums.LIST):
        listed = checksums.read_json(path)
        names = [*listed.get("files", {}), *listed.get("arrays", {})]
        missing |= {path.parent / name for name in names if not (path.parent / name).is_file()}
    for path in folder.rglob("speech_tokenizer.json"):
        about = files.read_json(path)
        shared = path.parent / str(about.get("shared", ""))
        for network in about.get("hashes", {}):
            places = (path.parent / network, shared / network)
            if not any(network_folder.has_arrays(place) for place in places):
                missing.add(path.parent / network)
    if (folder / "vocab.json").is_file() and not network_folder.has_arrays(folder / "llama"):
        missing.add(folder / "llama")
    missing |= {path for path in folder.rglob("*.safetensors") if not _is_whole(path)}
    return sorted(os.path.relpath(path, folder) for path in missing)


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        size = int.from_bytes(files.read_bytes(path, 8), "little")
        entries = files.parse_json(files.read_bytes(path, 8 + size)[8:].decode())
        ends = [e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"]
    except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False
    return path.stat().st_size == 8 + size + max(ends, default=0)


def _absent(folder: Path, names: set[str]) -> list[str]:
    return sorted(name for name in names if not (folder / name).is_file())


def _find_cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a revision in the cache, which may be incomplete; None if it has none."""
    import huggingface_hub

    try:
        return files.as_path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        )
    except Exception:  # IncompleteSnapshotError in newer versions, LocalEntryNotFoundError in all
        return None


def _fall_back(name: str, repository: str, revision: str | None, error: Exception) -> Path:
    """The cached folder, if there is no connection."""
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _describe(error)
    cached = _find_cached(repository, revision)
    if cached is None:
        raise InputError(
            f"{name}: there is no such folder, and the hub's model of that name is not complete in "
            f"the cache and cannot be fetched ({reason})."
        ) from error
    if missing := find_missing(cached):
        raise InputError(
            f"{name}: the cached copy is incomplete (it lacks {missing[0]}), and the rest cannot "
            f"be fetched ({reason})."
        ) from error
    if not constants.HF_HUB_OFFLINE:
        message = f"{name}: the hub cannot be reached ({reason}); the cached copy is used."
        warnings.warn(message, InputWarning, stacklevel=2)
    return cached


def _is_outage(error: Any) -> bool:
    """Whether the hub answered that it is not available now, and not about the model."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and (status >= 500 or status == 429)


def _explain(name: str, repository: str, revision: str | None, error: Exception) -> str:
    """A sentence for an error of the hub."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    with_token = huggingface_hub.get_token() is not None
    token = "a token was sent" if with_token else "no token was sent; see hf auth login --help"
    host = constants.ENDPOINT.partition("//")[2]
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: is gated on {host} ({token}); ask for access at "
            f"{constants.ENDPOINT}/{repository} with the account of the token."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name}: has no revision '{revision}' on {host}; expected a branch, a tag or a full "
            "commit hash of 40 digits."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: there is no such folder, and on {host} the model is missing, private or "
            f"gated ({token})."
        )
    return f"{name}: cannot be fetched from {host} ({_describe(error)})."


def _describe(error: Exception) -> str:
    """What the machine lacks, or all lines of the message, without the token."""
    import huggingface_hub

    text = files.find_resource_error(error) or " ".join(str(error).split())[:300]
    text, token = text or type(error).__name__, huggingface_hub.get_token()
    return text.replace(token, "***").rstrip(".") if token else text.rstrip(".")


def upload(
    repository: str,
    folder: Path,
    texts: Mapping[str, str],
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Uploads a folder in one commit; the hub checks a model card before the other files are sent.

    Args:
      repository: such as "org/name"; it is created if it does not exist.
      folder: its files are uploaded, except hidden ones.
      texts: further files, by name.
      revision: a branch, created if it does not exist; None for the main branch.
      private: whether a new repository is private.

    Returns:
      The address of the commit.

    Raises:
      InputError: the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    contents: dict[str, Any] = {
        path.relative_to(folder).as_posix(): str(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:])
    } | {name: text.encode() for name, text in texts.items()}
    adds = [huggingface_hub.CommitOperationAdd(*item) for item in contents.items()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository, adds, commit_message="Upload a model of spirit_jax", revision=revision
        )
    except Exception as error:  # connection errors differ between versions of the library
        reason = _describe(error)
        token = "" if huggingface_hub.get_token() else " No token is stored: hf auth login."
        raise InputError(f"{repository}: cannot be uploaded ({reason}).{token}") from error
    return str(commit.commit_url)
