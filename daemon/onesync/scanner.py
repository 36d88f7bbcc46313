"""Looks at the working copy and tells where it differs from the index.

Reads only the working copy and the index: the steady state costs the replica nothing. Every look is
relative to the root's descriptor and follows no link.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from blake3 import blake3

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
from onesync.index import Index, StampRow
from onesync.local import Origin, ToldByKernel, origin_of, stamp_from, told_by_kernel

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}
_Item = tuple[str, ToldByKernel | None]
"""A name in a directory, and what stands there; None where it is gone again."""


class Scanner:
    """Scans of one working copy. One thread."""

    def __init__(self, root: bytes, index: Index, excluded: Callable[[RelPath], bool]) -> None:
        """Stand at the absolute path ``root``; ``excluded`` tells what is left out."""
        self.root = root
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
            before = {p: told for p, told in self.problems.items() if lies_in(p, tops)}
            for tree in tops:
                if not tree or not lies_in(parent_of(tree), tops):
                    found.update((d.path, d) for d in self._tree(tree))
            for path, told in before.items():
                if self.problems.get(path) is told:  # not met again: no row says that it went
                    del self.problems[path]
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
            self._fd = os.open(self.root, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if self.origin is None:
                raise
            raise WorkingCopyLost(_lost(self.root, "is gone")) from None
        try:
            if self.origin is not None and not self.origin.is_same(origin_of(self._fd)):
                raise WorkingCopyLost(_lost(self.root, "is not the one that was deployed"))
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
            whole = (
                known is None or known.entry.kind is not Kind.DIRECTORY or _is_another(known, seen)
            )
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
        """Compare one directory with the index; sub-directories go to ``waiting``.

        The digest of a listing in which nothing differed is remembered (``Index.agreed``): as long
        as it comes again and the rows did not change, none of them is read.
        """
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
            self.problems.pop(directory, None)
            found = _listed(fd)
            listing = blake3(marshal.dumps(found, 2)).digest()
            if self._index.agreed(directory) == listing:
                directories = (name for name, told in found if told and stat.S_ISDIR(told[0]))
                waiting += (join(directory, os.fsencode(name)) for name in directories)
                return
            odd = yield from self._compare_all(directory, fd, found, waiting)
        finally:
            os.close(fd)
        if not odd:
            self._index.agree(directory, listing)

    def _compare_all(
        self, directory: RelPath, fd: int, found: list[_Item], waiting: list[RelPath]
    ) -> Generator[Difference, None, bool]:
        """Compare name by name; returns whether anything differs, is left out or is missing."""
        rows = self._index.stamps(directory)
        odd = False
        for text, told in found:
            name = os.fsencode(text)
            path = join(directory, name)
            if self._left_out(path):
                self._note_reserved(path)
                odd = True
                continue
            row = rows.pop(name, None)
            if told is not None and stat.S_ISDIR(told[0]):
                waiting.append(path)
            if row is None or told is None or not _is_same(row, told):
                differs = list(self._item(path, fd, row, told))
                odd = odd or bool(differs) or row is None
                yield from differs
            elif self.problems:
                self.problems.pop(path, None)
        for path in (join(directory, name) for name in rows):
            odd = True
            if not self._left_out(path) and self.stamp(path) is None:
                yield from self._compare(path, self._index.known(path), None)
        return odd

    def _item(
        self, path: RelPath, fd: int, row: StampRow | None, told: ToldByKernel | None
    ) -> Iterator[Difference]:
        seen = self._seen(fd, name_of(path), path, told)
        if row is not None or seen is not None:
            known = None if row is None else self._index.known(path)
            yield from self._compare(path, known, seen)

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
            told = told_by_kernel(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            told = None
        return self._seen(directory, name, path, told)

    def _seen(
        self, directory: int, name: bytes, path: RelPath, told: ToldByKernel | None
    ) -> Stamp | None:
        """Return the stamp of what the kernel told of ``path``; None is that nothing stands."""
        kind = None if told is None else _KINDS.get(stat.S_IFMT(told[0]))
        if told is not None and kind is None:
            self._note(path, "special", "is a socket, FIFO or device and is left out")
            return None
        self.problems.pop(path, None)
        if told is None or kind is None:
            return None
        try:
            target = os.readlink(name, dir_fd=directory) if kind is Kind.LINK else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stamp_from(told, kind, target)

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


def _listed(fd: int) -> list[_Item]:
    with os.scandir(fd) as items:
        return [(item.name, _told_of(item)) for item in items]


def _told_of(item: os.DirEntry[str]) -> ToldByKernel | None:
    try:
        return told_by_kernel(item.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_same(row: StampRow, told: ToldByKernel) -> bool:
    """Whether a file or directory is surely what its row says; makes no stamp of either."""
    kind, inode, size, mtime_ns, ctime_ns, mode, linked, _ = row
    now, number, links, length, modified, changed = told
    if stat.S_ISREG(now):
        same = (inode, size, mtime_ns, ctime_ns) == (number, length, modified, changed)
        return same and kind == "file" and (mode, linked) == (now & 0o777, links > 1)
    same = (inode, mtime_ns, mode) == (number, modified, now & 0o777)
    return same and kind == "dir" and stat.S_ISDIR(now)


def _is_another(known: Known, seen: Stamp) -> bool:
    """Whether another directory took the name: it brought its content along, and no word of it."""
    return known.stamp is not None and known.stamp.inode != seen.inode


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
