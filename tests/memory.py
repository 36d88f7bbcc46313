"""A replica in memory, for tests that need no file system."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from onesync.core.blocks import ALGORITHM, PATCH_FROM, BlockHasher, Blocks, block_size
from onesync.core.model import (
    STATUS_FOLDER,
    Entry,
    Kind,
    RelPath,
    Stamp,
    is_beneath,
    name_of,
    parent_of,
)
from onesync.intent import INTENTS
from onesync.local import open_source, stamp_of
from onesync.replica.door import Compared, Copied, Identity, Listed, Ours


class MemoryReplica:
    """See ``replica.door``; files are bytes, directories None."""

    def __init__(self) -> None:
        self._tree: dict[RelPath, bytes | None] = {b"": None}
        self._guard = threading.RLock()

    def identify(self) -> Identity:
        return Identity(0, 0, is_fuse=False, is_mount_root=False)

    def walk_anew(self) -> None: ...

    def look(self, path: RelPath) -> Listed | None:
        with self._guard:
            if path not in self._tree:
                return None
            content = self._tree[path]
        if content is None:
            return Listed(name_of(path), Kind.DIRECTORY, 0)
        return Listed(name_of(path), Kind.FILE, len(content))

    def look_at(self, paths: Sequence[RelPath]) -> Sequence[Listed | None]:
        return [self.look(path) for path in paths]

    def list(
        self, path: RelPath, known: Mapping[bytes, Kind] = MappingProxyType({})
    ) -> list[Listed]:
        with self._guard:
            self._directory(path)
            inner = [p for p in self._tree if p and p != path and parent_of(p) == path]
            return [found for p in inner if (found := self.look(p)) is not None]

    def names(self, path: RelPath) -> Set[bytes]:
        return frozenset(item.name for item in self.list(path))

    def make_directory(self, path: RelPath) -> None:
        self._create(path, None)

    def put(self, source: bytes, temporary: RelPath, seconds: float | None = None) -> Copied:
        fd = open_source(source)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise InterruptedError(errno.EINTR, "not a regular file any more")
            content = file.read(status.st_size)
            steady = stamp_of(os.fstat(fd), Kind.FILE) == stamp_of(status, Kind.FILE)
            file.seek(0)
            prefix = steady or file.read(len(content)) == content
        self._create(temporary, content)
        stamp = stamp_of(status, Kind.FILE)
        digest = blake3(content).hexdigest()
        return Copied(digest, len(content), stamp, steady, prefix, _blocks(content))

    def fetch(
        self,
        path: RelPath,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        content = self.read(path)
        local = Path(os.fsdecode(destination))
        with local.open("wb" if goes_on else "xb") as file:
            file.write(content)
        local.chmod(mode)
        if mtime_ns is not None:
            os.utime(local, ns=(mtime_ns, mtime_ns))
        digest = blake3(content).hexdigest()
        return Copied(digest, len(content), None, True, blocks=_blocks(content))

    def append(
        self, source: bytes, path: RelPath, offset: int, digest: str, seconds: float | None = None
    ) -> Copied | None:
        with open(source, "rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()), Kind.FILE)
            content = file.read()
        with self._guard:
            old = self.read(path)
            same = blake3(content[:offset]).hexdigest() == digest and len(content) >= offset
            if not same or len(old) != offset:
                return None
            self._tree[path] = old + content[offset:]
        whole = blake3(content).hexdigest()
        return Copied(whole, len(content), stamp, True, blocks=_blocks(content))

    def compare(
        self,
        source: bytes,
        length: int,
        blocks: Blocks,
        seconds: float | None = None,
        most: int | None = None,
    ) -> Compared:
        with open(source, "rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()), Kind.FILE)
            content = file.read(most)
        starts = range(0, length, blocks.size)
        changed = [
            number
            for number, start in enumerate(starts)
            if not blocks.holds(number, content[start : min(start + blocks.size, length)])
        ]
        digest = blake3(content).hexdigest()
        new = _hashed(content, blocks.hasher())
        larger = block_size(len(content))
        is_old = larger > blocks.size or blocks.algorithm != ALGORITHM
        renewed = _hashed(content, BlockHasher(larger)) if is_old else None
        return Compared(
            Copied(digest, len(content), stamp, True, blocks=new), tuple(changed), renewed
        )

    def write_undo(
        self, path: RelPath, undo: RelPath, length: int, blocks: Blocks, numbers: tuple[int, ...]
    ) -> bool:
        with self._guard:
            old = self.read(path)
            size = blocks.size
            same = all(blocks.holds(n, old[n * size : (n + 1) * size]) for n in numbers)
            if len(old) != length or not same:
                return False
            self._create(undo, old)
        return True

    def patch(
        self,
        source: bytes,
        path: RelPath,
        blocks: Blocks,
        numbers: tuple[int, ...],
        end: int,
        kept: Mapping[int, bytes] = MappingProxyType({}),
    ) -> bool:
        content = Path(os.fsdecode(source)).read_bytes()[:end]
        with self._guard:
            for number in numbers:
                start = number * blocks.size
                piece = kept.get(number, content[start : start + blocks.size])
                if not blocks.holds(number, piece):
                    return False
                old = self.read(path).ljust(start, b"\0")
                self._tree[path] = old[:start] + piece + old[start + len(piece) :]
        return True

    def undo(self, path: RelPath, undo: RelPath, length: int) -> bool:
        with self._guard:
            if len(self.read(undo)) != length:
                return False
            self._tree[path] = self.read(undo)
        return True

    def truncate(self, path: RelPath, length: int) -> None:
        with self._guard:
            self._tree[path] = self.read(path)[:length]

    def digest(self, path: RelPath) -> tuple[str, int]:
        content = self.read(path)
        return blake3(content).hexdigest(), len(content)

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        return None

    def rename(self, source: RelPath, target: RelPath, *, is_file: bool = False) -> None:
        with self._guard:
            if target in self._tree:
                raise FileExistsError(errno.EEXIST, "something stands at the target", target)
            if source not in self._tree:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
            self._directory(parent_of(target))
            for path in [p for p in self._tree if is_beneath(p, source)]:
                self._tree[target + path[len(source) :]] = self._tree.pop(path)

    def remove(self, path: RelPath) -> bool:
        with self._guard:
            was_directory = path in self._tree and self._tree[path] is None
            for inner in [p for p in self._tree if p and is_beneath(p, path)]:
                del self._tree[inner]
        return was_directory

    def remove_ours(self, path: RelPath, ours: Ours, inner: RelPath = b"") -> Sequence[RelPath]:
        place = path + b"/" + inner if inner else path
        with self._guard:
            if place not in self._tree:
                return []
            if (self._tree[place] is None) != (inner in ours):
                return [inner]
            left: list[RelPath] = []
            for item in self.list(place) if inner in ours else ():
                child = inner + b"/" + item.name if inner else item.name
                is_ours = item.name in ours[inner] or child in ours
                left += self.remove_ours(path, ours, child) if is_ours else [child]
            if not left:
                del self._tree[place]
        return left

    def unlink(self, path: RelPath) -> Kind | None:
        with self._guard:
            was_there = path in self._tree
            if self._tree.get(path) is not None:
                del self._tree[path]
            return None if not was_there else Kind.DIRECTORY if path in self._tree else Kind.FILE

    def read(self, path: RelPath) -> bytes:
        with self._guard:
            content = self._tree.get(path)
            if path not in self._tree:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if content is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return content

    def write_new(self, path: RelPath, content: bytes) -> None:
        self._create(path, content)

    def overwrite(self, path: RelPath, content: bytes) -> None:
        with self._guard:
            old = self.read(path)
            self._tree[path] = content + old[len(content) :]

    def _create(self, path: RelPath, content: bytes | None) -> None:
        if path.startswith(b"/") or b".." in path.split(b"/"):
            raise OSError(errno.EXDEV, "the path leaves the root", path)
        with self._guard:
            if path in self._tree:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self._directory(parent_of(path))
            self._tree[path] = content

    def _directory(self, path: RelPath) -> None:
        if path not in self._tree:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self._tree[path] is not None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def _hashed(content: bytes, hasher: BlockHasher) -> Blocks:
    hasher.update(content)
    return hasher.blocks()


def _blocks(content: bytes) -> Blocks | None:
    size = block_size(len(content))
    return _hashed(content, BlockHasher(size)) if len(content) >= PATCH_FROM else None


def with_status_folder() -> MemoryReplica:
    """Return a replica with the folder of intents, and one for users' files."""
    made = MemoryReplica()
    for path in (STATUS_FOLDER, INTENTS, b"extra"):
        made.make_directory(path)
    return made


class Tabled:
    """Rows of a stage-in, in memory."""

    def __init__(self) -> None:
        self.put_in: dict[RelPath, tuple[Entry, Stamp | None]] = {}

    def put(
        self, path: RelPath, entry: Entry, stamp: Stamp | None, blocks: Blocks | None = None
    ) -> None:
        self.put_in[path] = (entry, stamp)
