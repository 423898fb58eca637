"""Locks on outputs, so that two processes never write the same run, corpus or results.

A lock is a file that names its owner; the owner updates its modification time every few seconds.
This also works in a bucket, where locks of the operating system do not reach other hosts: there
the lock is an object, which is written only if there is none, and rewritten every few seconds.
Stale locks are taken over: locks of this host if their process has ended, and locks of another host
if their modification time has not changed for a while, whatever the clocks of the hosts.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from spirit_jax.errors import InputError
from spirit_jax.files.paths import as_path, is_bucket
from spirit_jax.files.reading import read_json
from spirit_jax.files.resources import describe

NAME = "run.lock"  # of a run folder
RENEW_SECONDS = 10.0  # between updates of the modification time
SILENT_SECONDS = 60.0  # without an update, after which a lock of another host is stale
OLD_SECONDS = 900.0  # age at which a lock is stale without waiting; clocks differ by less
BUCKET_SETTLE_SECONDS = 1.0  # the same, for a bucket
SETTLE_SECONDS = 0.2  # between taking a lock over and checking whether another process did too

_held: set[str] = set()  # tokens of the locks that this process holds


@dataclasses.dataclass(frozen=True)
class Owner:
    """The owner of a lock.

    Attributes:
      token: random, different each time a lock is taken.
      host: host name, boot id and PID namespace, as far as known.
      pid: process id.
      started: start time of the process by the kernel's clock; "" if unknown.
      since: local time when the lock was taken, for messages.
    """

    token: str = ""
    host: str = ""
    pid: int = 0
    started: str = ""
    since: str = ""

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(uuid.uuid4().hex, _host(), os.getpid(), _started(os.getpid()), since)

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """The owner of a lock; None if there is no lock, an empty `Owner` if it is damaged."""
        try:
            values = read_json(path)
            known = {field.name: field.type for field in dataclasses.fields(cls)}
            if not isinstance(values, dict) or set(values) != set(known):
                return cls()
            return cls(**values) if all(type(values[n]) is t for n, t in known.items()) else cls()
        except InputError:
            return cls() if path.exists() else None

    def __str__(self):
        return f"process {self.pid} on {self.host.split(' ')[0]}, since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended; always False for another host."""
        if not self.token:
            return True
        if self.host != _host():
            return False
        if self.pid == os.getpid():
            return self.token not in _held
        started = _started(self.pid)
        return not started or started != self.started


class Lock:
    """A lock that this process holds; see `hold`."""

    def __init__(self, path: Path, owner: Owner, was_stale: bool):
        self._path, self._owner = path, owner
        self.was_stale = was_stale  # whether it was taken over from a process that was killed
        self._is_kept = False
        _held.add(owner.token)
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._renewal.start()

    def check(self) -> None:
        """Raises `InputError` if the folder was removed, or another process took the lock over."""
        owner = Owner.read(self._path)
        if owner is None and not self._path.parent.is_dir():
            raise InputError(f"{self._path.parent}: was deleted or moved during the run.")
        if owner is None or not owner.token:  # removed or damaged
            self._path.unlink(missing_ok=True)
            _create(self._path, self._owner)
        elif owner.token != self._owner.token:
            raise InputError(f"{self._path.parent}: was taken over by {owner}; this run ends.")

    def keep(self, is_kept: bool = True) -> None:
        """Says whether `release` leaves the lock where it is, as a killed process does."""
        self._is_kept = is_kept

    def release(self) -> None:
        """Removes the lock, unless another process took it over."""
        self._ended.set()
        self._renewal.join()
        _held.discard(self._owner.token)
        if self._is_kept:
            return
        owner = Owner.read(self._path)
        if owner is not None and owner.token == self._owner.token:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            owner = Owner.read(self._path)
            if owner is not None and owner.token == self._owner.token:
                with contextlib.suppress(OSError):
                    if is_bucket(self._path):
                        self._path.write_bytes(_content(self._owner))
                    else:
                        os.utime(self._path)


