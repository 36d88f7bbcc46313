"""Brings a OneData folder into the local working directory.

Folds the manifest, lists the replica, joins both, copies in parallel into temporary names, checks
digests while copying, renames, restores modes and nanosecond times, and makes the links last of
all, so that nothing is ever written through one. Restartable: a file under its final name, with the
manifest's size and time, is finished.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from queue import SimpleQueue
from types import MappingProxyType
from typing import Protocol, TypeVar

from blake3 import blake3

from onesync.beneath import open_beneath, rename_new
from onesync.core import legacy
from onesync.core.blocks import Blocks
from onesync.core.model import (
    DAMAGED_NS,
    RESERVED_PREFIX,
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    doubted_stamp,
    is_damaged_copy,
    is_reserved,
    join,
    lost_stamp,
    name_of,
    parent_of,
    show,
)
from onesync.core.ordering import database_of
from onesync.core.tree import Fold, Tree
from onesync.errors import LocalError
from onesync.local import (
    digest_local,
    digests_of_part,
    on_this_machine,
    open_source,
    stamp_of,
    write_xattrs,
)
from onesync.replica.door import Copied, Listed, Replica
from onesync.replica.flights import aloft
from onesync.sidecars import Sidecars
from onesync.snapshot import may_be_database
from onesync.unverified import has_one_of

CHANGED_OUTSIDE = "changed_outside"
ATTRIBUTES = "attributes"
_NO_FILE = (errno.ENOENT, errno.EINTR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""What may be answered where another kind of thing stands, or nothing."""
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_LARGE = 1 << 20
_HEAD = 256
_GOES_ON_FROM = 64 << 20
"""A smaller file is brought anew where a stage-in died over it."""
_MOST_WAITING = 1000
"""Files that wait for a worker: for each of a million they would take a gigabyte."""
_MOST_LISTED = 100
"""Directories of which listings are waited for."""

T = TypeVar("T")
U = TypeVar("U")
_Row = tuple[Entry, Stamp | None, Blocks | None]
_Fetched = tuple[_Row, Problem | None]
_Item = tuple[RelPath, Entry]


class Rows(Protocol):
    """Where what was staged in is recorded, entry by entry."""

    def put(
        self, path: RelPath, entry: Entry, stamp: Stamp | None, blocks: Blocks | None = None
    ) -> None:
        """Record an entry with the stamp of its local copy; None where it is not here.

        A damaged file keeps the entry that the manifest has of it. ``blocks`` are those of a large
        file that was copied now.
        """


@dataclass(slots=True)
class Staged:
    """What stage-in brought, beside its rows.

    Attributes:
        problems: what was missing, damaged or changed outside.
        fetched: those of the files that were asked about which were copied now; the others were
            here already.
        damaged: digests of what came with other bytes than the manifest says.
        relocated: how many links followed the working directory to its new place.
        strays: what has a sidecar's name in OneData and is not of what is restored beside it.
    """

    problems: list[Problem] = field(default_factory=list)
    fetched: set[RelPath] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    relocated: int = 0
    strays: dict[RelPath, Kind] = field(default_factory=dict)


@dataclass(slots=True)
class _Wanted:
    """What is to be made here. Memory holds directories, large files and what is rare, no others.

    Attributes:
        tree: the manifest's.
        newcomers: files that the manifest does not know.
        left_out: paths of the manifest that are not brought.
        directories: those of the manifest, new ones, and those that lie above anything.
        links: what is linked and the manifest does not know.
        grouped: the files with several names.
        large: files that take longest.
        count: how many files are brought.
    """

    tree: Fold
    newcomers: Fold
    left_out: set[RelPath] = field(default_factory=set)
    directories: dict[RelPath, Entry] = field(default_factory=dict)
    links: dict[RelPath, Entry] = field(default_factory=dict)
    grouped: dict[RelPath, Entry] = field(default_factory=dict)
    large: list[_Item] = field(default_factory=list)
    count: int = 0

    def known(self, kind: Kind) -> Iterator[_Item]:
        """Yield those of the manifest that are brought."""
        return (item for item in self.tree.of_kind(kind) if item[0] not in self.left_out)

    def want_file(self, path: RelPath, entry: Entry) -> None:
        """Count a file."""
        self.count += 1
        if entry.size >= _LARGE:
            self.large.append((path, entry))

    def files(self, names: Mapping[RelPath, RelPath]) -> Iterator[_Item]:
        """Yield the files without the other names of linked ones; the large ones come first."""
        self.large.sort(key=lambda item: -item[1].size)
        every = chain(self.known(Kind.FILE), self.newcomers.items())
        small = (item for item in every if item[1].size < _LARGE)
        return (item for item in chain(self.large, small) if item[0] not in names)


