"""Looks a name up on the mount with one round trip.

OneData lets the kernel keep neither names nor attributes. A plain ``stat`` therefore costs two: the
look-up, whose answer holds the attributes, and then the attributes again. statx(2) can be told to
take what the look-up brought. Python has no ``os.statx`` yet.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

_NO_FOLLOW = 0x100
_AS_LOOKED_UP = 0x4000
_OF_DESCRIPTOR = 0x1000
_TYPE_MODE_SIZE = 0x1 | 0x2 | 0x200
_MTIME = 0x40
_INODE = 0x100
_REFUSED = (errno.ENOSYS, errno.EPERM)
"""What a sandbox answers that does not know the call."""

_statx = ctypes.CDLL(None, use_errno=True).statx


class _Answer(ctypes.Structure):
    """struct statx, as far as it is read here; the kernel fills 256 bytes."""

    _fields_ = (
        ("before", ctypes.c_ubyte * 28),
        ("mode", ctypes.c_uint16),
        ("padding", ctypes.c_uint16),
        ("inode", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("times", ctypes.c_ubyte * 64),
        ("seconds", ctypes.c_int64),
        ("nanoseconds", ctypes.c_uint32),
        ("after", ctypes.c_ubyte * 132),
    )


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look-up told: st_mode, st_size and st_mtime_ns."""

    mode: int
    size: int
    mtime_ns: int = 0


def look_up(directory: int, name: bytes) -> Looked:
    """Look ``name`` (``b"."`` is the directory itself) up afresh; no link is followed.

    Raises OSError as ``os.stat`` does.
    """
    if b"\0" in name:
        raise ValueError("a name holds a NUL byte")
    answer = _Answer()
    flags = _NO_FOLLOW
    if name != b".":  # the directory itself is not looked up: its attributes must be asked for
        flags |= _AS_LOOKED_UP
    if _statx(directory, name, flags, _TYPE_MODE_SIZE | _MTIME, ctypes.byref(answer)) == 0:
        mtime_ns = answer.seconds * 10**9 + answer.nanoseconds
        return Looked(answer.mode, answer.size, mtime_ns)
    number = ctypes.get_errno()
    if number in _REFUSED:
        status = os.lstat(name, dir_fd=directory)
        return Looked(status.st_mode, status.st_size, status.st_mtime_ns)
    raise OSError(number, os.strerror(number), name)


def inode_of(fd: int) -> int:
    """Return the inode of what was opened, as it was looked up then: no round trip."""
    answer = _opened(fd, _INODE)
    return os.fstat(fd).st_ino if answer is None else int(answer.inode)


def opened(fd: int) -> Looked:
    """Return what was opened, as it was looked up then: no round trip."""
    answer = _opened(fd, _TYPE_MODE_SIZE)
    if answer is None:
        status = os.fstat(fd)
        return Looked(status.st_mode, status.st_size)
    return Looked(answer.mode, answer.size)


def _opened(fd: int, wanted: int) -> _Answer | None:
    """Return what is known of ``fd``; None in a sandbox that does not know the call."""
    answer = _Answer()
    if _statx(fd, b"", _OF_DESCRIPTOR | _AS_LOOKED_UP, wanted, ctypes.byref(answer)) == 0:
        return answer
    number = ctypes.get_errno()
    if number in _REFUSED:
        return None
    raise OSError(number, os.strerror(number))
