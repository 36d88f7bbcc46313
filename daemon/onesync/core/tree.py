"""Every entry of a folder by path: what a chain of checkpoints folds to.

``Tree`` keeps it in memory, in a quarter of what a dict of entries takes. A directory has its
names, so that a directory that goes, or is renamed, is one step whatever it holds. An entry is
packed and made anew for whoever asks.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping

from onesync.core.model import Entry, Kind, RelPath, join, name_of, parent_of

_FILE = struct.Struct("<qqH32s")
_DIRECTORY = struct.Struct("<qH")
_LONGEST = 1 << 63
_DIGEST = 64

Packed = bytes | Entry
"""An entry as it is kept: by ``_FILE`` or ``_DIRECTORY``, or itself where it fits neither."""

PlainFile = tuple[str, str, int, int, int, str]
"""A file without a group and attributes: directory, name, size, mtime_ns, mode and digest.

Directory and name are ASCII, the digest is lower case hex: as text, for that is what SQLite takes
without asking who may adapt it.
"""


def path_of(file: PlainFile) -> RelPath:
    """Return the path of a plain file."""
    return join(file[0].encode(), file[1].encode())


class _Folder:
    """What is directly in one directory: entries, and the directories that hold any, by name."""

    __slots__ = ("entries", "folders")

    def __init__(self) -> None:
        self.entries: dict[bytes, Packed] = {}
        self.folders: dict[bytes, _Folder] = {}


class Fold(Mapping[RelPath, Entry]):
    """A mapping that changes as checkpoints do; what is in a directory comes after it.

    One thread's. It must not change while it is read through.
    """

    @abstractmethod
    def put(self, path: RelPath, entry: Entry) -> None:
        """Let ``path`` be ``entry``; beneath what is a directory no more there is nothing."""

    def put_files(self, files: Iterable[PlainFile]) -> None:
        """Do what ``put`` does for each of ``files``, sooner."""
        for file in files:
            self.put(path_of(file), Entry(Kind.FILE, *file[2:]))

    @abstractmethod
    def remove(self, path: RelPath) -> None:
        """Let ``path`` be gone, and all beneath it unless it is there and no directory."""

    @abstractmethod
    def rename(self, source: RelPath, target: RelPath) -> None:
        """Let ``source`` and all beneath it be at ``target``, where nothing is any more."""

    @abstractmethod
    def kinds_in(self, directory: RelPath) -> dict[bytes, Kind]:
        """Return what is directly in a directory, by name."""

    def of_kind(self, kind: Kind) -> Iterator[tuple[RelPath, Entry]]:
        """Yield those of one kind, in the mapping's order."""
        return ((path, entry) for path, entry in self.items() if entry.kind is kind)