@contextlib.contextmanager
def hold(
    folder: str | Path, name: str = NAME, what: str | Path = "", choice: str = "run_dir"
) -> Iterator[Lock]:
    """Holds a lock. Its folder is created if needed, and removed at the end if it is empty.

    Args:
      folder: the folder of the lock.
      name: file name of the lock.
      what: what is locked, for messages; the folder by default.
      choice: the setting or option that names the output, for messages.

    Raises:
      InputError: another process holds the lock, or the folder cannot be written.
    """
    folder = as_path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; {choice} must name a folder.")
    parents = () if is_bucket(folder) else (folder, *folder.parents)
    created = [parent for parent in parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner, was_stale = _take(folder / name, what or folder, choice)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({describe(error)}).") from error
    lock = Lock(folder / name, owner, was_stale)
    try:
        yield lock
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for parent in created:
                parent.rmdir()


def _take(path: Path, what: str | Path, choice: str) -> tuple[Owner, bool]:
    """Creates the lock, in place of a stale one; returns its owner and whether one was stale."""
    new, stale = Owner.here(), None
    while not _create(path, new):
        version = _version(path)
        owner = Owner.read(path)
        if owner is None:
            continue  # released just now
        if not owner.token:  # another process may be writing it just now
            time.sleep(SETTLE_SECONDS)
            owner = Owner.read(path) or owner
        if not owner.is_gone and not _is_silent(path, owner, what):
            raise _in_use(owner, what, choice)
        stale = owner
        if is_bucket(path):
            path.remove_version(version)
            continue
        taken = path.with_name(f"{path.name}.{new.token}")  # only one process can rename it
        with contextlib.suppress(FileNotFoundError):
            path.rename(taken)
            taken.unlink()
    if stale is not None:
        time.sleep(BUCKET_SETTLE_SECONDS if is_bucket(path) else SETTLE_SECONDS)
        owner = Owner.read(path)
        if owner is not None and owner.token != new.token:
            raise _in_use(owner, what, choice)
        description = f"of {stale}, which has ended," if stale.token else "that cannot be read"
        print(f"{what}: a lock {description} is taken over.", file=sys.stderr)
    return new, stale is not None


def _version(path: Path) -> str | None:
    """The number that a bucket gives each content of an object; None if it gives none."""
    try:
        return path.info().get("generation") if is_bucket(path) else None
    except FileNotFoundError:
        return None


def _in_use(owner: Owner, what: str | Path, choice: str) -> InputError:
    return InputError(
        f"{what}: is in use by {owner}; stop that one first, or use another {choice}."
    )


def _create(path: Path, owner: Owner) -> bool:
    """Writes the lock unless it exists; returns whether it was written."""
    data = _content(owner)
    try:
        if is_bucket(path):
            path.create(data)
            return True
        with open(path, "xb", buffering=0) as file:
            file.write(data)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _content(owner: Owner) -> bytes:
    return json.dumps(dataclasses.asdict(owner)).encode()


def _is_silent(path: Path, owner: Owner, what: str | Path) -> bool:
    """Whether the owner on another host does not update its lock."""
    if owner.host == _host():
        return False
    modified = _modified(path)
    if time.time() - modified > OLD_SECONDS:
        return True
    print(
        f"{what}: is locked by {owner}; waiting up to {SILENT_SECONDS:.0f} s to see whether "
        "it is still running.",
        file=sys.stderr,
    )
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        if _modified(path) != modified:
            return False
    return True


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _host() -> str:
    """Identifies where a process id is valid: host name, boot id and PID namespace."""
    parts = [socket.gethostname() or "this-host"]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """Start time of a process of this host; "" if it does not exist or is a zombie."""
    try:
        # The name, in parentheses, may have spaces; state and start time are fields 1 and 20 after.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"
