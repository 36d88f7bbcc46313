"""Files of this machine, whatever their paths mean meanwhile: stamps, digests, attributes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import re
import signal
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from blake3 import blake3

from onesync.beneath import open_plain
from onesync.core.model import Kind, Stamp
from onesync.errors import LocalError

_CHUNK = 1 << 20
_MOST_INODE = (1 << 63) - 1
"""Inode numbers have 64 bits; SQLite's integers keep 63 of them and a sign."""
_PINNED = re.compile(rb"/proc/\d+/fd/\d+")


ToldByKernel = tuple[int, int, int, int, int, int]
told_by_kernel: Callable[[os.stat_result], ToldByKernel] = attrgetter(
    "st_mode", "st_ino", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns"
)
"""What a stamp is made of: mode, inode, number of names, size, mtime and ctime in nanoseconds."""

_libc = ctypes.CDLL(None, use_errno=True)
_statx = _libc.statx
_sync_file_range = _libc.sync_file_range
_syncfs = _libc.syncfs
_FROM_START = _TO_END = ctypes.c_int64(0)
_BEGIN_WRITING = 2
"""SYNC_FILE_RANGE_WRITE: a page that is on its way to the disk counts as clean."""
_M_ARENA_MAX = -8
_EMPTY_PATH = 0x1000
_DONT_SYNC = 0x4000
"""AT_STATX_DONT_SYNC: a remote file system is not asked."""
_BIRTH_TIME = 0x800
_BIRTH = struct.Struct("=I76xqI")
"""Of struct statx: what was answered, and the birth time."""
_MOUNT_ID = 0x1000
_MOUNT = struct.Struct("=I140xQ")
"""Of struct statx: what was answered, and the mount's id (Linux 5.8)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which directory it is, over restarts, reboots and remounts.

    Device numbers change with every boot; inode numbers alone repeat themselves on a disk that was
    formatted anew. The time of birth does not, where the file system keeps one.

    Attributes:
        inode: inode number.
        birth_ns: when it was made, nanoseconds since 1970; None where nobody knows.
    """

    inode: int
    birth_ns: int | None

    def is_same(self, other: Origin) -> bool:
        """Return whether both are one directory, as far as both tell."""
        births = {self.birth_ns, other.birth_ns} - {None}
        return self.inode == other.inode and len(births) <= 1


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, or a power cut brings the old ones back."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def origin_of(fd: int) -> Origin:
    """Return which directory ``fd`` is."""
    return Origin(os.fstat(fd).st_ino & _MOST_INODE, _birth_of(fd))


def mount_of(fd: int) -> int:
    """Return the id of the mount that ``fd`` was opened on; costs a mount nothing."""
    answer = ctypes.create_string_buffer(256)
    if _statx(fd, b"", _EMPTY_PATH | _DONT_SYNC, _MOUNT_ID, answer) == 0:
        mask, mount = _MOUNT.unpack_from(answer)
        if mask & _MOUNT_ID:
            return int(mount)
    with open(f"/proc/self/fdinfo/{fd}", "rb") as table:
        for line in table:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENODEV, "the kernel does not tell the mount")


def is_another(source: bytes, stamp: Stamp) -> bool:
    """Whether the local file at the absolute path ``source`` is surely not the one of ``stamp``.

    File systems give the number of a file that is gone to the next one at once. That one has other
    bytes or times, and was born later; where nobody keeps a time of birth, or the clock was set
    back, they are taken for the same. What is no file is none of ``stamp``'s.
    """
    try:
        fd = open_source(source)
    except OSError:
        return stamp.kind is Kind.FILE and _is_no_file(source, stamp.inode)
    try:
        born, now = _birth_of(fd), stamp_of(os.fstat(fd), Kind.FILE)
    finally:
        os.close(fd)
    if born is None or now.inode != stamp.inode:
        return False
    is_renamed = (now.size, now.mtime_ns) == (stamp.size, stamp.mtime_ns)
    return not is_renamed and stamp.ctime_ns < born <= now.ctime_ns


def _is_no_file(source: bytes, inode: int) -> bool:
    """Whether something else than a file has that number at ``source``."""
    try:
        seen = os.lstat(source)
    except OSError:
        return False
    return seen.st_ino == inode and not stat.S_ISREG(seen.st_mode)


