"""Looks at the working copy and tells where it differs from the index.

Reads only the working copy and the index: the steady state costs the replica nothing. Every look is
relative to the root's descriptor and follows no link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from onesync.beneath import open_beneath
from onesync.core.model import (
    LONGEST_PATH,
    Kind,
    Known,
    Problem,
    RelPath,
    Stamp,
    is_reserved,
    join,
    lies_in,
    name_of,
    parent_of,
    show,
)
from onesync.core.plan import Difference
from onesync.errors import WorkingCopyLost
from onesync.index import Index
from onesync.local import Origin, origin_of, stamp_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Scanner:
    """Scans of one working copy. One thread."""

    def __init__(self, root: bytes, index: Index, excluded: Callable[[RelPath], bool]) -> None:
        """Stand at the absolute path ``root``; ``excluded`` tells what is left out."""
        self._root = root
        self._index = index
        self._excluded = excluded
        self._fd = -1
        self.origin: Origin | None = None
        self.problems: dict[RelPath, Problem] = {}

    def scan(self, paths: Iterable[RelPath], trees: Iterable[RelPath]) -> dict[RelPath, Difference]:
        """Return the differences at ``paths`` (each alone) and in ``trees`` (all beneath).

        A new directory is scanned whole, and so is one that was a file; of a directory that is gone
        only the directory itself is told. Raises OSError where the root cannot be read.
        """
        found: dict[RelPath, Difference] = {}
        with self._opened():
            tops = {tree for tree in trees if not self._left_out(tree)}
            for tree in tops:
                if not tree or not lies_in(parent_of(tree), tops):
                    found.update((d.path, d) for d in self._tree(tree))
            for path in set(paths):
                if not self._left_out(path) and not lies_in(path, tops):
                    found.update((d.path, d) for d in self._path(path))
            for path in self._other_names(found.values()):
                found.update((d.path, d) for d in self._path(path))
        return found

    def _other_names(self, found: Iterable[Difference]) -> set[RelPath]:
        """Return the other names of hard-linked files: the kernel told of one of them alone."""
        inodes = {
            stamp.inode
            for d in found
            for stamp in (d.seen, d.known.stamp if d.known else None)
            if stamp is not None and stamp.linked
        }
        names = {path for inode in inodes for path, _ in self._index.by_inode(inode)}
        return names - {d.path for d in found}

    def verify_root(self) -> None:
        """Raise WorkingCopyLost unless the root is there and is the one that was deployed."""
        with self._opened():
            pass

    def look(self, path: RelPath) -> Stamp | None:
        """Look at one path alone, whatever the index holds; None where no entry stands."""
        with self._opened():
            return self.stamp(path)

    def gone(self, paths: Iterable[RelPath]) -> set[RelPath]:
        """Return those of ``paths`` where no entry stands now."""
        with self._opened():
            return {path for path in paths if self.stamp(path) is None}

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the root open; raises WorkingCopyLost when it is not the one that was deployed."""
        try:
            self._fd = os.open(self._root, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if self.origin is None:
                raise
            raise WorkingCopyLost(_lost(self._root, "is gone")) from None
        try:
            if self.origin is not None and not self.origin.is_same(origin_of(self._fd)):
                raise WorkingCopyLost(_lost(self._root, "is not the one that was deployed"))
            yield
        finally:
            os.close(self._fd)
            self._fd = -1

    def stamp(self, path: RelPath) -> Stamp | None:
        """Look at one path afresh; None where nothing (or nothing that is ours to push) stands."""
        try:
            parent = open_beneath(self._fd, parent_of(path), os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a parent became a link: nothing stands there
                return None
            raise
        try:
            return self._look(parent, name_of(path) or b".", path)
        finally:
            os.close(parent)

    def _left_out(self, path: RelPath) -> bool:
        out = is_reserved(path) or len(path) > LONGEST_PATH
        return out or bool(path and self._excluded(path))

    def _path(self, path: RelPath) -> Iterator[Difference]:
        seen = self.stamp(path)
        known = self._index.known(path)
        if seen is not None and seen.kind is Kind.DIRECTORY:
            whole = known is None or known.entry.kind is not Kind.DIRECTORY
            yield from self._tree(path) if whole else self._compare(path, known, seen)
        elif seen is not None or self._is_gone(path):
            yield from self._compare(path, known, seen)

    def _tree(self, top: RelPath) -> Iterator[Difference]:
        seen = self.stamp(top)
        yield from self._compare(top, self._index.known(top), seen)
        if seen is None or seen.kind is not Kind.DIRECTORY:
            return
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            yield from self._directory(directory, waiting)

    def _directory(self, directory: RelPath, waiting: list[RelPath]) -> Iterator[Difference]:
        """Compare one directory with the index; sub-directories go to ``waiting``."""
        known = self._index.children(directory)
        try:
            fd = open_beneath(self._fd, directory, _DIRECTORY)
        except FileNotFoundError:
            return  # gone since it was listed: its own event or the next scan tells
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # says nothing of the directory: the batch is done again
            # Never delete on absence alone: what cannot be listed is a problem, not a deletion.
            self._note(directory, "unreadable", f"cannot be listed: {error.strerror}")
            return
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                path = join(directory, name)
                if self._left_out(path):
                    self._note_reserved(path)
                    continue
                seen = self._look(fd, name, path)
                if seen is not None and seen.kind is Kind.DIRECTORY:
                    waiting.append(path)
                row = known.pop(path, None)
                if seen is not None or row is not None:
                    yield from self._compare(path, row, seen)
        finally:
            os.close(fd)
        for path, row in known.items():
            if not self._left_out(path) and self.stamp(path) is None:
                yield from self._compare(path, row, None)

    def _note_reserved(self, path: RelPath) -> None:
        if is_reserved(path):
            self._note(path, "reserved", "has a name that onesync keeps for itself: rename it")
        elif len(path) > LONGEST_PATH:
            self._note(path, "unreadable", "has a longer path than can be opened: move it up")

    def _is_gone(self, path: RelPath) -> bool:
        """Whether the absence of ``path`` is evidence: the root must still be there."""
        return self._index.known(path) is not None and path != b""

    def _look(self, directory: int, name: bytes, path: RelPath) -> Stamp | None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=directory)
                return stamp_of(status, Kind.LINK, target)
        except (FileNotFoundError, NotADirectoryError):
            self.problems.pop(path, None)
            return None
        if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            self.problems.pop(path, None)
            is_file = stat.S_ISREG(status.st_mode)
            return stamp_of(status, Kind.FILE if is_file else Kind.DIRECTORY)
        self._note(path, "special", "is a socket, FIFO or device and is left out")
        return None

    def _compare(
        self, path: RelPath, known: Known | None, seen: Stamp | None
    ) -> Iterator[Difference]:
        if seen is None:
            # What this node never saw is not missed: only its own evidence deletes.
            if known is not None and known.stamp is not None:
                yield Difference(path, known, None)
        elif known is None or known.stamp is None or _differs(known.stamp, seen):
            yield Difference(path, known, seen)

    def _note(self, path: RelPath, kind: str, text: str) -> None:
        self.problems[path] = Problem(path, kind, f"{show(path)} {text}.")


def _lost(root: bytes, what: str) -> str:
    return (
        f"The working directory {show(root)} {what} (it was removed or replaced, or its file system"
        " is not mounted); nothing was written or deleted in OneData, and the lock is kept."
    )


def _differs(old: Stamp, new: Stamp) -> bool:
    if old.kind is not new.kind:
        return True
    if old.kind is Kind.LINK:
        return old.target != new.target
    if old.kind is Kind.DIRECTORY:
        # A directory's ctime changes with every name in it; its names are compared one by one.
        return (old.mode, old.mtime_ns, old.inode) != (new.mode, new.mtime_ns, new.inode)
    return old != new
