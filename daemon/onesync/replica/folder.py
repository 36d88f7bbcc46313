"""The replica's calls, carried out with system calls relative to directory descriptors.

OneData caches no names: every part of a path is a round trip. So the descriptors of directories are
kept (``O_PATH``, which costs the mount nothing to hold) until ``forget``, and everything is done
relative to them.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from blake3 import blake3

from onesync.beneath import open_beneath, open_plain
from onesync.core.model import Kind, RelPath, Stamp, name_of, parent_of
from onesync.replica.door import Copied, Identity, Listed

CHUNK = 1 << 20
_HELD_DIRECTORIES = 256
_PINNED = re.compile(rb"/proc/\d+/fd/\d+")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def stamp_of(status: os.stat_result, kind: Kind, target: bytes = b"") -> Stamp:
    """Return the stamp of a path of the working copy from its lstat or fstat result."""
    return Stamp(
        kind,
        status.st_ino,
        status.st_size if kind is Kind.FILE else 0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode & 0o777,
        target,
    )


class _HeldDirectory:
    """A directory descriptor that is closed when its last user lets go."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class FolderReplica:
    """A replica in a folder of this machine, on a mount or not. Safe in several threads."""

    def __init__(self, root: bytes, progress: Callable[[int], None] | None = None) -> None:
        """Stand at ``root`` without touching it; ``progress`` is told the bytes of each chunk."""
        self._root = root
        self._progress = progress or (lambda _: None)
        self._held: OrderedDict[RelPath, _HeldDirectory] = OrderedDict()
        self._guard = threading.Lock()
        self._forgotten = 0

    def forget(self) -> None:
        """Let go of every directory descriptor: paths may mean something else from here on."""
        with self._guard:
            self._held.clear()
            self._forgotten += 1

    def identify(self) -> Identity:
        self.forget()
        status = os.stat(self._root)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(20, "Not a directory", self._root)
        mount_point, file_system = _mount_of(status.st_dev, os.path.realpath(self._root))
        return Identity(
            status.st_dev,
            file_system.startswith(b"fuse"),
            os.path.realpath(self._root) == mount_point,
        )

    def look(self, path: RelPath) -> Listed | None:
        try:
            with self._parent(path) as directory:
                status = os.stat(name_of(path) or b".", dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _listed(name_of(path), status)

    def list(self, path: RelPath) -> list[Listed]:
        with self._directory(path) as held:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
        try:
            names = os.listdir(fd)
            found = (_look_in(fd, os.fsencode(name)) for name in names)
            return [item for item in found if item is not None]
        finally:
            os.close(fd)

    def make_directory(self, path: RelPath) -> None:
        with self._parent(path) as directory:
            os.mkdir(name_of(path), 0o755, dir_fd=directory)

    def put(self, source: bytes, temporary: RelPath) -> Copied:
        origin = _open_source(source)
        try:
            before = os.fstat(origin)
            if not stat.S_ISREG(before.st_mode):
                raise InterruptedError(4, "not a regular file any more", source)
            with self._parent(temporary) as directory:
                digest, size = self._write_copy(origin, before, directory, name_of(temporary))
            stamp = stamp_of(before, Kind.FILE)
            steady = stamp_of(os.fstat(origin), Kind.FILE) == stamp
            # Read once more, nothing changed in what was copied: it is a state that the file had.
            prefix = steady or _digest(origin, size, self._progress) == (digest, size)
        finally:
            os.close(origin)
        return Copied(digest, size, stamp, steady, prefix)

    def _write_copy(
        self, origin: int, status: os.stat_result, directory: int, name: bytes
    ) -> tuple[str, int]:
        # Created writable whatever the mode: some storages refuse to make a read-only file.
        target = os.open(name, _NEW, (status.st_mode & 0o777) | 0o600, dir_fd=directory)
        try:
            try:
                copied = self._pour(origin, target, status.st_size)
                os.fsync(target)
            finally:
                os.close(target)
        except BaseException:
            # Any error on a handle condemns this copy; nobody may take it for a whole one.
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise
        return copied

    def fetch(self, path: RelPath, destination: bytes, mode: int, mtime_ns: int | None) -> Copied:
        with self._parent(path) as directory:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            origin = os.open(name_of(path), flags, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(origin).st_mode):
                raise InterruptedError(4, "not a regular file", path)
            return self._fetch_from(origin, destination, mode, mtime_ns)
        finally:
            os.close(origin)

    def _fetch_from(
        self, origin: int, destination: bytes, mode: int, mtime_ns: int | None
    ) -> Copied:
        folder = open_plain(os.path.dirname(destination), os.O_PATH | os.O_DIRECTORY)
        try:
            name = os.path.basename(destination)
            target = os.open(name, _NEW | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            digest, size = self._pour(origin, target, None)
            os.fchmod(target, mode & 0o777)
            if mtime_ns is not None:
                os.utime(target, ns=(mtime_ns, mtime_ns))
            os.fsync(target)
        finally:
            os.close(target)
        return Copied(digest, size, None, True)

    def _pour(self, origin: int, target: int, limit: int | None) -> tuple[str, int]:
        """Copy up to ``limit`` bytes (None: to the end); returns the digest and the length."""
        hasher = blake3()
        total = 0
        while limit is None or total < limit:
            chunk = os.read(origin, CHUNK if limit is None else min(CHUNK, limit - total))
            if not chunk:
                break
            hasher.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view) :]
            total += len(chunk)
            self._progress(len(chunk))
        return hasher.hexdigest(), total

    def append(self, source: bytes, path: RelPath, offset: int, digest: str) -> Copied | None:
        origin = _open_source(source)
        try:
            before = os.fstat(origin)
            hasher = blake3()
            begun = _feed(hasher, origin, 0, offset, self._progress)
            if begun != offset or hasher.hexdigest() != digest:
                return None
            with self._parent(path) as directory:
                target = os.open(name_of(path), os.O_RDWR | os.O_NOFOLLOW, dir_fd=directory)
            try:
                if os.fstat(target).st_size != offset:
                    return None
                total = self._pour_tail(origin, target, hasher, offset, before.st_size)
                os.fsync(target)
            finally:
                os.close(target)
            stamp = stamp_of(before, Kind.FILE)
            whole = hasher.hexdigest()
            steady = stamp_of(os.fstat(origin), Kind.FILE) == stamp
            prefix = steady or _digest(origin, total, self._progress) == (whole, total)
        finally:
            os.close(origin)
        return Copied(whole, total, stamp, steady, prefix)

    def _pour_tail(self, origin: int, target: int, hasher: blake3, offset: int, end: int) -> int:
        """Copy from ``offset`` up to ``end``, to the same place; returns where it ended."""
        while offset < end and (chunk := os.pread(origin, min(CHUNK, end - offset), offset)):
            hasher.update(chunk)
            view = memoryview(chunk)
            while view:
                written = os.pwrite(target, view, offset)
                view = view[written:]
                offset += written
            self._progress(len(chunk))
        return offset

    def truncate(self, path: RelPath, length: int) -> None:
        with self._parent(path) as directory:
            target = os.open(name_of(path), os.O_RDWR | os.O_NOFOLLOW, dir_fd=directory)
        try:
            os.ftruncate(target, length)
            os.fsync(target)
        finally:
            os.close(target)

    def digest(self, path: RelPath) -> tuple[str, int]:
        with self._parent(path) as directory:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            origin = os.open(name_of(path), flags, dir_fd=directory)
        try:
            return _digest(origin, None, self._progress)
        finally:
            os.close(origin)

    def rename(self, source: RelPath, target: RelPath) -> None:
        if self.look(target) is not None:
            raise FileExistsError(17, "something stands at the target", target)
        with self._parent(source) as origin, self._parent(target) as destination:
            os.rename(name_of(source), name_of(target), src_dir_fd=origin, dst_dir_fd=destination)
        # Descriptors held under a renamed directory's old paths now mean the new ones.
        self.forget()

    def remove(self, path: RelPath) -> None:
        try:
            with self._parent(path) as directory:
                self._remove_in(directory, name_of(path))
        except (FileNotFoundError, NotADirectoryError):
            return

    def _remove_in(self, directory: int, name: bytes) -> None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            for child in os.listdir(fd):
                with suppress(FileNotFoundError):  # somebody else removed it: the rest remains
                    self._remove_in(fd, os.fsencode(child))
                self._progress(0)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)
        self.forget()

    def read(self, path: RelPath) -> bytes:
        with self._parent(path) as directory:
            fd = os.open(name_of(path), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        with os.fdopen(fd, "rb") as file:
            return file.read()

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
        with self._guard:
            held = self._held.get(path)
            if held is not None:
                self._held.move_to_end(path)
                return held
            forgotten = self._forgotten
        root = os.open(self._root, os.O_PATH | os.O_DIRECTORY)
        try:
            held = _HeldDirectory(open_beneath(root, path, os.O_PATH | os.O_DIRECTORY))
        finally:
            os.close(root)
        with self._guard:
            if self._forgotten != forgotten:
                return held  # opened before a rename, maybe: good for this call alone
            self._held[path] = held
            while len(self._held) > _HELD_DIRECTORIES:
                self._held.popitem(last=False)
        return held


def _open_source(source: bytes) -> int:
    """Open a local file; ``/proc/PID/fd/N`` is one that our parent holds open."""
    if _PINNED.fullmatch(source):
        return os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return open_plain(source, os.O_RDONLY | os.O_NONBLOCK)


def digest_local(source: bytes) -> Copied:
    """Return what a copy of the local file at the absolute path ``source`` would give.

    Raises as ``put`` does of its source.
    """
    origin = _open_source(source)
    try:
        before = os.fstat(origin)
        if not stat.S_ISREG(before.st_mode):
            raise InterruptedError(4, "not a regular file any more", source)
        digest, size = _digest(origin, before.st_size, lambda _: None)
        stamp = stamp_of(before, Kind.FILE)
        steady = stamp_of(os.fstat(origin), Kind.FILE) == stamp
    finally:
        os.close(origin)
    return Copied(digest, size, stamp, steady, steady)


def _digest(origin: int, limit: int | None, progress: Callable[[int], None]) -> tuple[str, int]:
    """Digest the first ``limit`` bytes (None: all); returns the digest and their number."""
    hasher = blake3()
    total = _feed(hasher, origin, 0, limit, progress)
    return hasher.hexdigest(), total


def _feed(
    hasher: blake3, origin: int, offset: int, end: int | None, progress: Callable[[int], None]
) -> int:
    """Feed the bytes from ``offset`` up to ``end`` (None: all); returns where they ended."""
    while end is None or offset < end:
        chunk = os.pread(origin, CHUNK if end is None else min(CHUNK, end - offset), offset)
        if not chunk:
            break
        hasher.update(chunk)
        offset += len(chunk)
        progress(0)
    return offset


def _look_in(directory: int, name: bytes) -> Listed | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _listed(name, status)


def _listed(name: bytes, status: os.stat_result) -> Listed | None:
    if stat.S_ISDIR(status.st_mode):
        return Listed(name, Kind.DIRECTORY, 0)
    if stat.S_ISREG(status.st_mode):
        return Listed(name, Kind.FILE, status.st_size)
    if stat.S_ISLNK(status.st_mode):
        return Listed(name, Kind.LINK, 0)
    return None


def _mount_of(device: int, path: bytes) -> tuple[bytes, bytes]:
    """Return mount point and file system type of the mount that ``path`` lies on."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    best = (b"", b"")
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields, _, rest = line.partition(b" - ")
            parts = fields.split()
            point = _unescape(parts[4])
            beneath = path == point or path.startswith(point.rstrip(b"/") + b"/")
            if parts[2] == wanted and beneath and len(point) >= len(best[0]):
                best = (point, rest.split()[0])
    return best


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of mountinfo (see proc(5))."""
    return field.decode("unicode_escape").encode("latin-1")
