"""Brings a OneData folder into the local working directory.

Folds the manifest, lists the replica, joins both, copies in parallel into temporary names, checks
digests while copying, renames, restores modes and nanosecond times, and makes the links last of
all, so that nothing is ever written through one. Restartable: a file under its final name is
finished.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import SimpleQueue

from blake3 import blake3

from onesync.beneath import open_beneath
from onesync.core import legacy
from onesync.core.blocks import Blocks
from onesync.core.model import (
    RESERVED_PREFIX,
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    is_reserved,
    join,
    lost_stamp,
    name_of,
    parent_of,
    show,
)
from onesync.core.ordering import database_of
from onesync.errors import LocalError
from onesync.local import digest_local, on_this_machine, open_source, stamp_of, write_xattrs
from onesync.replica.door import Listed, Replica
from onesync.replica.flights import aloft

CHANGED_OUTSIDE = "changed_outside"
ATTRIBUTES = "attributes"
_NO_FILE = (errno.ENOENT, errno.EINTR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""What may be answered where another kind of thing stands, or nothing."""
_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_MOST_WAITING = 1000
"""Files that wait for a worker: for each of a million they would take a gigabyte."""
_Fetched = tuple[Entry, Stamp | None, Problem | None]


@dataclass(slots=True)
class Staged:
    """What stage-in brought.

    Attributes:
        tree: every entry with the stamp of its local copy; None where it is not here. A
            damaged file keeps the entry that the manifest has of it.
        problems: what was missing, damaged or changed outside.
        fetched: the files that were copied now; the others were here already.
        relocated: how many links followed the working directory to its new place.
        blocks: digests of the blocks of large files, by the files' digests.
    """

    tree: dict[RelPath, tuple[Entry, Stamp | None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    fetched: set[RelPath] = field(default_factory=set)
    relocated: int = 0
    blocks: dict[str, Blocks] = field(default_factory=dict)


class Conflict(Exception):
    """A local file stands where another one should be staged in; nothing was overwritten."""

    def __init__(self, path: RelPath) -> None:
        super().__init__(show(path))


class StageIn:
    """One stage-in; one thread, working with the pool's."""

    def __init__(
        self,
        replica: Replica,
        root: bytes,
        pool: ThreadPoolExecutor,
        advanced: Callable[[int, int], None],
        moves: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Prepare.

        Args:
            replica: the door.
            root: absolute path of the working copy.
            pool: the workers.
            advanced: told files done and files in all, in this thread; may raise to give up.
            moves: (old, new) working directories: absolute links into the old follow to the new.
        """
        self._replica = replica
        self._root = root
        self._pool = pool
        self._advanced = advanced
        self._moves = moves

    def run(self, tree: Mapping[RelPath, Entry]) -> Staged:
        """Stage in the manifest's ``tree`` and whatever else the replica holds.

        Raises Conflict where a local file would have to be overwritten.
        """
        staged = Staged()
        listed = self._list_all(tree)
        wanted = self._join(tree, listed, staged)
        self._make_directories(wanted)
        names = _other_names(wanted)
        files = [(p, e) for p, e in wanted.items() if e.kind is Kind.FILE and p not in names]
        files.sort(key=lambda item: -item[1].size)
        self._advanced(0, len(files))
        with closing(self._fetched(files, staged)) as results:
            for done, (path, (entry, stamp, problem)) in enumerate(results, 1):
                staged.tree[path] = (entry, stamp)
                if problem is not None:
                    staged.problems.append(problem)
                self._advanced(done, len(files))
        self._tie(names, wanted, staged)
        self._finish(wanted, staged)
        return staged

    def _fetched(
        self, files: list[tuple[RelPath, Entry]], staged: Staged
    ) -> Generator[tuple[RelPath, _Fetched], None, None]:
        """Fetch ``files`` and yield what came of each, as it comes; few wait at a time."""
        left = iter(files)
        waiting: dict[Future[_Fetched], RelPath] = {}
        done: SimpleQueue[Future[_Fetched]] = SimpleQueue()
        try:
            while True:
                for path, entry in islice(left, _MOST_WAITING - len(waiting)):
                    future = self._pool.submit(self._fetch, path, entry, staged)
                    waiting[future] = path
                    future.add_done_callback(done.put)
                if not waiting:
                    return
                future = done.get()
                yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()

    def _tie(
        self, names: dict[RelPath, RelPath], wanted: dict[RelPath, Entry], staged: Staged
    ) -> None:
        """Make the other names of hard-linked files."""
        damaged = {p.path for p in staged.problems if p.kind != ATTRIBUTES}
        for path, first in names.items():
            if first in damaged:
                entry, stamp, problem = self._fetch(path, wanted[path], staged)
                staged.tree[path] = (entry, stamp)
                staged.problems += [problem] if problem else []
                continue
            self._make_name(path, first)
            staged.tree[path] = (staged.tree[first][0], None)
        for path in [p for p, (e, _) in staged.tree.items() if e.group and p not in damaged]:
            with _Parent(self._root, path) as parent:
                status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
            stamp = stamp_of(status, Kind.FILE)
            # Groups are told apart by inodes, and this node has its own.
            group = stamp.inode if stamp.linked else 0
            staged.tree[path] = (replace(staged.tree[path][0], group=group), stamp)

    def _make_name(self, path: RelPath, first: RelPath) -> None:
        with _Parent(self._root, path) as parent, _Parent(self._root, first) as origin:
            with suppress(FileNotFoundError):
                found = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
                original = os.stat(name_of(first), dir_fd=origin, follow_symlinks=False)
                if os.path.samestat(found, original):
                    return
                self._refuse_conflict(path, digest_local(join(self._root, first)).digest)
                os.unlink(name_of(path), dir_fd=parent)
            os.link(name_of(first), name_of(path), src_dir_fd=origin, dst_dir_fd=parent)

    def _list_all(self, tree: Mapping[RelPath, Entry]) -> dict[RelPath, Listed]:
        """List the replica; files of ``tree`` are not looked at, for they will be opened."""
        known: defaultdict[RelPath, set[bytes]] = defaultdict(set)
        for path, entry in tree.items():
            if entry.kind is Kind.FILE:
                known[parent_of(path)].add(name_of(path))
        found: dict[RelPath, Listed] = {}
        level: list[RelPath] = [b""]
        while level:
            below: list[RelPath] = []
            files = [known.pop(directory, set()) for directory in level]
            lists = self._pool.map(self._replica.list, level, files)
            for directory, items in zip(level, lists, strict=True):
                for item in items:
                    path = join(directory, item.name)
                    if is_reserved(path) or item.kind is Kind.LINK:
                        continue
                    found[path] = item
                    if item.kind is Kind.DIRECTORY:
                        below.append(path)
            level = below
        return found

    def _join(
        self, tree: Mapping[RelPath, Entry], listed: dict[RelPath, Listed], staged: Staged
    ) -> dict[RelPath, Entry]:
        """Return what to stage in; newcomers have no digest and no time yet."""
        wanted: dict[RelPath, Entry] = {}
        for path, entry in tree.items():
            if (above := _not_a_directory(tree, path)) is not None:
                text = (
                    f"The manifest has {show(path)} beneath {show(above)}, which is no directory:"
                    " no onesync wrote that. It was not restored; see who may write to the folder."
                )
                staged.problems.append(Problem(path, "misplaced", text))
                staged.tree[path] = (entry, None)
                continue
            found = listed.get(path)
            if entry.kind is Kind.FILE and found is None:
                # A listing may be stale; a name is called missing only when it was looked up.
                found = self._replica.look(path)
            if entry.kind is Kind.FILE and (found is None or found.kind is not Kind.FILE):
                staged.problems.append(_missing(path))
                staged.tree[path] = (entry, None)
                continue
            wanted[path] = entry
        for path, item in listed.items():
            if (base := database_of(path)) in tree and path not in tree and base is not None:
                text = f"{show(path)} is not of the {show(base)} that is restored: left in OneData."
                staged.problems.append(Problem(path, "stray_sidecar", text))
            elif (above := _not_a_directory(tree, path)) is not None:
                text = f"{show(path)} is left in OneData: {show(above)} is no directory here."
                staged.problems.append(Problem(path, "newcomer", text))
            elif path not in tree:
                size = item.size if item.kind is Kind.FILE else 0
                mode = 0o644 if item.kind is Kind.FILE else 0o755
                wanted[path] = Entry(item.kind, size=size, mode=mode)
        if not tree:
            self._add_legacy_links(wanted, listed)
        return wanted

    def _add_legacy_links(
        self, wanted: dict[RelPath, Entry], listed: dict[RelPath, Listed]
    ) -> None:
        directories = {p for p, item in listed.items() if item.kind is Kind.DIRECTORY} | {b""}
        for name, parse in ((b"linklist", legacy.linklist), (b"symlink-dump", legacy.symlink_dump)):
            for place in (join(STATUS_FOLDER, name), join(b"scipion-docker", name), name):
                try:
                    content = self._replica.read(place)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for path, target in parse(content, directories):
                    wanted.setdefault(path, Entry(Kind.LINK, target=target))

    @on_this_machine()
    def _make_directories(self, wanted: dict[RelPath, Entry]) -> None:
        directories = {p for p, e in wanted.items() if e.kind is Kind.DIRECTORY}
        for path in list(wanted):
            above = parent_of(path)
            while above and above not in directories:
                directories.add(above)
                wanted.setdefault(above, Entry(Kind.DIRECTORY, mode=0o755))
                above = parent_of(above)
        for path in sorted(directories, key=lambda p: p.count(b"/")):
            if not path:
                continue
            with _Parent(self._root, path) as parent:
                try:
                    os.mkdir(name_of(path), 0o700, dir_fd=parent)
                except FileExistsError:
                    _open_for_us(parent, path)

    def _fetch(self, path: RelPath, entry: Entry, staged: Staged) -> _Fetched:
        present = self._finished(path, entry)
        if present is not None:
            return entry, present, None
        temporary = join(parent_of(path), RESERVED_PREFIX + _short_digest(path))
        with _Parent(self._root, path) as parent:
            with suppress(FileNotFoundError):
                os.unlink(name_of(temporary), dir_fd=parent)
            mtime_ns = entry.mtime_ns if entry.digest else None
            local = join(self._root, temporary)
            try:
                with aloft(path, entry.size, is_fetched=True):
                    copied = self._replica.fetch(path, local, entry.mode, mtime_ns)
            except OSError as error:
                if not entry.digest or isinstance(error, LocalError) or self._is_file(path, error):
                    raise
                return entry, None, _missing(path)
            staged.fetched.add(path)
            self._restore_xattrs(path, local, entry, staged)
            self._refuse_conflict(path, copied.digest)
            if copied.blocks is not None:
                staged.blocks[copied.digest] = copied.blocks
            os.rename(name_of(temporary), name_of(path), src_dir_fd=parent, dst_dir_fd=parent)
            status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        stamp = stamp_of(status, Kind.FILE)
        if entry.digest and entry.digest != copied.digest:
            return entry, stamp, _damaged(path, entry, copied.size)
        got = replace(
            entry,
            size=copied.size,
            mtime_ns=stamp.mtime_ns,
            mode=stamp.mode,
            digest=copied.digest,
        )
        return got, stamp, None

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
        # A file of mode 0 is opened by nobody but root, not even by its owner.
        os.chmod(local, entry.mode | 0o400)
        fd = open_source(local)
        try:
            write_xattrs(fd, entry.xattrs)
        except OSError as error:
            staged.problems.append(_without_xattrs(path, error))
        finally:
            os.fchmod(fd, entry.mode)
            os.close(fd)

    def _refuse_conflict(self, path: RelPath, digest: str) -> None:
        """An earlier, interrupted stage-in may have left this very file; nothing else is ours."""
        try:
            present = digest_local(join(self._root, path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise Conflict(path) from error
        if present.digest != digest:
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
        return stamp_of(status, Kind.FILE) if same else None

    def _finish(self, wanted: dict[RelPath, Entry], staged: Staged) -> None:
        for path, entry in wanted.items():
            if entry.kind is Kind.LINK:
                moved = Entry(Kind.LINK, target=self._relocated(entry.target))
                staged.relocated += moved != entry
                staged.tree[path] = (moved, self._link(path, moved))
        directories = [(p, e) for p, e in wanted.items() if e.kind is Kind.DIRECTORY]
        for path, entry in sorted(directories, key=lambda item: -item[0].count(b"/")):
            staged.tree[path] = (entry, self._directory_times(path, entry, staged))

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


def _other_names(wanted: dict[RelPath, Entry]) -> dict[RelPath, RelPath]:
    """Return the names of hard-linked files beside the first of each, with that first one."""
    firsts: dict[tuple[int, str], RelPath] = {}
    names = {}
    for path in sorted(wanted):
        entry = wanted[path]
        if entry.group and entry.digest:
            first = firsts.setdefault((entry.group, entry.digest), path)
            if first != path:
                names[path] = first
    return names


def _not_a_directory(tree: Mapping[RelPath, Entry], path: RelPath) -> RelPath | None:
    """Return what lies above ``path`` and has another kind than a directory's, if anything."""
    above = parent_of(path)
    while above:
        if above in tree and tree[above].kind is not Kind.DIRECTORY:
            return above
        above = parent_of(above)
    return None


def _without_xattrs(path: RelPath, error: OSError) -> Problem:
    text = (
        f"The extended attributes of {show(path)} could not be restored ({error.strerror}); the"
        " file system of the working directory may know none. All else of it is here."
    )
    return Problem(path, ATTRIBUTES, text)


def _short_digest(path: RelPath) -> bytes:
    return blake3(path).hexdigest(16).encode()


def _missing(path: RelPath) -> Problem:
    text = f"{show(path)} is in the manifest but not in OneData; it was not restored."
    return Problem(path, "missing", text)


def _damaged(path: RelPath, entry: Entry, size: int) -> Problem:
    what = "is shorter than" if size < entry.size else "differs from"
    return Problem(
        path,
        CHANGED_OUTSIDE,
        f"{show(path)} in OneData {what} what the manifest says ({size} of {entry.size} bytes): it"
        " was changed outside or is damaged. It was brought as it is; compare it with a backup.",
    )
