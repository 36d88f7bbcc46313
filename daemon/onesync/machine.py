"""Facts of this machine, found without touching any mount of OneData or changing anything."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import pwd
import sqlite3
import tempfile
from importlib import metadata
from pathlib import Path

from onesync import __version__
from onesync.core.diagnosis import Place, Room
from onesync.mounts import mounts
from onesync.snapshot import is_cloned

_INOTIFY = Path("/proc/sys/fs/inotify")
_NOT_SYNCHRONISED = 5
_TIMEX_BYTES = 512
"""More than any kernel's struct timex; its first field, zero, says that nothing is set."""
_DEPENDENCIES = (
    "blake3",
    "pathspec",
    "prometheus-client",
    "pydantic-settings",
    "pyinotify",
    "rich",
    "sdnotify",
    "typer",
    "watchdog",
    "xxhash",
)

_libc = ctypes.CDLL(None, use_errno=True)


def versions() -> dict[str, str]:
    """Return the versions of all that onesync is made of; "unknown" where nobody tells."""
    found = {
        "onesync": __version__,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }
    for name in _DEPENDENCIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def node_mark() -> str:
    """Return a short mark that is this node's, and tells nothing else of it."""
    try:
        known = Path("/etc/machine-id").read_bytes()
    except OSError:
        known = platform.node().encode()
    return hashlib.blake2b(known, digest_size=4).hexdigest()


class MountTable:
    """The kernel's table of mounts, as it is now. Paths are compared, none is touched."""

    def __init__(self) -> None:
        """Read the table."""
        self._types = {Path(mount.point): mount.type for mount in mounts()}

    def mount_point(self, path: Path) -> Path:
        """Return the mount point above ``path``, as far as its parts are no links."""
        return next((p for p in (path, *path.parents) if p in self._types), Path("/"))

    def type_of(self, path: Path) -> str:
        """Return the type of the file system of ``path``."""
        return self._types.get(self.mount_point(path), "")

    def share_fuse(self, one: Path, other: Path) -> bool:
        """Whether both lie on the same FUSE mount, which is not the root of all."""
        point = self.mount_point(one)
        return (
            point == self.mount_point(other)
            and point != Path("/")
            and self._types[point].startswith("fuse")
        )


def look_at(path: Path, onedata: Path, table: MountTable) -> Place:
    """Look at a local directory, unless it lies on the mount of ``onedata``, which may hang."""
    if table.share_fuse(path, onedata):
        return Place(str(path), on_mount=True)
    try:
        real = path.resolve()
        status = os.stat(real)
    except OSError as error:
        return Place(str(path), reason=error.strerror or str(error))
    return Place(
        str(path),
        is_directory=real.is_dir(),
        owner=_user(status.st_uid),
        mode=status.st_mode & 0o7777,
        user=_user(os.geteuid()),
        is_usable=os.access(real, os.R_OK | os.W_OK | os.X_OK, effective_ids=True),
        file_system=table.type_of(real),
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def room_of(found: os.statvfs_result) -> Room:
    """Return the room that statfs tells of, for users who are not root."""
    size = found.f_frsize
    return Room(found.f_bavail * size, found.f_blocks * size, found.f_favail, found.f_files)


def can_clone(directory: Path) -> bool | None:
    """Return whether files in ``directory`` can share content; None where none can be made.

    The files that are tried with have no names.
    """
    try:
        with (
            tempfile.TemporaryFile(dir=directory) as one,
            tempfile.TemporaryFile(dir=directory) as other,
        ):
            one.write(bytes(4096))
            one.flush()
            return is_cloned(one.fileno(), other.fileno())
    except OSError:
        return None


def inotify_limit(key: str) -> int | None:
    """Return a limit of inotify(7); None where it cannot be read."""
    try:
        return int((_INOTIFY / key).read_text())
    except (OSError, ValueError):
        return None


def has_inotify_instance() -> bool:
    """Return whether this user gets another inotify instance; it is given back at once."""
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    if fd < 0:
        return False
    os.close(fd)
    return True


def is_clock_synchronised() -> bool | None:
    """Return what the kernel says of its clock (adjtimex(2)); None where it does not tell."""
    state = _libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _NOT_SYNCHRONISED
