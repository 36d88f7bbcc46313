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
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says nothing of a path: the batch is done again."""

_Item = tuple[str, ToldByKernel | int | None]
"""A name in a directory, and what stands there; None where it is gone again, an errno where nobody
can look at it."""


class Scanner:
    """Scans of one working copy. One thread."""

    def __init__(self, root: bytes, index: Index, excluded: Callable[[RelPath], bool]) -> None:
        """Stand at the absolute path ``root``; ``excluded`` tells what is left out."""
        self.root = root
        self._index = index
        self._excluded = excluded
        self._fd = -1
        self._is_scan = False
        self._passes_over = False
        self.origin: Origin | None = None
        self.problems: dict[RelPath, Problem] = {}

    def scan(
        self, paths: Iterable[RelPath], trees: Iterable[RelPath], *, passes_over: bool = False
    ) -> dict[RelPath, Difference]:
        """Return the differences at ``paths`` (each alone) and in ``trees`` (all beneath).

        A new directory is scanned whole, and so is one that was a file; of a directory that is gone
        only the directory itself is told. Raises OSError where the root cannot be read, and where
        anything cannot be looked at, unless the scan ``passes_over`` that: then it is a problem.
        """
        found: dict[RelPath, Difference] = {}
        self._passes_over = passes_over
        with self._opened(is_scan=True):
            paths, trees = set(paths), set(trees)
            tops = {tree for tree in trees if not self._left_out(tree)}
            before = {p: told for p, told in self.problems.items() if lies_in(p, tops)}
            for tree in tops:
                if not tree or not lies_in(parent_of(tree), tops):
                    found.update((d.path, d) for d in self._tree(tree))
            for path, told in before.items():
                if self.problems.get(path) is told:  # not met again: no row says that it went
                    del self.problems[path]
            for path in paths:
                if not self._left_out(path) and not lies_in(path, tops):
                    found.update((d.path, d) for d in self._path(path))
            for path in filter(_cannot_come, paths | trees):
                self._look_at_left_out(path)
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

    def see(self, path: RelPath) -> Stamp | None:
        """Do as ``look`` does; None is also that nobody can look, which is no absence."""
        with self._opened():
            return self._stamp_or_error(path)[0]

    def gone(self, paths: Iterable[RelPath]) -> set[RelPath]:
        """Return those of ``paths`` where no entry stands now, as far as anybody can look."""
        with self._opened():
            return {path for path in paths if self._stamp_or_error(path) == (None, None)}

    def is_hidden(self, path: RelPath) -> bool:
        """Whether nobody can look at ``path``, as the last scan of it noted."""
        if not lies_in(path, self.problems.keys()):
            return False
        with self._opened():
            return self._stamp_or_error(path)[1] is not None

    def beneath_left_out(self) -> dict[int, RelPath]:
        """Return what lies beneath names that cannot come, by inode: OneData has it under others.

        Of what stands at these names themselves the problems tell.
        """
        waiting = list(filter(_cannot_come, self.problems))
        if not waiting:
            return {}
        found: dict[int, RelPath] = {}
        with self._opened():
            while waiting:
                directory = waiting.pop()
                for name, told in self._names(directory):
                    path = join(directory, os.fsencode(name))
                    kind = _KINDS.get(stat.S_IFMT(told[0]))
                    if kind is Kind.DIRECTORY:
                        waiting.append(path)
                    elif kind is not None:
                        found[stamp_from(told, kind).inode] = path
        return found

    def _names(self, directory: RelPath) -> list[tuple[str, ToldByKernel]]:
        """List what can be looked at in a directory; nothing where it is none."""
        try:
            fd = open_beneath(self._fd, directory, _DIRECTORY)
            try:
                return [(name, told) for name, told in _listed(fd) if isinstance(told, tuple)]
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return []

    @contextmanager
    def _opened(self, *, is_scan: bool = False) -> Iterator[None]:
        """Hold the root open; raises WorkingCopyLost when it is not the one that was deployed.

        Only an ``is_scan`` takes note of problems.
        """
        self._is_scan = is_scan
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

    def _stamp_or_error(self, path: RelPath) -> tuple[Stamp | None, OSError | None]:
        """Look at one path as ``stamp`` does; returns why, where nobody can."""
        try:
            return self.stamp(path), None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return None, error

    def _left_out(self, path: RelPath) -> bool:
        return _cannot_come(path) or bool(path and self._excluded(path))

    def _path(self, path: RelPath) -> Iterator[Difference]:
        was_closed = path in self.problems
        seen, error = self._stamp_or_error(path)
        if error is not None:
            self._note_hidden(path, error)
            return
        known = self._index.known(path)
        if seen is not None and seen.kind is Kind.DIRECTORY:
            whole = (
                was_closed  # what is in it was passed over
                or known is None
                or known.entry.kind is not Kind.DIRECTORY
                or _is_another(known, seen)
            )
            yield from self._tree(path) if whole else self._compare(path, known, seen)
        elif seen is not None or self._is_gone(path):
            yield from self._compare(path, known, seen)

    def _tree(self, top: RelPath) -> Iterator[Difference]:
        seen, error = self._stamp_or_error(top)
        if error is not None:
            self._note_hidden(top, error)
            return
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
            if error.errno in _EXHAUSTED:
                raise
            # Never delete on absence alone: what cannot be listed is a problem, not a deletion.
            self._note(directory, "unreadable", f"cannot be listed: {error.strerror}")
            return
        try:
            found = self._listed(directory, fd)
            if found is None:
                return
            self.problems.pop(directory, None)
            listing = blake3(marshal.dumps(found, 2)).digest()
            if self._index.agreed(directory) == listing:
                waiting += (
                    join(directory, os.fsencode(name))
                    for name, told in found
                    if isinstance(told, tuple) and stat.S_ISDIR(told[0])
                )
                return
            odd = yield from self._compare_all(directory, fd, found, waiting)
        finally:
            os.close(fd)
        if not odd:
            self._index.agree(directory, listing)

    def _listed(self, directory: RelPath, fd: int) -> list[_Item] | None:
        """List a directory; None where that fails for all of it, which is noted."""
        try:
            return _listed(fd)
        except FileNotFoundError:
            return None  # it was removed meanwhile
        except OSError as error:
            self._raise_unless_of_path(directory, error)
            self._note(directory, "unreadable", f"cannot be looked into: {error.strerror}")
            return None

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
            if isinstance(told, tuple) and stat.S_ISDIR(told[0]):
                waiting.append(path)
            if row is None or not isinstance(told, tuple) or not _is_same(row, told):
                differs = list(self._item(path, fd, row, told))
                odd = odd or bool(differs) or row is None or path in self.problems
                yield from differs
            elif self.problems:
                self.problems.pop(path, None)
        for path in (join(directory, name) for name in rows):
            odd = True
            if not self._left_out(path):
                yield from self._missed(path)
        return odd

    def _missed(self, path: RelPath) -> Iterator[Difference]:
        """Compare what has a row and was not listed."""
        seen, error = self._stamp_or_error(path)
        if error is not None:
            self._note_hidden(path, error)
        elif seen is None:
            yield from self._compare(path, self._index.known(path), None)

    def _item(
        self, path: RelPath, fd: int, row: StampRow | None, told: ToldByKernel | int | None
    ) -> Iterator[Difference]:
        if isinstance(told, int):
            self._note_hidden(path, OSError(told, os.strerror(told), path))
            return
        try:
            seen = self._seen(fd, name_of(path), path, told)
        except OSError as error:
            self._note_hidden(path, error)
            return
        if row is not None or seen is not None:
            known = None if row is None else self._index.known(path)
            yield from self._compare(path, known, seen)

    def _note_hidden(self, path: RelPath, error: OSError) -> None:
        """Note what cannot be looked at, or the directory that lets nobody in: nothing went."""
        self._raise_unless_of_path(path, error)
        for directory in _above(path):
            if not self._lets_in(directory):
                self._raise_unless_of_path(directory, error)
                self._note(directory, "unreadable", f"cannot be looked into: {error.strerror}")
                return
        self._note(path, "unreadable", f"cannot be looked at: {error.strerror}")

    def _raise_unless_of_path(self, path: RelPath, error: OSError) -> None:
        """Raise an error that is not one of a single path, or the root's."""
        if not (self._passes_over and path) or error.errno in _EXHAUSTED:
            raise error

    def _lets_in(self, directory: RelPath) -> bool:
        try:
            os.close(open_beneath(self._fd, join(directory, b"."), os.O_PATH))
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return False
        return True

    def _look_at_left_out(self, path: RelPath) -> None:
        """Note what is told of and cannot come: what OneData has of it has to stay."""
        self.problems.pop(path, None)
        seen, error = self._stamp_or_error(path)
        if seen is not None or error is not None:
            self._note_reserved(path)

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
        if self._is_scan and kind is not Kind.DIRECTORY:  # whether that can be listed is not known
            self.problems.pop(path, None)
        if told is None:
            return None
        if kind is None:
            if self._is_scan:
                self._note(path, "special", "is a socket, FIFO or device and is left out")
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


def _above(path: RelPath) -> list[RelPath]:
    """Return the directories that ``path`` lies in, from the root down."""
    found = []
    while path:
        path = parent_of(path)
        found.append(path)
    return found[::-1]


def _cannot_come(path: RelPath) -> bool:
    """Whether OneData never gets ``path``, because of its name."""
    return is_reserved(path) or len(path) > LONGEST_PATH


def _listed(fd: int) -> list[_Item]:
    with os.scandir(fd) as items:
        return [(item.name, _told_of(item, fd)) for item in items]


def _told_of(item: os.DirEntry[str], directory: int) -> ToldByKernel | int | None:
    """Return what stands at a listed name; raises OSError where nobody is let in to any."""
    try:
        return told_by_kernel(item.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
        os.stat(".", dir_fd=directory)
        return error.errno or errno.EIO


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
