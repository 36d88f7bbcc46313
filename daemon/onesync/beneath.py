"""Open paths beneath a directory without following any symbolic link.

Python has no ``os.openat2`` yet, so the system call (Linux 5.6, openat2(2)) is made through ctypes;
where a sandbox does not know it, the path is walked part by part, to the same effect.
Every path that comes from a manifest, a listing or a kernel event is opened through here.
"""

from __future__ import annotations

import ctypes
import errno
import os

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

_LONGEST_PATH = 4096
"""With the zero at its end; in OneData, names that are escaped make paths longer than here."""

_RENAME_NOREPLACE = 1
_REFUSED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What a file system answers that does not know the flags of renameat2."""

_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_beneath(root: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open ``path`` (relative, ``b""`` is the root itself) beneath the directory ``root``.

    Returns a descriptor. Raises OSError: ELOOP where any part is a link, EXDEV where the path
    would leave the root.
    """
    how = _How(
        flags | os.O_CLOEXEC | os.O_NOFOLLOW,
        mode,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    try:
        return _openat2(root, path or b".", how)
    except OSError as error:
        is_long = error.errno == errno.ENAMETOOLONG and len(path) >= _LONGEST_PATH
        if error.errno != errno.ENOSYS and not is_long:
            raise
        if path.startswith(b"/") or b".." in path.split(b"/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path) from None
        return _walk(root, path, flags, mode)


def open_plain(path: bytes, flags: int) -> int:
    """Open the absolute ``path``, none of whose parts may be a link."""
    how = _How(flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE_NO_SYMLINKS)
    try:
        return _openat2(-100, path, how)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    root = os.open(b"/", os.O_PATH | os.O_DIRECTORY)
    try:
        return _walk(root, path.strip(b"/"), flags, 0)
    finally:
        os.close(root)


def rename_new(origin: int, source: bytes, destination: int, target: bytes) -> None:
    """Rename a name in the directory ``origin`` to one in ``destination`` where nothing stands.

    The kernel looks the target up for the rename anyway, so this costs no look of its own. Raises
    FileExistsError where something stands there, NotImplementedError where the file system cannot.
    """
    if _renameat2(origin, source, destination, target, _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number in _REFUSED:
        raise NotImplementedError("renameat2 without replacing")
    raise OSError(number, os.strerror(number), source, None, target)


def _walk(root: int, path: bytes, flags: int, mode: int) -> int:
    """Open part by part, following no link: for sandboxes that do not know openat2 (nspawn)."""
    *above, last = path.split(b"/") if path else [b"."]
    current = os.dup(root)
    try:
        for part in above:
            following = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
        return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=current)
    finally:
        os.close(current)


def _openat2(directory: int, path: bytes, how: _How) -> int:
    if b"\0" in path:
        raise ValueError("a path holds a NUL byte")
    while True:
        fd = _syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_long(directory),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number != errno.EINTR:  # PEP 475 does not reach calls made through ctypes
            raise OSError(number, os.strerror(number), path)
