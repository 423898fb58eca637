"""Reading an object of a bucket as a file."""

import errno
import io
import os
from typing import Any

BLOCK = 8 << 20  # bytes of one request


class ObjectReader(io.RawIOBase):
    """The bytes of an object, read in ranges, each of which is requested again after an error."""

    def __init__(self, path: Any):
        """Asks for the size of the object; `path` is its `BucketPath`."""
        self._path, self._place = path, 0
        about = path.info()
        if about["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        self._size = int(about["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        buffer[:length] = self._path.read_range(self._place, self._place + length)
        self._place += length
        return length

    def readall(self) -> bytes:
        """The rest of the object, in blocks; the method of `io` asks for 8 KiB at a time."""
        return b"".join(iter(lambda: self.read(BLOCK), b""))
