"""The replica's calls, carried out with system calls relative to directory descriptors.

OneData caches no names: every part of a path is a round trip. So the descriptors of directories are
kept (``O_PATH``, which costs the mount nothing to hold) until ``forget`` or ``walk_anew``, and
everything is done relative to them.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TypeVar

from onesync.beneath import open_beneath, open_plain, rename_new
from onesync.core.blocks import ALGORITHM, PATCH_FROM, BlockHasher, Blocks, block_size
from onesync.core.model import Kind, RelPath, is_beneath, join, name_of, parent_of
from onesync.errors import LocalError
from onesync.local import date_stores, mount_of, on_this_machine, open_source, stamp_of
from onesync.replica import inplace
from onesync.replica.door import Compared, Copied, Identity, Listed, Ours
from onesync.replica.moment import Moment, moment_of
from onesync.replica.pour import CHUNK, ONE_PIECE, Pipe, Pour, past_cache
from onesync.replica.statx import Looked, inode_of, look_up, opened

T = TypeVar("T")

_HELD_DIRECTORIES = 256
_INTERRUPTED = 100
_Purpose = tuple[int, str]
_COPY: _Purpose = (0, "")
"""What a pour is for: a copy, or the comparison with blocks of so many bytes and such digests."""
_TRIES = 5
_TURNS = 64
_MOST_BYTES = 1 << 30
"""What is read whole: nothing that onesync writes is longer."""
_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_PROGRESS = "org.onedata.replication_progress"
_CANNOT_TELL = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS, errno.EPERM)


_NOTHING = Moment("", -1, None)
_NO_BLOCKS: Mapping[int, bytes] = MappingProxyType({})
_Paths = list[RelPath]
_StoredNames = Callable[[Iterable[bytes]], Mapping[bytes, bytes]]


def _as_they_are(names: Iterable[bytes]) -> Mapping[bytes, bytes]:
    return {name: name for name in names}


class _HeldDirectory:
    """A directory descriptor that is closed when its last user lets go."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _NoFile(Exception):
    """Something else stands where a copy was begun."""


