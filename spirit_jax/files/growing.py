"""Files that grow line by line, such as the metrics of a run."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from spirit_jax.files.paths import BucketPath, as_path, is_bucket

UPLOAD_SECONDS = 30.0  # between two uploads of a growing file
SHARE = 0.05  # of the time that uploads may take


class Upload:
    """Keeps an object equal to a local file that grows: now and then all of it is uploaded."""

    def __init__(self, local: Path, path: BucketPath):
        self._local, self._path = local, path
        self._due = time.monotonic() + UPLOAD_SECONDS

    def when_due(self) -> None:
        """Uploads the file unless that was done a short time ago."""
        if time.monotonic() >= self._due:
            self.now()

    def now(self) -> None:
        """Uploads the file; raises `OSError` if that fails."""
        started = time.monotonic()
        self._path.put(self._local)
        ended = time.monotonic()
        self._due = ended + max(UPLOAD_SECONDS, (ended - started) / SHARE)


class GrowingFile:
    """A file to append to; what is there already stays.

    An object of a bucket cannot grow. There the lines are added to a local temporary file, which is
    uploaded every `UPLOAD_SECONDS`, or less often if uploads are slow, and by `flush` and `close`.
    """

    def __init__(self, path: str | Path):
        """Opens nothing yet."""
        self._path = as_path(path)
        self._files = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._upload: Upload | None = None

    def write(self, data: bytes) -> None:
        """Adds bytes; raises `OSError` if that fails."""
        if self._file is None:
            self._file = self._open()
        self._file.write(data)
        if self._upload is not None:
            self._upload.when_due()

    def _open(self) -> BinaryIO:
        local = self._path
        if is_bucket(self._path):
            folder = self._files.enter_context(tempfile.TemporaryDirectory(prefix="spirit-jax-"))
            local = Path(folder) / self._path.name
            with contextlib.suppress(FileNotFoundError):
                self._path.get(local)
            self._upload = Upload(local, self._path)
        return self._files.enter_context(open(local, "ab", buffering=0))

    def flush(self) -> None:
        """Uploads what is not uploaded yet."""
        if self._upload is not None:
            self._upload.now()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        with self._files:
            self.flush()
            self._file, self._upload = None, None

    def __enter__(self) -> "GrowingFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()
