"""Makes a lost index anew, by comparing the working copy with the manifest.

What is equal, or came damaged, is known again and never sent; what differs was not pushed yet and
is dirty; what only the manifest has stays in OneData, for that it is not here is no evidence that
anybody deleted it. Where a file differs whose old content has another name here it was renamed:
OneData may have that nowhere else, and what took its name must not replace it before it has come.
Engine's thread, working with the pool's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from blake3 import blake3

from onesync.beneath import open_beneath
from onesync.core.blocks import PATCH_FROM, BlockHasher, Blocks, block_size
from onesync.core.model import (
    Entry,
    Kind,
    RelPath,
    Stamp,
    doubted_stamp,
    is_damaged_copy,
    lost_stamp,
)
from onesync.local import read_xattrs, stamp_of
from onesync.scanner import Scanner

_CHUNK = 1 << 20


@dataclass(slots=True)
class Rebuilt:
    """What is known again.

    Attributes:
        rows: (path, entry, stamp) of everything in the manifest; a file that was renamed, and whose
            name something else took, has the stamp of what it is now.
        blocks: digests of the blocks of large files that are equal.
        absent: what the manifest has and the working copy has not.
        damaged: digests of what came with other bytes than the manifest says, and has them still.
    """

    rows: list[tuple[RelPath, Entry, Stamp | None]] = field(default_factory=list)
    blocks: dict[str, Blocks] = field(default_factory=dict)
    absent: list[RelPath] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)


def rebuild(
    root: bytes,
    scanner: Scanner,
    tree: Mapping[RelPath, Entry],
    pool: ThreadPoolExecutor,
    advanced: Callable[[int, int], None],
    damaged: AbstractSet[RelPath] = frozenset(),
) -> Rebuilt:
    """Compare what stands at ``root`` with the manifest's ``tree``.

    Every equal file is read once, and each that may be one of those that differ, renamed.
    ``scanner`` is that of an empty index; ``advanced`` is told entries done and in all, and may
    raise to give up. ``damaged`` are files that may have come with other bytes than the manifest's.
    """
    rebuilt = Rebuilt()
    found = {path: difference.seen for path, difference in scanner.scan((), [b""]).items()}
    count = len(tree)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        compared = pool.map(
            lambda item: _compare(
                top, item[0], item[1], found.get(item[0]), is_damaged=item[0] in damaged
            ),
            tree.items(),
        )
        for number, ((path, entry), (stamp, blocks)) in enumerate(
            zip(tree.items(), compared, strict=True), 1
        ):
            if path in damaged and stamp == lost_stamp(Kind.FILE):
                stamp = doubted_stamp(Kind.FILE)  # written here since, also with the good bytes
            rebuilt.rows.append((path, entry, stamp))
            if stamp is None:
                rebuilt.absent.append(path)
            if blocks is not None:
                rebuilt.blocks[entry.digest] = blocks
            advanced(number, count)
        _know_renamed(top, rebuilt, found, tree)
        came = [p for p, entry, now in rebuilt.rows if p in damaged and _came_so(entry, now)]
        rebuilt.damaged = set(pool.map(partial(_digest_at, top), came)) - {""}
    finally:
        os.close(top)
    return rebuilt


def _know_renamed(
    top: int,
    rebuilt: Rebuilt,
    found: Mapping[RelPath, Stamp | None],
    tree: Mapping[RelPath, Entry],
) -> None:
    """Give the rows of files that differ the stamps of those here that have their contents."""
    differing = {path for path, _, stamp in rebuilt.rows if stamp != found.get(path)}
    others: dict[tuple[int, int, int], list[tuple[RelPath, Stamp]]] = {}
    for path, seen in found.items():
        is_other = path in differing or path not in tree
        if is_other and seen is not None and seen.kind is Kind.FILE and seen.size:
            others.setdefault((seen.mtime_ns, seen.mode, seen.size), []).append((path, seen))
    for number, (path, entry, stamp) in enumerate(rebuilt.rows):
        if stamp != lost_stamp(Kind.FILE):
            continue
        alike = others.get((entry.mtime_ns, entry.mode, entry.size), [])
        for other in alike:
            known, blocks = _compare(top, other[0], entry, other[1], is_damaged=False)
            if known == other[1]:
                rebuilt.rows[number] = (path, entry, known)
                if blocks is not None:
                    rebuilt.blocks[entry.digest] = blocks
                alike.remove(other)  # one file of several that are alike is one of them
                break


def _came_so(entry: Entry, stamp: Stamp | None) -> bool:
    return stamp is not None and is_damaged_copy(entry, stamp)


def _digest_at(top: int, path: RelPath) -> str:
    """Return the digest of a file; nothing where it cannot be read."""
    try:
        fd = open_beneath(top, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return _digest(fd, 0)[0]
    finally:
        os.close(fd)


def _compare(
    top: int, path: RelPath, entry: Entry, seen: Stamp | None, *, is_damaged: bool
) -> tuple[Stamp | None, Blocks | None]:
    """Return the stamp that the row of ``path`` gets, and the blocks of an equal large file."""
    if seen is None:
        return None, None
    if (seen.kind, seen.target) != (entry.kind, entry.target):
        return lost_stamp(entry.kind), None
    if entry.kind is Kind.LINK or (is_damaged and is_damaged_copy(entry, seen)):
        return seen, None
    if (seen.mtime_ns, seen.mode, seen.size) == (entry.mtime_ns, entry.mode, entry.size):
        try:
            fd = open_beneath(top, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return lost_stamp(entry.kind), None  # the push meets it again, and says so
        try:
            return _compare_opened(fd, entry, seen)
        finally:
            os.close(fd)
    return lost_stamp(entry.kind), None


def _compare_opened(fd: int, entry: Entry, seen: Stamp) -> tuple[Stamp, Blocks | None]:
    lost = lost_stamp(entry.kind)
    if read_xattrs(fd) != entry.xattrs or seen.linked != bool(entry.group):
        return lost, None
    if entry.kind is Kind.DIRECTORY:
        return seen, None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return lost, None
    digest, blocks = _digest(fd, entry.size)
    same = digest == entry.digest and stamp_of(os.fstat(fd), Kind.FILE) == seen
    return (seen, blocks) if same else (lost, None)


def _digest(fd: int, size: int) -> tuple[str, Blocks | None]:
    hasher = blake3()
    blocks = BlockHasher(block_size(size)) if size >= PATCH_FROM else None
    offset = 0
    while chunk := os.pread(fd, _CHUNK, offset):
        hasher.update(chunk)
        if blocks is not None:
            blocks.update(chunk)
        offset += len(chunk)
    return hasher.hexdigest(), blocks.blocks() if blocks is not None else None
