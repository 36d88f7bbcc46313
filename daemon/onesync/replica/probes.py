"""Harmless probes of what a mount does with files, each in an empty directory made for them.

They know nothing of escaped names: the mount itself is asked. Each removes what it made, also where
it fails; whoever made the directory removes that, with all that is left in it. What each returns
``core.peculiarities`` judges; an OSError says that the mount refused.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from onesync.beneath import rename_new
from onesync.replica.statx import look_up

_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
_PROGRESS = "org.onedata.replication_progress"
_LONGEST = 255
_A_TIME_NS = 1_500_000_001_123_456_789
"""Long ago, for some storages never take a time that is older than the present one."""
_LOOKS = 9
_ODD_NAMES = {
    "not UTF-8": b"\xff\xfe",
    "line break": b"\n",
    "backslash": b"\\",
    "quotes": b"\"'",
    "trailing blank": b" ",
    "composed letters": b"\xc3\xa9",
    "decomposed letters": b"e\xcc\x81",
}


def _write(place: int) -> bool:
    """Return whether what was written and flushed is given back."""
    name, content = _name(), os.urandom(4096)
    with _removed(place, name):
        _make(place, name, content)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=place)
        try:
            return os.read(fd, 2 * len(content)) == content
        finally:
            os.close(fd)


def _rename(place: int) -> bool:
    """Return whether a file has its new name, and no other."""
    old, new = _name(), _name()
    with _removed(place, old, new):
        _make(place, old)
        os.rename(old, new, src_dir_fd=place, dst_dir_fd=place)
        return _stands(place, new) and not _stands(place, old)


def _rename_onto(place: int) -> bool | None:
    """Return whether a rename that must not replace was refused; None where it cannot be asked."""
    one, other = _name(), _name()
    with _removed(place, one, other):
        _make(place, one)
        _make(place, other)
        try:
            rename_new(place, one, place, other)
        except NotImplementedError:
            return None
        except FileExistsError:
            return True
        return False


def _symlink(place: int) -> bool:
    name = _name()
    with _removed(place, name):
        os.symlink(b"nowhere", name, dir_fd=place)
        return os.readlink(name, dir_fd=place) == b"nowhere"


def _hard_link(place: int) -> bool:
    name, other = _name(), _name()
    with _removed(place, name, other):
        _make(place, name)
        os.link(name, other, src_dir_fd=place, dst_dir_fd=place)
        return True


def _attributes(place: int) -> str:
    """Return what OneData says of the bytes of a file that was just written."""
    name = _name()
    with _removed(place, name):
        _make(place, name)
        path = b"/proc/self/fd/%d/%s" % (place, name)
        return os.getxattr(path, _PROGRESS, follow_symlinks=False).decode("ascii", "replace")


def _mode(place: int) -> bool:
    name = _name()
    with _removed(place, name):
        _make(place, name)
        path = b"/proc/self/fd/%d/%s" % (place, name)
        os.chmod(path, 0o640)
        return os.stat(name, dir_fd=place, follow_symlinks=False).st_mode & 0o7777 == 0o640


def _times(place: int) -> int:
    """Return by how many nanoseconds a time that was set came back different."""
    name = _name()
    with _removed(place, name):
        _make(place, name)
        os.utime(name, ns=(_A_TIME_NS, _A_TIME_NS), dir_fd=place, follow_symlinks=False)
        found = os.stat(name, dir_fd=place, follow_symlinks=False)
        return found.st_mtime_ns - _A_TIME_NS


def _clock(place: int) -> float:
    """Return how many seconds the time of a new file lies outside of those of its making."""
    name = _name()
    with _removed(place, name):
        before = time.time()
        _make(place, name)
        found = os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime
        after = time.time()
        return min(0.0, found - before) + max(0.0, found - after)


def _long_names(place: int) -> bool:
    name = _name().ljust(_LONGEST, b"n")
    with _removed(place, name):
        _make(place, name)
        return name in _listed(place)


def _odd_names(place: int) -> tuple[str, ...]:
    """Return what kinds of names are refused, or listed or found otherwise than they were given."""
    lost = [what for what, odd in _ODD_NAMES.items() if not _is_kept(place, _name() + odd)]
    return ("'@'", *lost) if _is_ambiguous(place) else tuple(lost)


def _is_ambiguous(place: int) -> bool:
    """Return whether what follows an "@" is taken for a provider's id.

    No such name is made: it might be one that nothing can remove any more.
    """
    name = _name()
    with _removed(place, name):
        _make(place, name)
        return _stands(place, name + b"@")


def _is_kept(place: int, name: bytes) -> bool:
    try:
        with _removed(place, name):
            _make(place, name)
            return name in _listed(place) and _stands(place, name)
    except OSError:
        return False  # which error it is says nothing more: the name is refused


def _case(place: int) -> bool:
    """Return whether names that differ in case are different ones."""
    name = _name() + b"-name"
    with _removed(place, name):
        _make(place, name)
        return not _stands(place, name.upper())


def _listing(place: int) -> tuple[bool, bool]:
    """Return whether a new file is listed at once, and whether a deleted one is gone at once."""
    name = _name()
    with _removed(place, name):
        _make(place, name)
        seen = name in _listed(place)
        os.unlink(name, dir_fd=place)
        return seen, name not in _listed(place) and not _stands(place, name)


def _round_trip(place: int) -> float:
    """Return the seconds of a look at a name that nobody knows, which no cache answers; median."""
    return sorted(_look_seconds(place) for _ in range(_LOOKS))[_LOOKS // 2]


def _look_seconds(place: int) -> float:
    name, began = _name(), time.monotonic()
    with suppress(FileNotFoundError):
        look_up(place, name)
    return time.monotonic() - began


PROBES: Mapping[str, Callable[[int], object]] = {
    "probe.write": _write,
    "probe.rename": _rename,
    "probe.rename_onto": _rename_onto,
    "probe.symlink": _symlink,
    "probe.hard_link": _hard_link,
    "probe.attributes": _attributes,
    "probe.mode": _mode,
    "probe.times": _times,
    "probe.clock": _clock,
    "probe.long_names": _long_names,
    "probe.odd_names": _odd_names,
    "probe.case": _case,
    "probe.listing": _listing,
    "probe.round_trip": _round_trip,
}
"""By name; each is given the descriptor of the directory that was made for it."""


def _name() -> bytes:
    return b"probe-" + uuid.uuid4().hex.encode()


def _make(place: int, name: bytes, content: bytes = b"onesync\n") -> None:
    fd = os.open(name, _NEW, 0o644, dir_fd=place)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _removed(place: int, *names: bytes) -> Iterator[None]:
    """Remove all ``names`` at the end, whatever became of them."""
    try:
        yield
    finally:
        for name in names:
            # What cannot be removed here goes with the directory, or its remover tells of it.
            with suppress(OSError):
                os.unlink(name, dir_fd=place)


def _stands(place: int, name: bytes) -> bool:
    try:
        look_up(place, name)
    except FileNotFoundError:
        return False
    return True


def _listed(place: int) -> list[bytes]:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)
