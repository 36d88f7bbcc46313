"""The words of onesync as types: entries, stamps, changes, problems.

Paths are raw bytes, relative to the root of the working copy or replica, with ``/`` between the
parts and none at either end; ``b""`` is the root itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TypeGuard

RelPath = bytes

STATUS_FOLDER = b".deployment_status_do_not_delete"
RESERVED_PREFIX = b".onesync~"
LONGEST_PATH = 4095
_LONGEST_NAME = 255
"""What Linux can open (limits.h): nothing longer was ever pushed."""


class Kind(StrEnum):
    """What a path is; sockets, FIFOs and devices are never entries."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "dir"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest says of one path.

    Attributes:
        kind: file, link or directory.
        size: length of a file in bytes; 0 otherwise.
        mtime_ns: modification time, nanoseconds since 1970; 0 for links.
        mode: permission bits (never setuid, setgid or sticky); 0 for links.
        digest: blake3 of a file's content in hex; empty otherwise.
        target: target of a link, verbatim; empty otherwise.
        group: the same for all names of one hard-linked file, and of no other; 0 for a single name.
        xattrs: (name, value) of the extended attributes of the ``user.`` namespace, by name.
    """

    kind: Kind
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    digest: str = ""
    target: bytes = b""
    group: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the kernel says of a path of the working copy: the evidence for "unchanged".

    Attributes:
        kind: file, link or directory.
        inode: inode number.
        size: bytes; 0 for links and directories.
        mtime_ns: modification time, nanoseconds.
        ctime_ns: change time, nanoseconds.
        mode: permission bits, masked to 0o777.
        target: target of a link, verbatim.
        linked: whether a file has more than one name.
    """

    kind: Kind
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    target: bytes = b""
    linked: bool = False


_UNCONFIRMED = 0o1000
"""A mode that no entry has: the sticky bit is never kept."""


def unconfirmed(kind: Kind, size: int = 0, digest: str = "") -> Entry:
    """Return the entry of what a batch that died published: the replica has it, no checkpoint."""
    return Entry(kind, size=size, mode=_UNCONFIRMED, digest=digest)


def is_unconfirmed(entry: Entry) -> bool:
    """Return whether it is an entry as ``unconfirmed`` makes them, now or in earlier versions."""
    return entry.mode == _UNCONFIRMED or entry in (Entry(Kind.FILE), Entry(Kind.DIRECTORY))


DAMAGED_NS = 10**9
"""A damaged copy is dated so much later than the manifest says; see ``is_damaged_copy``."""


def lost_stamp(kind: Kind) -> Stamp:
    """Return a stamp that no path has: the next scan compares it with the replica anew."""
    return Stamp(kind, 0, -1, 0, 0, 0)


def doubted_stamp(kind: Kind) -> Stamp:
    """Return the stamp of a path whose content in the replica is not what the index says."""
    return Stamp(kind, -1, -1, 0, 0, 0)


def is_damaged_copy(entry: Entry, stamp: Stamp) -> bool:
    """Return whether a file was staged in with other bytes than ``entry`` tells.

    It is dated a second later than that, so it is never taken for finished, and known as ours.
    """
    return stamp.mtime_ns == entry.mtime_ns + DAMAGED_NS


def is_doubted(stamp: Stamp | None) -> bool:
    """Return whether the replica's content must be sent anew, whatever the index says of it."""
    return stamp is not None and stamp.inode == -1


@dataclass(frozen=True, slots=True)
class Known:
    """One row of the index: what the replica is known to hold, and the stamp it was taken from.

    ``stamp`` is None where this node never had the path: that it is not there is no evidence that
    anybody deleted it. ``lost_stamp`` is for a path that it had and whose stamp it does not know.
    """

    entry: Entry
    stamp: Stamp | None


def is_damaged_row(known: Known | None) -> TypeGuard[Known]:
    """Return whether a row is of what came damaged, and nothing of it was pushed since."""
    if known is None or known.stamp is None:
        return False
    return is_damaged_copy(known.entry, known.stamp)


def is_sound(known: Known) -> bool:
    """Return whether the replica has what a file's row says, as far as this node can know.

    It never saw what it never had; what is doubted, or came damaged, is another content there.
    """
    is_here = known.stamp is not None
    return is_here and not is_doubted(known.stamp) and not is_damaged_row(known)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one path while the rest goes on.

    Attributes:
        path: where.
        kind: a short stable word (``unreadable``, ``special``, ``occupied``, ...), a metric label.
        text: one sentence for a person.
    """

    path: RelPath
    kind: str
    text: str


def parent_of(path: RelPath) -> RelPath:
    """Return the directory of ``path``; the root's children give ``b""``."""
    return path.rpartition(b"/")[0]


def name_of(path: RelPath) -> bytes:
    """Return the last part of ``path``."""
    return path.rpartition(b"/")[2]


def join(parent: RelPath, name: bytes) -> RelPath:
    """Return the path of ``name`` in the directory ``parent``."""
    return parent + b"/" + name if parent else name


def is_beneath(path: RelPath, top: RelPath) -> bool:
    """Return whether ``path`` is ``top`` or lies below it."""
    return not top or path == top or path.startswith(top + b"/")


def renamed_path(path: RelPath, renamed: Mapping[RelPath, RelPath]) -> RelPath:
    """Return where ``path`` is when what it is or lies beneath was renamed, source to target."""
    above = path
    while above and above not in renamed:
        above = parent_of(above)
    return renamed[above] + path[len(above) :] if above else path


def lies_in(path: RelPath, tops: Set[RelPath]) -> bool:
    """Return whether ``path`` is one of ``tops`` or lies below one; costs its depth alone."""
    while path not in tops:
        if not path:
            return False
        path = parent_of(path)
    return True


def is_reserved(path: RelPath) -> bool:
    """Return whether ``path`` belongs to onesync: the status folder, temporaries and asides."""
    if RESERVED_PREFIX not in path and not path.startswith(STATUS_FOLDER):
        return False
    parts = path.split(b"/")
    return parts[0] == STATUS_FOLDER or any(p.startswith(RESERVED_PREFIX) for p in parts)


def is_user_path(path: bytes) -> bool:
    """Return whether ``path``, which came from outside, is one that a user's file can have."""
    above, slash, name = path.rpartition(b"/")
    if slash:
        return len(path) <= LONGEST_PATH and _is_user_name(name) and _is_user_directory(above)
    return _is_user_name(name) and name != STATUS_FOLDER


@lru_cache(maxsize=1024)
def _is_user_directory(path: bytes) -> bool:
    # Remembered, since paths come by the directory.
    first, *others = path.split(b"/")
    return first != STATUS_FOLDER and all(map(_is_user_name, [first, *others]))


def _is_user_name(name: bytes) -> bool:
    is_odd = name in (b".", b"..") or b"\0" in name or name.startswith(RESERVED_PREFIX)
    return 0 < len(name) <= _LONGEST_NAME and not is_odd


def is_place_beside(path: bytes, target: RelPath) -> bool:
    """Return whether ``path`` is a temporary or aside as onesync makes them for ``target``."""
    name = name_of(path)
    fits = name.startswith(RESERVED_PREFIX) and b"\0" not in name and len(name) <= _LONGEST_NAME
    return fits and path == join(parent_of(target), name)


def show(path: RelPath) -> str:
    """Return ``path`` printable on one line: control and undecodable bytes are escaped."""
    return printable(path.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return ``text`` on one line, with nothing in it that a terminal or a log would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