class Tree(Fold):
    """In memory; its order is that of the names."""

    def __init__(self, entries: Mapping[RelPath, Entry] | None = None) -> None:
        """Hold ``entries``."""
        self._root = _Folder()
        self._last: tuple[RelPath, _Folder] = (b"", self._root)
        for path, entry in (entries or {}).items():
            self.put(path, entry)

    def __getitem__(self, path: RelPath) -> Entry:
        folder = self._folder(parent_of(path))
        if folder is None:
            raise KeyError(path)
        return _unpack(folder.entries[name_of(path)])

    def __contains__(self, path: object) -> bool:
        folder = self._folder(parent_of(path)) if isinstance(path, bytes) else None
        return folder is not None and isinstance(path, bytes) and name_of(path) in folder.entries

    def __iter__(self) -> Iterator[RelPath]:
        for directory, folder in self._folders():
            for name in sorted(folder.entries):
                yield join(directory, name)

    def __len__(self) -> int:
        return sum(len(folder.entries) for _, folder in self._folders())

    def kinds_in(self, directory: RelPath) -> dict[bytes, Kind]:
        folder = self._folder(directory)
        return {} if folder is None else {n: _kind_of(it) for n, it in folder.entries.items()}

    def put(self, path: RelPath, entry: Entry) -> None:
        self._put(path, _pack(entry), is_directory=entry.kind is Kind.DIRECTORY)

    def put_files(self, files: Iterable[PlainFile]) -> None:
        for file in files:
            *_, size, mtime_ns, mode, digest = file
            if len(digest) == _DIGEST:
                packed = _FILE.pack(size, mtime_ns, mode, unhexlify(digest))
                self._put(path_of(file), packed, is_directory=False)
            else:
                super().put_files([file])

    def _put(self, path: RelPath, packed: Packed, *, is_directory: bool) -> None:
        above, _, name = path.rpartition(b"/")
        folder = self._made(above)
        if folder.folders and not is_directory:
            old = folder.entries.get(name)
            if old is not None and _is_directory(old):
                self._cut(path)
        folder.entries[name] = packed

    def remove(self, path: RelPath) -> None:
        self._cut(path)

    def rename(self, source: RelPath, target: RelPath) -> None:
        entry, moved = self._cut(source)
        self._cut(target)
        if entry is None and moved is None:
            return
        folder, name = self._made(parent_of(target)), name_of(target)
        if entry is not None:
            folder.entries[name] = entry
        if moved is not None:
            _merge(folder, name, moved)
            self._last = (b"", self._root)

    def _cut(self, top: RelPath) -> tuple[Packed | None, _Folder | None]:
        """Take out and return what ``top`` is, and what it holds unless that is no directory's."""
        folder = self._folder(parent_of(top))
        if folder is None:
            return None, None
        entry = folder.entries.pop(name_of(top), None)
        if entry is not None and not _is_directory(entry):
            return entry, None
        self._last = (b"", self._root)
        return entry, folder.folders.pop(name_of(top), None)

    def _folder(self, path: RelPath) -> _Folder | None:
        known, folder = self._last
        if path == known:
            return folder
        found: _Folder | None = self._root
        for part in path.split(b"/") if path else ():
            found = found.folders.get(part) if found is not None else None
        if found is not None:
            self._last = path, found
        return found

    def _made(self, path: RelPath) -> _Folder:
        found = self._folder(path)
        if found is None:
            found = self._root
            for part in path.split(b"/"):
                found = found.folders.setdefault(part, _Folder())
        return found

    def _folders(self) -> Iterator[tuple[RelPath, _Folder]]:
        waiting = [(b"", self._root)]
        while waiting:
            path, folder = waiting.pop()
            yield path, folder
            inner = sorted(folder.folders, reverse=True)
            waiting += [(join(path, name), folder.folders[name]) for name in inner]


def _merge(folder: _Folder, name: bytes, moved: _Folder) -> None:
    """Put ``moved`` into ``folder``, where a file of this name may have had something beneath."""
    waiting = [(folder, name, moved)]
    while waiting:
        folder, name, moved = waiting.pop()
        there = folder.folders.setdefault(name, moved)
        if there is not moved:
            there.entries |= moved.entries
            waiting += [(there, inner, item) for inner, item in moved.folders.items()]


def _is_directory(packed: Packed) -> bool:
    return _kind_of(packed) is Kind.DIRECTORY


def _kind_of(packed: Packed) -> Kind:
    if isinstance(packed, Entry):
        return packed.kind
    return Kind.DIRECTORY if len(packed) == _DIRECTORY.size else Kind.FILE


def _pack(entry: Entry) -> Packed:
    if entry.group or entry.xattrs or entry.target:
        return entry
    if not (-_LONGEST <= entry.mtime_ns < _LONGEST and 0 <= entry.mode < 1 << 16):
        return entry
    if entry.kind is Kind.DIRECTORY and not entry.digest and not entry.size:
        return _DIRECTORY.pack(entry.mtime_ns, entry.mode)
    if entry.kind is not Kind.FILE or len(entry.digest) != _DIGEST or entry.size >= _LONGEST:
        return entry
    try:
        digest = bytes.fromhex(entry.digest)
    except ValueError:
        return entry
    if digest.hex() != entry.digest:  # upper case, or blanks between
        return entry
    return _FILE.pack(entry.size, entry.mtime_ns, entry.mode, digest)


def _unpack(packed: Packed) -> Entry:
    if isinstance(packed, Entry):
        return packed
    if len(packed) == _DIRECTORY.size:
        mtime_ns, mode = _DIRECTORY.unpack(packed)
        return Entry(Kind.DIRECTORY, 0, mtime_ns, mode)
    size, mtime_ns, mode, digest = _FILE.unpack(packed)
    return Entry(Kind.FILE, size, mtime_ns, mode, digest.hex())