class Conflict(Exception):
    """A local file stands where another one should be staged in; nothing was overwritten.

    Or a journal or log ``beside`` where its database would be another one than it is of.
    """

    def __init__(self, path: RelPath, beside: Iterable[RelPath] = ()) -> None:
        super().__init__(" with ".join(map(show, (path, *beside))))


class StageIn:
    """One stage-in; one thread, working with the pool's."""

    def __init__(
        self,
        replica: Replica,
        root: bytes,
        pool: ThreadPoolExecutor,
        advanced: Callable[[int, int], None],
        rows: Rows,
        moves: Sequence[tuple[bytes, bytes]] = (),
        asked: AbstractSet[RelPath] = frozenset(),
        sidecars: Sidecars | None = None,
        unwritten: Mapping[RelPath, Stamp] = MappingProxyType({}),
    ) -> None:
        """Prepare.

        Args:
            replica: the door.
            root: absolute path of the working copy.
            pool: the workers.
            advanced: told files done and files in all, in this thread; may raise to give up.
            rows: told what came, in this thread.
            moves: (old, new) working directories: absolute links into the old follow to the new.
            asked: of which it is told whether they were copied.
            sidecars: what stands beside databases in the working copy; None where it is new.
            unwritten: databases that stand here, and of which OneData has snapshots all the same.
        """
        self._replica = replica
        self._root = root
        self._pool = pool
        self._advanced = advanced
        self._rows = rows
        self._moves = moves
        self._asked = asked
        self._sidecars = sidecars
        self._unwritten = unwritten
        self._beside: dict[RelPath, list[RelPath]] = {}
        self._whole: dict[RelPath, Stamp] = {}
        self._tied: dict[RelPath, _Row] = {}
        self._made: set[RelPath] = set()

    def run(self, tree: Fold, newcomers: Fold | None = None) -> Staged:
        """Stage in the manifest's ``tree`` and whatever else the replica holds.

        ``newcomers``, an empty one, takes what the manifest does not know. Raises Conflict where a
        local file would have to be overwritten.
        """
        staged = Staged()
        wanted = _Wanted(tree, Tree() if newcomers is None else newcomers)
        self._look_at_all(wanted, staged)
        self._look_beside_databases(wanted)
        self._make_directories(wanted.directories)
        names = _other_names(wanted.grouped)
        count = wanted.count - len(names)
        self._advanced(0, count)
        with closing(self._fetched(wanted.files(names), staged)) as results:
            for done, ((path, _), (row, problem)) in enumerate(results, 1):
                if path in wanted.grouped:
                    self._tied[path] = row
                else:
                    self._rows.put(path, *row)
                staged.problems += [problem] if problem is not None else []
                self._advanced(done, count)
        self._tie(names, wanted, staged)
        self._finish(wanted, staged)
        return staged

    def _fetched(
        self, left: Iterator[_Item], staged: Staged
    ) -> Generator[tuple[_Item, _Fetched], None, None]:
        """Fetch what is ``left`` and yield what came of each."""

        def some(most: int) -> Iterable[_Item]:
            return islice(left, most)

        return self._as_they_come(lambda item: self._fetch(*item, staged), some, _MOST_WAITING)

    def _as_they_come(
        self, act: Callable[[T], U], some: Callable[[int], Iterable[T]], most: int
    ) -> Generator[tuple[T, U], None, None]:
        """Let the workers do ``act`` and yield each result, as it comes; few wait at a time.

        ``some`` gives up to so many that are to be done, also such as earlier results led to.
        """
        waiting: dict[Future[U], T] = {}
        done: SimpleQueue[Future[U]] = SimpleQueue()
        try:
            while True:
                for item in some(most - len(waiting)):
                    future = self._pool.submit(act, item)
                    waiting[future] = item
                    future.add_done_callback(done.put)
                if not waiting:
                    return
                future = done.get()
                yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()

    def _tie(self, names: Mapping[RelPath, RelPath], wanted: _Wanted, staged: Staged) -> None:
        """Make the other names of hard-linked files, and record all of theirs."""
        damaged = {p.path for p in staged.problems if p.kind != ATTRIBUTES}
        tied = self._tied
        for path, first in names.items():
            if first in damaged:
                tied[path], problem = self._fetch(path, wanted.grouped[path], staged)
                staged.problems += [problem] if problem else []
                continue
            self._make_name(path, wanted.grouped[path], first)
            tied[path] = (tied[first][0], None, None)
        for path, (entry, stamp, blocks) in tied.items():
            if entry.group and path not in damaged:
                with _Parent(self._root, path) as parent:
                    status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
                stamp = stamp_of(status, Kind.FILE)
                # Groups are told apart by inodes, and this node has its own.
                entry = replace(entry, group=stamp.inode if stamp.linked else 0)
            self._rows.put(path, entry, stamp, blocks)

    def _make_name(self, path: RelPath, entry: Entry, first: RelPath) -> None:
        with _Parent(self._root, path) as parent, _Parent(self._root, first) as origin:
            with suppress(FileNotFoundError):
                found = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
                original = os.stat(name_of(first), dir_fd=origin, follow_symlinks=False)
                if os.path.samestat(found, original):
                    return
                self._refuse_conflict(path, entry, digest_local(join(self._root, first)).digest)
                os.unlink(name_of(path), dir_fd=parent)
            os.link(name_of(first), name_of(path), src_dir_fd=origin, dst_dir_fd=parent)

    def _look_at_all(self, wanted: _Wanted, staged: Staged) -> None:
        """List the replica, and find out what is to be brought."""
        blocked = _blocked_by(wanted.tree)
        is_there = self._list_all(wanted, staged, blocked)
        for path, entry in wanted.tree.items():
            if (above := blocked(parent_of(path))) is not None:
                text = (
                    f"The manifest has {show(path)} beneath {show(above)}, which is no directory:"
                    " no onesync wrote that. It was not restored; see who may write to the folder."
                )
                self._leave_out(path, entry, Problem(path, "misplaced", text), wanted, staged)
            elif entry.kind is Kind.FILE and not (is_there(path) or self._is_file_there(path)):
                self._leave_out(path, entry, _missing(path), wanted, staged)
            elif entry.kind is Kind.DIRECTORY:
                wanted.directories[path] = entry
            elif entry.kind is Kind.FILE:
                wanted.want_file(path, entry)
                if entry.group and entry.digest:
                    wanted.grouped[path] = entry
        if not wanted.tree:
            self._add_legacy_links(wanted)
        self._add_directories_above(wanted)

    @on_this_machine()
    def _look_beside_databases(self, wanted: _Wanted) -> None:
        """Find out which databases are, with the journal or log beside them, OneData's version."""
        if self._sidecars is None:
            return
        for path, names in self._sidecars.beside.items():
            both = (wanted.tree, wanted.newcomers)
            beside = [name for name in names if not any(name in tree for tree in both)]
            entry = wanted.tree.get(path)
            if beside:
                self._beside[path] = beside
            if beside and entry is not None and self._sidecars.is_as_pushed(path, entry.digest):
                with _Parent(self._root, path) as parent:
                    status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
                self._whole[path] = stamp_of(status, Kind.FILE)

    def _leave_out(
        self, path: RelPath, entry: Entry, problem: Problem, wanted: _Wanted, staged: Staged
    ) -> None:
        staged.problems.append(problem)
        self._rows.put(path, entry, None)
        wanted.left_out.add(path)

    def _is_file_there(self, path: RelPath) -> bool:
        """Look: a listing may be stale; a name is called missing only when it was looked up."""
        found = self._replica.look(path)
        return found is not None and found.kind is Kind.FILE

    def _list_all(
        self,
        wanted: _Wanted,
        staged: Staged,
        blocked: Callable[[RelPath], RelPath | None],
    ) -> Callable[[RelPath], bool]:
        """List the replica; files of the tree are not looked at, for they will be opened.

        Returns what tells whether a listing had a file of the tree.
        """
        listed: set[RelPath] = set()
        absent: set[RelPath] = set()
        below: deque[RelPath] = deque([b""])

        def some(most: int) -> Iterator[tuple[RelPath, dict[bytes, Kind]]]:
            for _ in range(min(most, len(below))):
                directory = below.popleft()
                yield directory, wanted.tree.kinds_in(directory)

        with closing(self._as_they_come(self._listed, some, _MOST_LISTED)) as results:
            for (directory, known), items in results:
                if items is None:
                    continue
                listed.add(directory)
                there = {item.name for item in items if item.kind is Kind.FILE}
                absent.update(join(directory, name) for name in _files(known) - there)
                for item in items:
                    path = join(directory, item.name)
                    if is_reserved(path) or item.kind is Kind.LINK:
                        continue
                    is_new = item.name not in known
                    if is_new and database_of(path) in wanted.tree:
                        staged.strays[path] = item.kind
                        continue
                    if item.kind is Kind.DIRECTORY:
                        below.append(path)
                    if is_new:
                        self._add_newcomer(path, item, blocked(directory), wanted, staged)
        return lambda path: path not in absent and parent_of(path) in listed

    def _listed(self, asked: tuple[RelPath, dict[bytes, Kind]]) -> list[Listed] | None:
        """List a directory; None where the manifest alone has one.

        What the manifest knows is not looked at, and neither is our own folder.
        """
        directory, known = asked
        sure = {name: kind for name, kind in known.items() if kind is not Kind.LINK}
        if not directory:
            sure[STATUS_FOLDER] = Kind.DIRECTORY
        try:
            return self._replica.list(directory, sure)
        except OSError as error:
            if not directory or error.errno not in _NO_DIRECTORY:
                raise
            return None

    def _add_newcomer(
        self,
        path: RelPath,
        item: Listed,
        above: RelPath | None,
        wanted: _Wanted,
        staged: Staged,
    ) -> None:
        """Want what the manifest does not know, unless it must stay in OneData."""
        if above is not None:
            text = f"{show(path)} is left in OneData: {show(above)} is no directory here."
            staged.problems.append(Problem(path, "newcomer", text))
        elif item.kind is Kind.DIRECTORY:
            wanted.directories[path] = Entry(Kind.DIRECTORY, mode=0o755)
        else:
            entry = Entry(Kind.FILE, item.size, mode=0o644)
            wanted.newcomers.put(path, entry)
            wanted.want_file(path, entry)

    def _add_legacy_links(self, wanted: _Wanted) -> None:
        directories = {b"", *wanted.directories}
        for name, parse in ((b"linklist", legacy.linklist), (b"symlink-dump", legacy.symlink_dump)):
            for place in (join(STATUS_FOLDER, name), join(b"scipion-docker", name), name):
                try:
                    content = self._replica.read(place)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for path, target in parse(content, directories):
                    if path not in directories and path not in wanted.newcomers:
                        wanted.links.setdefault(path, Entry(Kind.LINK, target=target))

    def _add_directories_above(self, wanted: _Wanted) -> None:
        """Want the directories that nobody told of, above what is brought."""
        paths = (path for path in wanted.tree if path not in wanted.left_out)
        for path in chain(paths, wanted.newcomers, wanted.links, list(wanted.directories)):
            above = parent_of(path)
            while above and above not in wanted.directories:
                wanted.directories[above] = Entry(Kind.DIRECTORY, mode=0o755)
                above = parent_of(above)

    @on_this_machine()
    def _make_directories(self, directories: Iterable[RelPath]) -> None:
        for path in sorted(directories, key=lambda p: p.count(b"/")):
            if not path:
                continue
            with _Parent(self._root, path) as parent:
                try:
                    os.mkdir(name_of(path), 0o700, dir_fd=parent)
                    self._made.add(path)
                except FileExistsError:
                    _open_for_us(parent, path)

    def _fetch(self, path: RelPath, entry: Entry, staged: Staged) -> _Fetched:
        # In a directory that was made just now nothing lies of an earlier, interrupted stage-in.
        is_new = parent_of(path) in self._made
        present = None if is_new else self._whole.get(path) or self._finished(path, entry)
        if present is not None:
            return self._kept(path, entry, present)
        if path in self._beside:
            raise Conflict(path, self._beside[path])  # it would be rolled back into the new one
        temporary = join(parent_of(path), RESERVED_PREFIX + _short_digest(path))
        local = join(self._root, temporary)
        try:
            # No descriptor is held meanwhile: there are as many workers as calls.
            with aloft(path, entry.size, is_fetched=True):
                copied = self._copied(path, entry, temporary, is_new=is_new)
        except OSError as error:
            if not entry.digest or isinstance(error, LocalError) or self._is_file(path, error):
                raise
            return (entry, None, None), _missing(path)
        if path in self._asked:
            staged.fetched.add(path)
        self._restore_xattrs(path, local, entry, staged)
        is_damaged = entry.digest not in ("", copied.digest)
        is_hollow = is_damaged and _begins_with_zeros(local)
        with _Parent(self._root, path) as parent:
            if is_damaged:  # before it has its name: we may die before anybody is told
                later = entry.mtime_ns + DAMAGED_NS
                times = (later, later)
                os.utime(name_of(temporary), ns=times, dir_fd=parent, follow_symlinks=False)
            try:
                rename_new(parent, name_of(temporary), parent, name_of(path))
            except (FileExistsError, NotImplementedError):
                self._refuse_conflict(path, entry, copied.digest)
                os.rename(name_of(temporary), name_of(path), src_dir_fd=parent, dst_dir_fd=parent)
            status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        stamp = stamp_of(status, Kind.FILE)
        if is_damaged:
            staged.damaged.add(copied.digest)
            return (entry, stamp, None), _damaged(path, entry, copied.size, is_hollow=is_hollow)
        got = replace(
            entry,
            size=copied.size,
            mtime_ns=stamp.mtime_ns,
            mode=stamp.mode,
            digest=copied.digest,
        )
        return (got, stamp, copied.blocks), None

    def _kept(self, path: RelPath, entry: Entry, present: Stamp) -> _Fetched:
        """Keep a file that stands here as the manifest has it; OneData may have another one by now.

        What OneData has lost of it is sent anew; what somebody put there is not brought over it.
        """
        found = self._replica.look(path)
        if found is not None and found.kind is Kind.FILE and found.size == entry.size:
            return (entry, present, None), None
        if found is None or (found.kind is Kind.FILE and self._is_left_of(path, entry, found.size)):
            return (entry, doubted_stamp(Kind.FILE), None), None
        return (entry, present, None), _another(path)

    def _is_left_of(self, path: RelPath, entry: Entry, size: int) -> bool:
        """Whether the ``size`` bytes that OneData has are the first ones of ours, or zeros."""
        if size > entry.size:
            return False
        return has_one_of(self._replica, path, digests_of_part(join(self._root, path), size))

    def _copied(self, path: RelPath, entry: Entry, temporary: RelPath, *, is_new: bool) -> Copied:
        """Copy a file; a large one goes on where an earlier stage-in died over it.

        Where ``is_new``, nothing of one lies in its directory.
        """
        local, mode = join(self._root, temporary), _mode_until_named(entry)
        mtime_ns = entry.mtime_ns if entry.digest else None
        if is_new:
            try:
                return self._replica.fetch(path, local, mode, mtime_ns)
            except (LocalError, FileExistsError) as error:
                if error.errno not in (*_NO_DIRECTORY, errno.EEXIST):
                    raise  # else somebody was at the directory: it is as any other one
        may_go_on = bool(entry.digest) and entry.size >= _GOES_ON_FROM
        if may_go_on and self._stands(temporary):
            copied = self._replica.fetch(path, local, mode, mtime_ns, goes_on=True)
            if copied.digest == entry.digest:
                return copied
        # What it would go on from is another version's, or was not on the disk yet.
        with _Parent(self._root, temporary) as parent, suppress(FileNotFoundError):
            os.unlink(name_of(temporary), dir_fd=parent)
        return self._replica.fetch(path, local, mode, mtime_ns)

    def _stands(self, temporary: RelPath) -> bool:
        with _Parent(self._root, temporary) as parent, suppress(FileNotFoundError):
            os.stat(name_of(temporary), dir_fd=parent, follow_symlinks=False)
            return True
        return False

    def _is_file(self, path: RelPath, error: OSError) -> bool:
        """Whether what could not be opened is a file all the same, as far as ``error`` tells."""
        if error.errno not in _NO_FILE:
            return True
        found = self._replica.look(path)
        return found is not None and found.kind is Kind.FILE

    @on_this_machine()
    def _restore_xattrs(self, path: RelPath, local: bytes, entry: Entry, staged: Staged) -> None:
        if not entry.xattrs:
            return
        fd = open_source(local)
        try:
            write_xattrs(fd, entry.xattrs)
        except OSError as error:
            staged.problems.append(_without_xattrs(path, error))
        finally:
            os.fchmod(fd, entry.mode)
            os.close(fd)

    def _refuse_conflict(self, path: RelPath, entry: Entry, digest: str) -> None:
        """Raise Conflict where another file than the one with ``digest`` stands.

        An earlier stage-in may have left this very file, or a damaged copy, of which OneData has
        another version now; an earlier deployment a database that was not rolled back yet, or
        without its log. Nothing else is ours.
        """
        try:
            present = digest_local(join(self._root, path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise Conflict(path) from error
        is_ours = is_damaged_copy(entry, present.before)
        is_ours |= self._unwritten.get(path) == present.before
        if present.digest != digest and not is_ours:
            raise Conflict(path)

    def _finished(self, path: RelPath, entry: Entry) -> Stamp | None:
        """Return the stamp of a file that an earlier, interrupted stage-in finished."""
        if not entry.digest:
            return None
        try:
            with _Parent(self._root, path) as parent:
                status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        same = (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
        return stamp_of(status, Kind.FILE) if same and self._holds(path, entry) else None

    @on_this_machine()
    def _holds(self, path: RelPath, entry: Entry) -> bool:
        """Whether a file that looks finished is; a database may be one that lost its journal."""
        if not may_be_database(self._root, path, entry):
            return True
        return digest_local(join(self._root, path)).digest == entry.digest

    def _finish(self, wanted: _Wanted, staged: Staged) -> None:
        for path, entry in chain(wanted.known(Kind.LINK), wanted.links.items()):
            moved = Entry(Kind.LINK, target=self._relocated(entry.target))
            staged.relocated += moved != entry
            self._rows.put(path, moved, self._link(path, moved))
        for path in sorted(wanted.directories, key=lambda path: -path.count(b"/")):
            entry = wanted.directories[path]
            self._rows.put(path, entry, self._directory_times(path, entry, staged))

    def _relocated(self, target: bytes) -> bytes:
        for old, new in self._moves:
            if target == old or target.startswith(old + b"/"):
                return new + target[len(old) :]
        return target

    @on_this_machine()
    def _link(self, path: RelPath, entry: Entry) -> Stamp:
        with _Parent(self._root, path) as parent:
            with suppress(FileNotFoundError):
                if not stat.S_ISLNK(os.lstat(name_of(path), dir_fd=parent).st_mode):
                    raise Conflict(path)
                os.unlink(name_of(path), dir_fd=parent)
            os.symlink(entry.target, name_of(path), dir_fd=parent)
            status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        return stamp_of(status, Kind.LINK, entry.target)

    @on_this_machine()
    def _directory_times(self, path: RelPath, entry: Entry, staged: Staged) -> Stamp:
        root = os.open(self._root, _O_DIRECTORY)
        try:
            fd = open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(root)
        try:
            try:
                write_xattrs(fd, entry.xattrs)
            except OSError as error:
                staged.problems.append(_without_xattrs(path, error))
            os.fchmod(fd, entry.mode or 0o755)
            if entry.mtime_ns:
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            # Without a time it is dirty, but it was here: should it go, that is a deletion.
            known = stamp_of(os.fstat(fd), Kind.DIRECTORY)
            return known if entry.mtime_ns else lost_stamp(Kind.DIRECTORY)
        finally:
            os.close(fd)


def _open_for_us(parent: int, path: RelPath) -> None:
    """Let us write in a directory that is there already; raises Conflict where it is none."""
    try:
        fd = open_beneath(parent, name_of(path), os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise Conflict(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Conflict(path) from None
        raise
    try:
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


class _Parent:
    """The descriptor of the directory that ``path`` lies in, beneath the working copy's root."""

    def __init__(self, root: bytes, path: RelPath) -> None:
        self._root = root
        self._path = path
        self._fd = -1

    def __enter__(self) -> int:
        root = os.open(self._root, _O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._fd = open_beneath(root, parent_of(self._path), _O_DIRECTORY)
        finally:
            os.close(root)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _other_names(grouped: Mapping[RelPath, Entry]) -> dict[RelPath, RelPath]:
    """Return the names of hard-linked files beside the first of each, with that first one."""
    firsts: dict[tuple[int, str], RelPath] = {}
    names = {}
    for path in sorted(grouped):
        entry = grouped[path]
        first = firsts.setdefault((entry.group, entry.digest), path)
        if first != path:
            names[path] = first
    return names


def _blocked_by(tree: Fold) -> Callable[[RelPath], RelPath | None]:
    """Return what tells which one of a directory and those above it is none in ``tree``, if any."""

    @lru_cache(1000)
    def blocked(directory: RelPath) -> RelPath | None:
        while directory:
            found = tree.get(directory)
            if found is not None and found.kind is not Kind.DIRECTORY:
                return directory
            directory = parent_of(directory)
        return None

    return blocked


def _files(known: Mapping[bytes, Kind]) -> set[bytes]:
    return {name for name, kind in known.items() if kind is Kind.FILE}


def _without_xattrs(path: RelPath, error: OSError) -> Problem:
    text = (
        f"The extended attributes of {show(path)} could not be restored ({error.strerror}); the"
        " file system of the working directory may know none. All else of it is here."
    )
    return Problem(path, ATTRIBUTES, text)


def _short_digest(path: RelPath) -> bytes:
    return blake3(path).hexdigest(16).encode()


def _mode_until_named(entry: Entry) -> int:
    """Return a mode with which its owner may still give a file its attributes."""
    return entry.mode | 0o600 if entry.xattrs else entry.mode


def _missing(path: RelPath) -> Problem:
    text = f"{show(path)} is in the manifest but not in OneData; it was not restored."
    return Problem(path, "missing", text)


def _damaged(path: RelPath, entry: Entry, size: int, *, is_hollow: bool) -> Problem:
    """Return what is told of a file that is not what the manifest says, as far as it shows why."""
    sizes = f"{size} of {entry.size} bytes"
    if size < entry.size:
        what = (
            f"is shorter than the manifest says ({sizes}): part of it never arrived, or was cut off"
        )
    elif is_hollow:
        what = f"begins with zeros, unlike the manifest says ({sizes}): part of it never arrived"
    else:
        what = f"is not what the manifest says ({sizes}): it was changed outside or is damaged"
    text = f"{show(path)} in OneData {what}. It was brought as it is; compare it with a backup."
    return Problem(path, CHANGED_OUTSIDE, text)


def _another(path: RelPath) -> Problem:
    text = (
        f"{show(path)} in OneData is another one than the last deployment left there; here is still"
        " the one of that deployment. To have OneData's, move this one away and deploy again; when"
        " this one is changed it takes the other's place."
    )
    return Problem(path, CHANGED_OUTSIDE, text)


def _begins_with_zeros(local: bytes) -> bool:
    """Whether the head of a file is a hole: so they look that a client wrote from the middle on."""
    fd = open_source(local)
    try:
        head = os.pread(fd, _HEAD, 0)
    finally:
        os.close(fd)
    return bool(head) and not any(head)
