"""Where the parts of a stack are: in local files, on the Hugging Face hub, or at textlesslib.

Nothing is fetched unless a name of the hub is given.
"""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from spirit_jax import config, files, hub
from spirit_jax.errors import InputError

from .main import show_progress

ENCODER = "slprl/mhubert-base-25hz"
# textlesslib's files, with their SHA-256.
FILES_URL = "https://dl.fbaipublicfiles.com/textless_nlp/twist/speech_tokenizer/"
KMEANS = "mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin"
VOCODER = "hifigan_lj_mhubert_base_25hz.pt"
HASHES = {
    KMEANS: "03cc04a9c24fec4285e73e709c485756d8f116aa8e724eac555de6a7cf8d28ad",
    VOCODER: "d88224e95c501e2cd59a6e4014753169cfe060fb7ade3cc0da03c809fef73b79",
    "hifigan_lj_mhubert_base_25hz_config.json": (
        "116dc39be4970cd393e562acd0a0ec70a86aaba7e9ca469b8b836cb3fe46afc7"
    ),
}
TEXTS = ("*.json", "*.txt", "*.model")  # of a Hugging Face folder: configs and tokenizer
CHUNK_BYTES = 1 << 20
SECONDS = 60  # without an answer


def find_folder(source: str | Path, with_weights: bool = True) -> Path:
    """A Hugging Face folder.

    Args:
      source: a local folder, or a name of the hub such as "org/name@revision".
      with_weights: whether the weights are needed, and not only configs and tokenizer.

    Raises:
      InputError: there is no such folder or repository, or it cannot be fetched.
    """
    name = hub.parse_name(source)
    if name is None or Path(source).exists():
        files.require_folder(source)
        return Path(source)
    if not with_weights:
        return hub.fetch_files(*name, TEXTS)
    folder = hub.fetch_files(*name, (*TEXTS, "*.safetensors"))
    if not any(folder.glob("*.safetensors")):
        folder = hub.fetch_files(*name, (*TEXTS, "*.bin"))
    return folder


def find_text_tokenizer(language_model: Path) -> str | Path:
    """The text tokenizer of a SlamKit model: beside it, or that of the text model in its config.

    Args:
      language_model: its folder.

    Returns:
      The folder, or a name of the hub.

    Raises:
      InputError: neither is there.
    """
    if any((language_model / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return language_model
    path = language_model / "config.json"
    base = config.read_mapping(path).get("base_model_name")
    if not isinstance(base, str) or hub.parse_name(base) is None:
        raise InputError(
            f"{path}: does not name the text model on the hub (base_model_name), and has no "
            "tokenizer beside it; give --text-tokenizer."
        )
    return base


def find_published(name: str, folder: Path) -> Path:
    """A file of textlesslib, fetched unless `folder` has it.

    Args:
      name: one of `HASHES`.
      folder: where it is kept.

    Raises:
      InputError: it cannot be fetched, or is not the published file.
    """
    path = folder / name
    if path.is_file() and hash_file(path) == HASHES[name]:
        return path
    url = FILES_URL + name
    with files.whole_file(path) as unfinished:
        try:
            _download(url, unfinished)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if files.find_resource_error(error):
                raise
            raise InputError(
                f"{url}: cannot be fetched ({files.describe(error)}); get it by other means and "
                "give --kmeans and --vocoder."
            ) from error
        if hash_file(unfinished) != HASHES[name]:
            raise InputError(f"{url}: what was fetched is not the published file.")
    return path


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=SECONDS) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length", 0))
        chunks = iter(lambda: response.read(CHUNK_BYTES), b"")
        for chunk in show_progress(chunks, -(-size // CHUNK_BYTES), f"fetching {path.name}"):
            file.write(chunk)