class FolderReplica:
    """A replica in a folder of this machine, on a mount or not. Safe in several threads."""

    def __init__(
        self,
        root: bytes,
        progress: Callable[[int], None] | None = None,
        sent: Callable[[int], None] | None = None,
        fetched: Callable[[int], None] | None = None,
    ) -> None:
        """Stand at ``root`` without touching it.

        ``progress`` is told the bytes of each chunk, ``sent`` where they went to the replica, and
        ``fetched`` where they were all of a file that was fetched: its end follows at once.
        """
        self._root = root
        self._progress = progress or (lambda _: None)
        self._sent = sent or self._progress
        self._fetched = fetched or self._progress
        self._held: OrderedDict[RelPath, _HeldDirectory] = OrderedDict()
        self._guard = threading.Lock()
        self._turns = [threading.RLock() for _ in range(_TURNS)]
        self._forgotten = 0
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_held = min(_HELD_DIRECTORIES, limit // 4)
        self._interrupted: OrderedDict[tuple[int, int, _Purpose], Pour] = OrderedDict()
        self._expected: int | None = None

    def expect(self, mount: int | None) -> None:
        """Work on the mount of this id alone (None: on any): no other one is written to."""
        if mount != self._expected:
            self._expected = mount
            self.forget()

    def forget(self, top: RelPath = b"") -> None:
        """Let go of the descriptors of ``top`` and all beneath: paths may mean something else."""
        with self._guard:
            for path in [path for path in self._held if is_beneath(path, top)]:
                del self._held[path]
            self._forgotten += 1

    def walk_anew(self) -> None:
        with self._guard:
            root = self._held.get(b"")
            self._held.clear()
            if root is not None:  # ``identify`` tells where it is another one
                self._held[b""] = root
            self._forgotten += 1

    def identify(self) -> Identity:
        self.walk_anew()
        fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY)
        try:
            mount = mount_of(fd)
            mount_point, file_system = _mount_of(mount)
            is_mount_root = os.readlink(b"/proc/self/fd/%d" % fd) == mount_point
            return Identity(mount, inode_of(fd), file_system.startswith(b"fuse"), is_mount_root)
        finally:
            os.close(fd)

    def space(self) -> os.statvfs_result:
        """Return what statfs says of the root; touches no file."""
        with self._directory(b"") as directory:
            return os.statvfs(directory)

    def probe(self, place: RelPath, name: str) -> object:
        """Make one of ``probes.PROBES`` in the directory ``place``, which is made for it alone."""
        from onesync.replica.probes import PROBES  # hardly any child needs it, and all must start

        with self._directory(place) as directory:
            return PROBES[name](directory)

    def look(self, path: RelPath) -> Listed | None:
        def look_it_up() -> Looked:
            with self._parent(path) as directory:
                return look_up(directory, name_of(path) or b".")

        try:
            looked = self._anew((path,), look_it_up)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _listed(name_of(path), looked)

    def look_at(self, paths: Sequence[RelPath]) -> Sequence[Listed | None]:
        found = []
        for path in paths:
            found.append(self.look(path))
            self._progress(0)
        return found

    def names(self, path: RelPath) -> Set[bytes]:
        with self._directory(path) as held:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
        try:
            return frozenset(map(os.fsencode, os.listdir(fd)))
        finally:
            os.close(fd)

    def list(
        self, path: RelPath, known: Mapping[bytes, Kind] = MappingProxyType({})
    ) -> list[Listed]:
        with self._directory(path) as held:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
        try:
            names = map(os.fsencode, os.listdir(fd))
            found = (
                Listed(name, known[name], 0) if name in known else _look_in(fd, name)
                for name in names
            )
            return [item for item in found if item is not None]
        finally:
            os.close(fd)

    def make_directory(self, path: RelPath) -> None:
        def make() -> None:
            with self._parent(path) as directory:
                os.mkdir(name_of(path), 0o755, dir_fd=directory)

        self._anew((path,), make)

    def put(self, source: bytes, temporary: RelPath, seconds: float | None = None) -> Copied:
        origin = _open_source(source)
        try:
            if not stat.S_ISREG(os.fstat(origin).st_mode):
                raise InterruptedError(4, "not a regular file any more", source)
            with on_this_machine():
                date_stores(origin)
            before = os.fstat(origin)
            pour = Pour(_block_hasher(before.st_size), self._sent, before)
            pour.begin(seconds)
            self._write_copy(origin, before, temporary, pour)
            with self._discarding_where_lost(temporary):
                return self._mended(origin, before, temporary, pour, is_whole=seconds is None)
        finally:
            os.close(origin)

    @contextmanager
    def _discarding_where_lost(self, path: RelPath) -> Iterator[None]:
        """Let no copy stay that cannot be compared with its source once more."""
        try:
            yield
        except LocalError:
            with self._parent(path) as directory:
                _discard(name_of(path), directory)
            raise

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        found = []
        for path in paths:
            try:
                found.append(self._progress_of(path) == b"100%")
            except (FileNotFoundError, NotADirectoryError):
                found.append(False)
            except OSError as error:
                if error.errno in _CANNOT_TELL:
                    return None
                raise
            self._progress(0)
        return tuple(found)

    def _progress_of(self, path: RelPath) -> bytes:
        # There is no getxattrat: the directory's descriptor has a path of its own in /proc.
        with self._parent(path) as directory:
            place = b"/proc/self/fd/%d/%s" % (directory, name_of(path))
            return os.getxattr(place, _PROGRESS, follow_symlinks=False).strip()

    def _poured(self, origin: int, before: os.stat_result, pour: Pour) -> Copied:
        """Return the result of a copy from ``origin``, after another look at it."""
        read = _read_by(pour)
        steady, found = self._look_again(origin, pour, read, is_mended=False)
        prefix = found == read
        if prefix and pour.offset < before.st_size:
            self._interrupt(_COPY, pour)
        return Copied(
            read.digest, read.size, stamp_of(before, Kind.FILE), steady, prefix, read.blocks
        )

    def _mended(
        self, origin: int, before: os.stat_result, path: RelPath, pour: Pour, *, is_whole: bool
    ) -> Copied:
        """Let the copy at ``path`` be what the file was at one moment, and return its result.

        Unless it must be ``is_whole``, it ends where the file changes faster than it is read.
        """
        read = _read_by(pour)
        steady, found = self._look_again(origin, pour, read, is_mended=True)
        if found == read and pour.offset < before.st_size:
            self._interrupt(_COPY, pour)
        prefix = found.size >= read.size or (not is_whole and found.blocks is not None)
        if not prefix:
            found = read
        elif found != read:
            assert found.blocks is not None
            target = self._open(path, os.O_RDWR)
            try:
                for number, content in found.kept.items():
                    self._sent(inplace.write_at(target, content, number * found.blocks.size))
                os.ftruncate(target, found.size)
                os.fsync(target)
            finally:
                os.close(target)
        stamp = stamp_of(before, Kind.FILE)
        return Copied(found.digest, found.size, stamp, steady, prefix, found.blocks, found.whole)

    def _look_again(
        self, origin: int, pour: Pour, read: Moment, *, is_mended: bool
    ) -> tuple[bool, Moment]:
        """Return whether a file that was read is still the same, and what it was at one moment.

        That is since the pour began, in however many rounds. It may be another moment than what was
        ``read`` only where that ``is_mended``; of no moment as long as that nothing is certain.
        """
        before, after = pour.seen, os.fstat(origin)
        assert before is not None
        if stamp_of(after, Kind.FILE) == stamp_of(before, Kind.FILE):
            return True, read
        # Read once more, nothing changed in what was copied: it is a state that the file had.
        with on_this_machine():
            if is_mended and read.blocks is not None:
                found = moment_of(origin, read, self._progress)
            else:
                again = _digest(origin, read.size, self._progress)
                found = read if again == (read.digest, read.size) else _NOTHING
        pour.seen = after
        # Removed, linked or given another mode meanwhile, it has the same content all the same.
        unwritten = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        return found == read and unwritten, found

    def _write_copy(self, origin: int, status: os.stat_result, path: RelPath, pour: Pour) -> None:
        # Created writable whatever the mode: some storages refuse to make a read-only file.
        mode = (status.st_mode & 0o777) | 0o600

        def create() -> int:
            with self._parent(path) as directory:
                return os.open(name_of(path), _NEW, mode, dir_fd=directory)

        target = self._anew((path,), create)
        try:
            try:
                pour.run(origin, target, status.st_size, sparse=_is_sparse(status))
                os.fsync(target)
            finally:
                os.close(target)
        except BaseException:
            # Any error on a handle condemns this copy; nobody may take it for a whole one.
            with self._parent(path) as directory:
                _discard(name_of(path), directory)
            raise

    def fetch(
        self,
        path: RelPath,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        origin = self._open(path, os.O_RDONLY)
        try:
            found = opened(origin)
            if not stat.S_ISREG(found.mode):
                raise InterruptedError(4, "not a regular file", path)
            target, begun = _begin_here(destination) if goes_on else _create_here(destination)
            return self._fetch_from(origin, found.size, target, begun, mode, mtime_ns)
        finally:
            os.close(origin)

    def _fetch_from(
        self, origin: int, size: int, target: int, begun: int, mode: int, mtime_ns: int | None
    ) -> Copied:
        try:
            progress = self._progress if size > ONE_PIECE else self._fetched
            pour = Pour(_block_hasher(size), progress, outward=False)
            if begun:
                with on_this_machine():
                    pour.run(target, None, min(begun, size))
                    os.ftruncate(target, pour.offset)
            if size < PATCH_FROM:
                with Pipe() as pipe:
                    pour.run(origin, target, None, sparse=True, read=pipe.read)
            else:
                read = past_cache(origin)
                pour.run(origin, target, None, sparse=True, read=read, length=size)
            with on_this_machine():
                os.fchmod(target, mode & 0o777)
                if mtime_ns is not None:
                    os.utime(target, ns=(mtime_ns, mtime_ns))
                os.fsync(target)
        finally:
            os.close(target)
        return Copied(pour.hasher.hexdigest(), pour.offset, None, True, blocks=pour.blocks())

    def append(
        self, source: bytes, path: RelPath, offset: int, digest: str, seconds: float | None = None
    ) -> Copied | None:
        origin = _open_source(source)
        try:
            before = os.fstat(origin)
            pour = self._read_up_to(offset, origin, before, seconds)
            if pour.is_late and pour.offset < offset:
                self._interrupt(_COPY, pour)
                stamp = stamp_of(before, Kind.FILE)
                return Copied(pour.hasher.hexdigest(), pour.offset, stamp, True)
            if pour.offset != offset or pour.hasher.hexdigest() != digest:
                return None
            target = self._open(path, os.O_RDWR)
            try:
                if os.fstat(target).st_size != offset:
                    return None
                with _cut_off_where_lost(target, offset):
                    pour.run(origin, target, before.st_size, sparse=_is_sparse(before))
                    os.fsync(target)
                    return self._poured(origin, before, pour)
            finally:
                os.close(target)
        finally:
            os.close(origin)

    def _read_up_to(
        self, offset: int, origin: int, status: os.stat_result, seconds: float | None
    ) -> Pour:
        """Return a pour that has read the first ``offset`` bytes, or fewer where it is late."""
        pour, _ = self._resumed(_COPY, status)
        if pour is None or pour.offset > offset:
            pour = Pour(_block_hasher(status.st_size), self._sent, status)
        pour.begin(seconds)
        pour.run(origin, None, offset)
        return pour

    def _interrupt(self, purpose: _Purpose, pour: Pour) -> None:
        """Keep a pour whose time was up; of those that nobody asks for again the oldest goes."""
        assert pour.seen is not None
        self._interrupted[_identity(pour.seen, purpose)] = pour
        while len(self._interrupted) > _INTERRUPTED:
            self._interrupted.popitem(last=False)

    def _resumed(self, purpose: _Purpose, status: os.stat_result) -> tuple[Pour | None, bool]:
        """Return the pour that was interrupted, and whether one is lost as the file changed.

        What grew may have only grown: it is read on, or one that always grows would never be read
        to its end. Whether what was read first still holds is proved by reading it once more.
        """
        pour = self._interrupted.pop(_identity(status, purpose), None)
        if pour is None or pour.seen is None:
            return None, False
        same = stamp_of(pour.seen, Kind.FILE) == stamp_of(status, Kind.FILE)
        if same or status.st_size > pour.seen.st_size:
            return pour, False
        return None, True

    def compare(
        self,
        source: bytes,
        length: int,
        blocks: Blocks,
        seconds: float | None = None,
        most: int | None = None,
    ) -> Compared:
        origin = _open_source(source)
        try:
            if os.fstat(origin).st_size == length or not length:  # nobody maps what grows
                with on_this_machine():
                    date_stores(origin)
            before, purpose = os.fstat(origin), (blocks.size, blocks.algorithm)
            end = before.st_size if most is None else min(before.st_size, most)
            pour, changed_meanwhile = self._resumed(purpose, before)
            pour = pour or Pour(
                blocks.hasher(),
                self._progress,
                before,
                renewed=_renewed_hasher(before.st_size, blocks),
            )
            pour.begin(seconds)
            pour.run(origin, None, end)
            read, stamp = _read_by(pour), stamp_of(before, Kind.FILE)
            if pour.is_late and read.size < end:
                self._interrupt(purpose, pour)
                steady = not changed_meanwhile
                return Compared(
                    Copied(read.digest, read.size, stamp, steady, True, read.blocks), ()
                )
            steady, found = self._look_again(origin, pour, read, is_mended=True)
            prefix = found.size >= read.size
            found = found if prefix else read
            assert found.blocks is not None
            with on_this_machine():
                changed = inplace.changed_blocks(origin, length, blocks, found.blocks, found.kept)
        finally:
            os.close(origin)
        copied = Copied(found.digest, found.size, stamp, steady, prefix, found.blocks, found.whole)
        return Compared(copied, tuple(changed), found.renewed, found.kept)

    def write_undo(
        self, path: RelPath, undo: RelPath, length: int, blocks: Blocks, numbers: tuple[int, ...]
    ) -> bool:
        saved = False
        target = self._open(path, os.O_RDONLY)
        try:
            with self._parent(undo) as directory:
                fd = os.open(name_of(undo), _NEW, 0o644, dir_fd=directory)
            try:
                saved = inplace.write_undo(target, fd, length, blocks, numbers, self._sent)
            finally:
                os.close(fd)
        finally:
            os.close(target)
        if not saved:
            self.remove(undo)
        return saved

    def patch(
        self,
        source: bytes,
        path: RelPath,
        blocks: Blocks,
        numbers: tuple[int, ...],
        end: int,
        kept: Mapping[int, bytes] = _NO_BLOCKS,
    ) -> bool:
        origin = _open_source(source)
        try:
            target = self._open(path, os.O_WRONLY)
            try:
                return inplace.write_blocks(origin, target, blocks, numbers, end, self._sent, kept)
            finally:
                os.close(target)
        finally:
            os.close(origin)

    def undo(self, path: RelPath, undo: RelPath, length: int) -> bool:
        fd = self._open(undo, os.O_RDONLY)
        try:
            found = inplace.read_undo(fd, length, self._progress)
            if found is None:
                return False
            target = self._open(path, os.O_RDWR)
            try:
                inplace.write_back(fd, target, found, self._progress)
            finally:
                os.close(target)
        finally:
            os.close(fd)
        return True

    def _open(self, path: RelPath, flags: int) -> int:
        with self._parent(path) as directory:
            return os.open(name_of(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)

    def truncate(self, path: RelPath, length: int) -> None:
        target = self._open(path, os.O_RDWR)
        try:
            os.ftruncate(target, length)
            os.fsync(target)
        finally:
            os.close(target)

    def digest(self, path: RelPath) -> tuple[str, int]:
        origin = self._open(path, os.O_RDONLY)
        try:
            return _digest(origin, None, self._progress)
        finally:
            os.close(origin)

    def rename(self, source: RelPath, target: RelPath, *, is_file: bool = False) -> None:
        self._anew((source, target), lambda: self._rename(source, target))
        if not is_file:
            # Descriptors held under a renamed directory's old paths now mean the new ones.
            self.forget(source)
            self.forget(target)

    def _rename(self, source: RelPath, target: RelPath) -> None:
        with self._parent(source) as origin, self._parent(target) as destination:
            try:
                rename_new(origin, name_of(source), destination, name_of(target))
            except NotImplementedError:
                if self.look(target) is not None:
                    raise FileExistsError(
                        errno.EEXIST, "something stands at the target", target
                    ) from None
                os.rename(
                    name_of(source), name_of(target), src_dir_fd=origin, dst_dir_fd=destination
                )

    def rename_file(self, source: RelPath, target: RelPath) -> None:
        """Rename what is no directory."""
        self.rename(source, target, is_file=True)

    def remove(self, path: RelPath) -> bool:
        try:
            with self._parent(path) as directory:
                if _unlink(directory, name_of(path)):
                    return False
        except (FileNotFoundError, NotADirectoryError):
            return False
        for number in range(_TRIES):
            self.forget(path)  # what was opened before may be another one
            try:
                with suppress(FileNotFoundError):
                    self._remove_tree(path)
                    break
            except OSError as error:
                # A file that was closed just now may stand there under another name for a moment,
                # and a directory that was opened here may be gone before it is read.
                if error.errno not in (errno.ENOTEMPTY, errno.ESTALE) or number == _TRIES - 1:
                    raise
                continue
            # Of two who remove the same tree, the one that was first is not always done.
            if self.look(path) is None:
                break
        self.forget(path)
        return True

    def remove_ours(
        self, path: RelPath, ours: Ours, stored_names: _StoredNames = _as_they_are
    ) -> Sequence[RelPath]:
        """See the door; ``stored_names`` returns a listing's names by what they stand for."""
        self.forget(path)  # what was opened before may be another one
        try:
            if ours:
                return self._remove_tree_of_ours(path, ours, stored_names)
            with self._parent(path) as directory:
                return [] if _unlink(directory, name_of(path)) else [b""]
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [b""]
        finally:
            self.forget(path)

    def _remove_tree_of_ours(
        self, top: RelPath, ours: Ours, stored_names: _StoredNames
    ) -> Sequence[RelPath]:
        left: _Paths = []
        found: list[tuple[RelPath, RelPath]] = []
        waiting = [(b"", top)]
        while waiting:
            inner, place = waiting.pop()
            found.append((inner, place))
            try:
                with _unless_gone():
                    waiting += self._empty_of_ours(inner, place, ours, stored_names, left)
            except NotADirectoryError:
                left.append(inner)
        kept = {directory for path in left for directory in _way_to(path)}
        for inner, place in reversed(found):
            if inner in kept:
                continue
            with _unless_gone(), self._parent(place) as above:
                if not _remove_empty(above, name_of(place)):
                    left.append(inner)
                    kept.update(_way_to(inner))
            self._progress(0)
        return left

    def _empty_of_ours(
        self, inner: RelPath, place: RelPath, ours: Ours, stored_names: _StoredNames, left: _Paths
    ) -> Sequence[tuple[RelPath, RelPath]]:
        """Remove the files of ours in the directory at ``place``; returns the directories of ours.

        ``left`` is told what else is there.
        """
        directories = []
        with self._directory(place) as held:
            listed = self.names(place)
            stored = stored_names(listed)
            of_others = listed - set(stored.values())
            for own, name in [*stored.items(), *((name, name) for name in of_others)]:
                path = join(inner, own)
                with _unless_gone():
                    if name not in of_others and path in ours:
                        directories.append((path, join(place, name)))
                    elif name in of_others or own not in ours[inner]:
                        look_up(held, name)  # a listing that is old tells of what is gone
                        left.append(path)
                    elif not _unlink(held, name):
                        left.append(path)
                self._progress(0)
        return directories

    def unlink(self, path: RelPath) -> Kind | None:
        with suppress(FileNotFoundError, NotADirectoryError), self._parent(path) as directory:
            return Kind.FILE if _unlink(directory, name_of(path)) else Kind.DIRECTORY
        return None

    def _remove_tree(self, top: RelPath) -> None:
        """Remove a directory with all that is in it, however deep: no level is held open."""
        found: list[RelPath] = []
        waiting = [top]
        while waiting:
            found.append(waiting.pop())
            with _unless_gone():
                waiting += self._empty(found[-1])
        for directory in reversed(found[1:]):
            with _unless_gone(), self._parent(directory) as above:
                os.rmdir(name_of(directory), dir_fd=above)
            self._progress(0)
        with self._parent(top) as above:
            os.rmdir(name_of(top), dir_fd=above)

    def _empty(self, directory: RelPath) -> Sequence[RelPath]:
        """Remove the files in a directory; returns the directories in it."""
        inner = []
        with self._directory(directory) as held:
            for name in self.names(directory):
                with _unless_gone():
                    if not _unlink(held, name):
                        inner.append(join(directory, name))
                self._progress(0)
        return inner

    def read(self, path: RelPath) -> bytes:
        fd = self._open(path, os.O_RDONLY)
        try:
            return _read_whole(fd, path)
        except OSError as error:
            if error.errno == errno.ESPIPE:
                return b""  # a pipe that somebody put there
            raise
        finally:
            os.close(fd)

    def write_new(self, path: RelPath, content: bytes) -> None:
        self._write(path, content, _NEW)

    def overwrite(self, path: RelPath, content: bytes) -> None:
        self._write(path, content, os.O_WRONLY | os.O_NOFOLLOW)

    def _write(self, path: RelPath, content: bytes, flags: int) -> None:
        with self._parent(path) as directory:
            fd = os.open(name_of(path), flags, 0o644, dir_fd=directory)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def _anew(self, paths: tuple[RelPath, ...], act: Callable[[], T]) -> T:
        """Do it; where nothing was found, once more with the directories opened anew.

        A descriptor that was held may be that of a directory that somebody removed and made again.
        """
        parents = {parent_of(path) for path in paths}
        with self._guard:
            held = parents & self._held.keys()
        try:
            return act()
        except FileNotFoundError:
            if not held:
                raise
        for path in held:
            self.forget(path)
        return act()

    @contextmanager
    def _parent(self, path: RelPath) -> Iterator[int]:
        with self._directory(parent_of(path)) as fd:
            yield fd

    @contextmanager
    def _directory(self, path: RelPath) -> Iterator[int]:
        held = self._hold(path)
        # The local name keeps the descriptor open even when another thread forgets it meanwhile.
        yield held.fd

    def _hold(self, path: RelPath) -> _HeldDirectory:
        held = self._held_one(path)
        if held is not None:
            return held
        # Of many threads that need the same directory, one walks there and the others wait.
        with self._turns[hash(path) % len(self._turns)]:
            return self._held_one(path) or self._hold_anew(path)

    def _held_one(self, path: RelPath) -> _HeldDirectory | None:
        with self._guard:
            held = self._held.get(path)
            if held is not None:
                self._held.move_to_end(path)
            return held

    def _hold_anew(self, path: RelPath) -> _HeldDirectory:
        with self._guard:
            forgotten = self._forgotten
        if path:
            return self._walk(path, forgotten)
        held = self._open_root()
        self._keep(path, held, forgotten)
        return held

    def _keep(self, path: RelPath, held: _HeldDirectory, forgotten: int) -> None:
        """Hold what was opened since so many were ``forgotten``.

        What was opened before a rename, maybe, is good for one call alone.
        """
        with self._guard:
            if self._forgotten != forgotten:
                return
            self._held[path] = held
            while len(self._held) > self._most_held:
                self._held.popitem(last=False)

    def _walk(self, path: RelPath, forgotten: int) -> _HeldDirectory:
        """Open a directory from the nearest one above it that is held."""
        root = self._hold(b"")
        above = parent_of(path)
        while above and self._held_one(above) is None:
            above = parent_of(above)
        nearest = self._held_one(above) if above else None
        if nearest is not None:
            try:
                return self._walk_from(nearest, above, path[len(above) + 1 :], forgotten)
            except OSError as error:
                # Somebody may have removed it and made it again.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
        return self._walk_from(root, b"", path, forgotten)

    def _walk_from(
        self, held: _HeldDirectory, above: RelPath, way: RelPath, forgotten: int
    ) -> _HeldDirectory:
        """Open one directory after the other, as the mount does anyway; each is held."""
        for name in way.split(b"/"):
            # An absolute path is none of the folder's: it has an empty part.
            held = _HeldDirectory(_open_directory(held.fd, name or b"/"))
            above = join(above, name)
            self._keep(above, held, forgotten)
        return held

    def _open_root(self) -> _HeldDirectory:
        held = _HeldDirectory(os.open(self._root, os.O_PATH | os.O_DIRECTORY))
        if self._expected is not None and mount_of(held.fd) != self._expected:
            raise OSError(errno.ESTALE, "another file system stands there now", self._root)
        return held


def _open_directory(above: int, name: bytes) -> int:
    try:
        return open_beneath(above, name, _O_DIRECTORY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, "a link stands there", name) from error
        raise


@contextmanager
def _cut_off_where_lost(target: int, length: int) -> Iterator[None]:
    """Let nothing stay of what was appended where the rest cannot be read here."""
    try:
        yield
    except LocalError:
        os.ftruncate(target, length)
        os.fsync(target)
        raise


def _open_source(source: bytes) -> int:
    with on_this_machine():
        return open_source(source)


def _create_here(destination: bytes) -> tuple[int, int]:
    """Create the local file at an absolute path, none of whose parts may be a link.

    Returns its descriptor, and that it holds nothing yet.
    """
    with on_this_machine():
        folder = open_plain(os.path.dirname(destination), os.O_PATH | os.O_DIRECTORY)
        try:
            name = os.path.basename(destination)
            return os.open(name, _NEW | os.O_NOFOLLOW, 0o600, dir_fd=folder), 0
        finally:
            os.close(folder)


def _begin_here(destination: bytes) -> tuple[int, int]:
    """As ``_create_here``, or open what an earlier copy left, of so many bytes.

    What is no file, or has another name too, no copy of ours left: it goes.
    """
    with on_this_machine():
        folder = open_plain(os.path.dirname(destination), os.O_PATH | os.O_DIRECTORY)
        try:
            name = os.path.basename(destination)
            with suppress(FileNotFoundError, PermissionError, _NoFile):
                return _begun(name, folder)
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)
    return _create_here(destination)


def _begun(name: bytes, folder: int) -> tuple[int, int]:
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _NoFile from error
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return fd, status.st_size
    os.close(fd)
    raise _NoFile


def _digest(origin: int, limit: int | None, progress: Callable[[int], None]) -> tuple[str, int]:
    """Digest the first ``limit`` bytes (None: all); returns the digest and their number."""
    return inplace.hash_file(origin, limit, None, progress)


def _unlink(directory: int, name: bytes) -> bool:
    """Remove a file; returns False where it is a directory, which the kernel refuses by itself."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _way_to(path: RelPath) -> _Paths:
    """Return ``path`` and the directories above it."""
    way = [path]
    while path:
        path = parent_of(path)
        way.append(path)
    return way


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Go on where somebody else removes it too: the rest remains, or the next look tells."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


def _remove_empty(directory: int, name: bytes) -> bool:
    """Remove a directory; returns False where something is in it."""
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _discard(name: bytes, directory: int) -> None:
    """Remove a copy that failed. Raises EIO where it remains: the batch is settled then."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(errno.EIO, f"a half-made copy remains ({error.strerror})", name) from error


def _identity(status: os.stat_result, purpose: _Purpose) -> tuple[int, int, _Purpose]:
    return status.st_dev, status.st_ino, purpose


def _block_hasher(length: int) -> BlockHasher | None:
    """Return a hasher for the blocks of a file of about ``length`` bytes; None of a small one."""
    return BlockHasher(block_size(length)) if length >= PATCH_FROM else None


def _read_by(pour: Pour) -> Moment:
    """Return what ``pour`` has read so far."""
    return Moment(pour.hasher.hexdigest(), pour.offset, pour.blocks(), pour.renewed())


def _read_whole(fd: int, path: RelPath) -> bytes:
    content = bytearray()
    with Pipe() as pipe:
        while True:
            read = pipe.read if len(content) < CHUNK else os.pread
            chunk = read(fd, CHUNK, len(content))
            content += chunk
            if not chunk:
                return bytes(content)
            if len(content) > _MOST_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)