def use_one_heap() -> None:
    """Let all threads share one heap, before there are any: each would keep what it freed."""
    with suppress(AttributeError):  # a C library without it
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Return to the kernel what was freed."""
    gc.collect()
    with suppress(AttributeError):
        _libc.malloc_trim(0)


def _birth_of(fd: int) -> int | None:
    answer = ctypes.create_string_buffer(256)
    if _statx(fd, b"", _EMPTY_PATH, _BIRTH_TIME, answer) != 0:
        return None  # a sandbox that does not know the call
    mask, seconds, nanoseconds = _BIRTH.unpack_from(answer)
    return seconds * 10**9 + nanoseconds if mask & _BIRTH_TIME else None


@dataclass(frozen=True, slots=True)
class Digested:
    """blake3 (hex) and length of a file, its stamp before it was read, and whether it kept it."""

    digest: str
    size: int
    before: Stamp
    steady: bool


@contextmanager
def on_this_machine() -> Iterator[None]:
    """Let the errors of a block, or of a function that it decorates, be known as no mount's.

    That a name is taken, or that something is no regular file any more, stays what it is.
    """
    try:
        yield
    except (LocalError, InterruptedError, FileExistsError):
        raise
    except OSError as error:
        raise LocalError(error.errno, error.strerror, error.filename) from error


def stamp_of(status: os.stat_result, kind: Kind, target: bytes = b"") -> Stamp:
    """Return the stamp of a path of the working copy from its lstat or fstat result."""
    return stamp_from(told_by_kernel(status), kind, target)


def stamp_from(told: ToldByKernel, kind: Kind, target: bytes = b"") -> Stamp:
    """Return the stamp of a path of the working copy from what the kernel told of it."""
    mode, inode, links, size, mtime_ns, ctime_ns = told
    is_file = kind is Kind.FILE
    return Stamp(
        kind,
        inode & _MOST_INODE,
        size if is_file else 0,
        mtime_ns,
        ctime_ns,
        mode & 0o777,
        target,
        is_file and links > 1,
    )


def open_source(source: bytes) -> int:
    """Open a local file; ``/proc/PID/fd/N`` is one that our parent holds open."""
    if _PINNED.fullmatch(source):
        return os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return open_plain(source, os.O_RDONLY | os.O_NONBLOCK)


def date_stores(fd: int) -> None:
    """See to it that whatever is stored into a map of the file from here on dates it.

    The kernel dates the first store into a page that is clean, and no more before that page went to
    the disk. So the pages of what anybody has open for writing go there first. That nobody has,
    only a lease tells, which is given back at once.
    """
    # Who opens it in that moment waits for it, and we are told: by what nobody dies of.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        # Somebody has, or nobody tells: we are not the owner, or there are no leases.
        if _sync_file_range(fd, _FROM_START, _TO_END, _BEGIN_WRITING) != 0:
            os.fdatasync(fd)
    else:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@on_this_machine()
def write_out(directory: bytes) -> None:
    """Return when all is on its disk that was written to the file system of ``directory``.

    Raises LocalError where the disk cannot take it.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    finally:
        os.close(fd)


def local_size(source: bytes) -> int:
    """Return the length of the local file at the absolute path ``source``; see ``put``."""
    origin = open_source(source)
    try:
        return os.fstat(origin).st_size
    finally:
        os.close(origin)


def digest_local(source: bytes) -> Digested:
    """Read the local file at the absolute path ``source`` to its end.

    Raises as ``put`` does of its source.
    """
    origin = open_source(source)
    try:
        if not stat.S_ISREG(os.fstat(origin).st_mode):
            raise InterruptedError(4, "not a regular file any more", source)
        date_stores(origin)
        before = os.fstat(origin)
        digest, size = _digest(origin, before.st_size)
        stamp = stamp_of(before, Kind.FILE)
        steady = stamp_of(os.fstat(origin), Kind.FILE) == stamp
    finally:
        os.close(origin)
    return Digested(digest, size, stamp, steady)


def digests_of_part(source: bytes, size: int) -> set[str]:
    """Return the digests of the first ``size`` bytes of a local file, and of as many zeros.

    So much may be left of it where the rest was lost. Raises LocalError.
    """
    with on_this_machine():
        origin = open_source(source)
        try:
            digest, _ = _digest(origin, size)
        finally:
            os.close(origin)
    zeros = blake3()
    for offset in range(0, size, _CHUNK):
        zeros.update(bytes(min(_CHUNK, size - offset)))
    return {digest, zeros.hexdigest()}


def _digest(origin: int, limit: int) -> tuple[str, int]:
    hasher = blake3()
    offset = 0
    while offset < limit and (chunk := os.pread(origin, min(_CHUNK, limit - offset), offset)):
        hasher.update(chunk)
        offset += len(chunk)
    return hasher.hexdigest(), offset


def read_xattrs(fd: int) -> tuple[tuple[bytes, bytes], ...]:
    """Return the ``user.`` attributes of an open file or directory, sorted by name.

    There are none where the file system knows none.
    """
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(fd) if name.startswith("user."))
        return tuple((name, os.getxattr(fd, name)) for name in names)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return ()
        raise


def write_xattrs(fd: int, xattrs: Iterable[tuple[bytes, bytes]]) -> None:
    """Give an open file or directory these attributes; it may be read-only for others."""
    mode = os.fstat(fd).st_mode & 0o777
    wanted = tuple(xattrs)
    if not wanted:
        return
    os.fchmod(fd, mode | 0o200)
    try:
        for name, value in wanted:
            os.setxattr(fd, name, value)
    finally:
        os.fchmod(fd, mode)
