"""A manifest's tree on disk, for memory that does not grow with it.

A database of its own, which has no name and goes with whoever opened it: it is made anew from the
manifest at every start, so nothing of it need outlive anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, ItemsView, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any

from onesync.core.model import Entry, Kind, RelPath, join, name_of, parent_of
from onesync.core.tree import Fold, PlainFile, path_of
from onesync.errors import StateDirFailed
from onesync.index import entry_of, xattrs_text
from onesync.local import on_this_machine

_NAME = "tree.sqlite"
_CACHED_KIB = 8_000
_PORTION = 2_000
_TOGETHER = 50
_ALL = "parent, name, kind, size, mtime_ns, mode, digest, target, link_group, xattrs"
_TABLE = """
CREATE TABLE entry (
    parent BLOB NOT NULL, name BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, mode INTEGER NOT NULL, digest TEXT NOT NULL, target BLOB NOT NULL,
    link_group INTEGER NOT NULL, xattrs TEXT NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID
"""
_PUT = f"INSERT OR REPLACE INTO entry ({_ALL}) VALUES "
_ROW = "(?,?,?,?,?,?,?,?,?,?)"
_FILE = "(CAST(? AS BLOB),CAST(? AS BLOB),'file',?,?,?,?,x'',0,'')"
"""What nearly all rows are; so many of them in one statement take half the time."""
_IS = "parent = ? AND name = ?"
_BENEATH = "(parent = ? OR (parent > ? AND parent < ?))"
_MOVE = f"""
UPDATE OR REPLACE entry SET parent = CAST(? || substr(parent, ?) AS BLOB) WHERE {_BENEATH}
"""
_ASIDE = b"\0"
"""Where no path lies: what is renamed waits here while its target is cleared."""
_GROUPS = 1 << 64
"""SQLite's numbers are signed, those of groups are not."""

Row = tuple[bytes, bytes, str, int, int, int, str, bytes, int, str]


@contextmanager
def stored_trees(directory: Path) -> Iterator[Callable[[], StoredTree]]:
    """Yield what makes an empty tree in ``directory``; all that it made go at the end.

    Making or using one raises StateDirFailed where the disk is full or fails.
    """
    made: list[StoredTree] = []

    def make() -> StoredTree:
        made.append(StoredTree(directory))
        return made[-1]

    try:
        yield make
    finally:
        for tree in made:
            tree.close()


class StoredTree(Fold):
    """On disk; its order is that of the directories' paths, and of the names in each."""

    def __init__(self, directory: Path) -> None:
        """Begin with an empty one."""
        self._directory = directory
        self._waiting: list[Row] = []
        self._greatest = (b"", b"")  # no directory stands after it: a base comes in order
        path = directory / _NAME
        with self._told(), on_this_machine():
            path.unlink(missing_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            path.unlink()
            for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHED_KIB}"):
                self._db.execute(f"PRAGMA {setting}").fetchall()
            self._db.execute(_TABLE)
            self._db.execute("BEGIN")  # never committed: pages are written where memory is full

    def close(self) -> None:
        """Let it go."""
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise StateDirFailed(
                f"The manifest cannot be unfolded in {self._directory} ({error}); nothing was"
                " changed. Make room there or mend its disk, then start again."
            ) from error

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        self._write()
        with self._told():
            # Not from the cursor: who stops reading would close it, perhaps after the database.
            cursor = self._db.execute(query, values)
            while rows := cursor.fetchmany(_TOGETHER):
                yield from rows

    def _do(self, query: str, *values: object) -> None:
        self._write()
        with self._told():
            self._db.execute(query, values)

    def _write(self) -> None:
        if self._waiting:
            rows, self._waiting = self._waiting, []
            with self._told():
                self._db.executemany(_PUT + _ROW, rows)

    # -- the mapping ---------------------------------------------------------------------------

    def __getitem__(self, path: RelPath) -> Entry:
        for row in self._rows(f"SELECT {_ALL} FROM entry WHERE {_IS}", *_place(path)):
            return _entry(row)
        raise KeyError(path)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, bytes) and self._kind(path) is not None

    def __iter__(self) -> Iterator[RelPath]:
        rows = self._rows("SELECT parent, name FROM entry ORDER BY parent, name")
        return starmap(join, rows)

    def __len__(self) -> int:
        (found,) = self._rows("SELECT count(*) FROM entry")
        return int(found[0])

    def items(self) -> ItemsView[RelPath, Entry]:
        """Return what yields paths and entries, in one reading."""
        return _Items(self)

    def read(self, where: str = "1", *values: object) -> Iterator[tuple[RelPath, Entry]]:
        """Yield the paths and entries for which the condition ``where`` holds."""
        query = f"SELECT {_ALL} FROM entry WHERE {where} ORDER BY parent, name"
        return ((join(row[0], row[1]), _entry(row)) for row in self._rows(query, *values))

    def of_kind(self, kind: Kind) -> Iterator[tuple[RelPath, Entry]]:
        return self.read("kind = ?", kind.value)

    def kinds_in(self, directory: RelPath) -> dict[bytes, Kind]:
        rows = self._rows("SELECT name, kind FROM entry WHERE parent = ?", directory)
        return {name: Kind(kind) for name, kind in rows}

    def _kind(self, path: RelPath) -> Kind | None:
        for (kind,) in self._rows(f"SELECT kind FROM entry WHERE {_IS}", *_place(path)):
            return Kind(kind)
        return None

    # -- how it changes ------------------------------------------------------------------------

    def put(self, path: RelPath, entry: Entry) -> None:
        group = entry.group if entry.group < _GROUPS // 2 else entry.group - _GROUPS
        known = (entry.kind.value, entry.size, entry.mtime_ns, entry.mode, entry.digest)
        row = (*_place(path), *known, entry.target, group, xattrs_text(entry.xattrs))
        if row[:2] <= self._greatest:
            if entry.kind is not Kind.DIRECTORY and self._kind(path) is Kind.DIRECTORY:
                self._remove_beneath(path)
        else:
            self._greatest = row[:2]
        self._waiting.append(row)
        if len(self._waiting) >= _PORTION:
            self._write()

    def put_files(self, files: Iterable[PlainFile]) -> None:
        rest = iter(files)
        while some := list(islice(rest, _TOGETHER)):
            self._write()  # the order counts: one path may come twice
            if self._replace_directories(some):
                super().put_files(some)
                continue
            with self._told():
                query = _PUT + ",".join([_FILE] * len(some))
                self._db.execute(query, [*chain.from_iterable(some)])

    def _replace_directories(self, files: list[PlainFile]) -> bool:
        directory, name, *_ = min(files)
        if (directory.encode(), name.encode()) > self._greatest:
            return False
        return Kind.DIRECTORY in map(self._kind, map(path_of, files))

    def remove(self, path: RelPath) -> None:
        if self._kind(path) in (None, Kind.DIRECTORY):
            self._remove_beneath(path)
        self._do(f"DELETE FROM entry WHERE {_IS}", *_place(path))

    def _remove_beneath(self, path: RelPath) -> None:
        self._do(f"DELETE FROM entry WHERE {_BENEATH}", *_beneath(path))

    def rename(self, source: RelPath, target: RelPath) -> None:
        entry = self.get(source)
        if entry is None or entry.kind is Kind.DIRECTORY:
            self._move(source, _ASIDE)
        self._do(f"DELETE FROM entry WHERE {_IS}", *_place(source))
        self.remove(target)
        self._move(_ASIDE, target)
        if entry is not None:
            self.put(target, entry)
        for parent, name in self._rows(
            "SELECT parent, name FROM entry ORDER BY parent DESC, name DESC LIMIT 1"
        ):
            self._greatest = max(self._greatest, (parent, name))

    def _move(self, source: RelPath, target: RelPath) -> None:
        """Let what is beneath ``source`` be beneath ``target``."""
        self._do(_MOVE, target, len(source) + 1, *_beneath(source))


class _Items(ItemsView[RelPath, Entry]):
    def __init__(self, tree: StoredTree) -> None:
        super().__init__(tree)
        self._tree = tree

    def __iter__(self) -> Iterator[tuple[RelPath, Entry]]:
        return self._tree.read()


def _entry(row: tuple[Any, ...]) -> Entry:
    *others, group, xattrs = row
    return entry_of((*others, group % _GROUPS, xattrs))


def _place(path: RelPath) -> tuple[RelPath, bytes]:
    return parent_of(path), name_of(path)


def _beneath(path: RelPath) -> tuple[bytes, bytes, bytes]:
    return path, path + b"/", path + b"0"