def _renewed_hasher(length: int, known: Blocks) -> BlockHasher | None:
    """Return a hasher for what is remembered of a file instead of blocks like the ``known``."""
    size = block_size(length)
    is_old = size > known.size or known.algorithm != ALGORITHM
    return BlockHasher(size) if is_old else None


def _is_sparse(status: os.stat_result) -> bool:
    return status.st_blocks * 512 < status.st_size


def _look_in(directory: int, name: bytes) -> Listed | None:
    try:
        looked = look_up(directory, name)
    except FileNotFoundError:
        return None
    return _listed(name, looked)


def _listed(name: bytes, looked: Looked) -> Listed | None:
    if stat.S_ISDIR(looked.mode):
        return Listed(name, Kind.DIRECTORY, 0)
    if stat.S_ISREG(looked.mode):
        return Listed(name, Kind.FILE, looked.size, looked.mtime_ns)
    if stat.S_ISLNK(looked.mode):
        return Listed(name, Kind.LINK, 0)
    return None


def is_mounted(mount: int) -> bool:
    """Return whether the kernel has a mount of this id; touches no mount."""
    return _mount_of(mount) != (b"", b"")


def _mount_of(mount: int) -> tuple[bytes, bytes]:
    """Return mount point and file system type of a mount; empty where it is not there any more."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields, _, rest = line.partition(b" - ")
            parts = fields.split()
            if int(parts[0]) == mount:
                return _unescape(parts[4]), rest.split()[0]
    return b"", b""


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of mountinfo (see proc(5))."""
    return field.decode("unicode_escape").encode("latin-1")
