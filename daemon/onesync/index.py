"""The local record of what the replica is known to hold.

One SQLite file in the state directory, WAL with full synchronisation: what ``commit`` returned from
survives a power loss. Opened by the thread that starts, then used by the engine's alone.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from onesync.core.blocks import ALGORITHM, OLD_ALGORITHM, Blocks
from onesync.core.chain import Change, Gone, Renamed, Set
from onesync.core.claims import REMEMBERED_NAME
from onesync.core.model import (
    Entry,
    Kind,
    Known,
    RelPath,
    Stamp,
    doubted_stamp,
    is_damaged_copy,
    is_damaged_row,
    join,
    lost_stamp,
    name_of,
    parent_of,
)
from onesync.errors import Halted, IndexDamaged, StateDirFailed

log = logging.getLogger(__name__)

StampRow = tuple[str, int | None, int, int, int, int, int | None, bytes]
"""Kind, inode (None: no stamp), size, mtime, ctime (ns), mode, whether it is linked, target."""

FORMAT = 5
HELD_SINCE = 3
"""The first format that knows of held deletions."""
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")
_FAILED = (
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
    "SQLITE_NOMEM",
    "SQLITE_BUSY",
    "SQLITE_PROTOCOL",
)
_CHUNK = 1 << 20
_PORTION = 2_000
_BLOCKS_PORTION = 100
"""Blocks of huge files are 16 kB for each GB."""
_LARGEST_LOG = 64 << 20
"""Bytes of the write-ahead log that stay: a stage-in makes one as large as the index."""
_HAS_ENTRY = 10
"""So many of the columns tell of the entry, the others of its stamp."""
_BELIEVED = -1
"""``unverified.is_read`` of a file of which a mount could not tell: less than of any other one.

So it is of an earlier deployment's, and after a lost index."""
_BELIEVED_LATELY = -2
"""Of one that was pushed by this deployment."""
_SUSPECTED = -3
"""Of such a one that is read back, for a connection was lost since, and holds up no others."""
_MOST_INTEGER = (1 << 63) - 1
_COLUMNS = (
    "parent, name, kind, size, mtime_ns, mode, digest, target, link_group, xattrs,"
    " inode, s_size, s_mtime, s_ctime, s_mode, s_linked"
)
_ENTRIES = "parent, name, kind, size, mtime_ns, mode, digest, target, link_group, xattrs"
_STAMPS = "name, kind, inode, s_size, s_mtime, s_ctime, s_mode, s_linked, target"
_ENTRY = """
CREATE TABLE IF NOT EXISTS entry (
    parent BLOB NOT NULL, name BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, mode INTEGER NOT NULL, digest TEXT NOT NULL, target BLOB NOT NULL,
    link_group INTEGER NOT NULL DEFAULT 0, xattrs TEXT NOT NULL DEFAULT '',
    inode INTEGER, s_size INTEGER, s_mtime INTEGER, s_ctime INTEGER, s_mode INTEGER,
    s_linked INTEGER, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_by_inode ON entry (inode);
CREATE INDEX IF NOT EXISTS links ON entry (parent, name, target) WHERE kind = 'link';
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
{_ENTRY}
CREATE TABLE IF NOT EXISTS blocks (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, digests BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block_digests (
    digest TEXT PRIMARY KEY, algorithm TEXT NOT NULL, size INTEGER NOT NULL, digests BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unverified (
    path BLOB PRIMARY KEY, is_read INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS explained (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS damaged (digest TEXT PRIMARY KEY) WITHOUT ROWID;
"""

_BLOCKS = """
SELECT size, digests, algorithm FROM block_digests WHERE digest = ?1 AND algorithm IN (?2, ?3)
UNION ALL SELECT size, digests, ?3 FROM blocks WHERE digest = ?1
"""
"""An earlier onesync knows of ``blocks`` alone. What a later one digests otherwise is unknown."""

_OLD = ("1", "2", "3", "4")
_BY_PATH = """
    parent, substr(path, CASE parent WHEN x'' THEN 1 ELSE length(parent) + 2 END) AS name,
    kind, size, mtime_ns, mode, digest, target, {more},
    inode, s_size, s_mtime, s_ctime, s_mode, {linked} AS s_linked
"""
"""The columns of the formats until 4, whose rows had paths, as ``_COLUMNS`` names them."""
_OLDEST = _BY_PATH.format(more="0 AS link_group, '' AS xattrs", linked="NULL")
_OLDER = _BY_PATH.format(more="link_group, xattrs", linked="s_linked")
_FROM_OLD = f"""
ALTER TABLE entry RENAME TO by_path;
{_ENTRY}
INSERT INTO entry ({_COLUMNS}) SELECT {{columns}} FROM by_path ORDER BY parent, name;
DROP TABLE by_path;
"""


def open_index(path: Path) -> Index:
    """Open or create the index; a damaged one is kept beside and an empty one made.

    An empty one beside a remembered claim took the place of one that is lost: the folder counts as
    claimed until it is released. Raises Halted where a newer onesync wrote it, StateDirFailed where
    it cannot be written.
    """
    has_claim = path.with_name(REMEMBERED_NAME).exists()
    try:
        return Index(path, is_claimed=has_claim)
    except IndexDamaged as error:
        keep_damaged(path, error)
        return Index(path, is_claimed=has_claim)


def is_lost(state_dir: Path) -> bool:
    """Return whether there is a remembered claim, and no index that tells what became of it."""
    has_claim = (state_dir / REMEMBERED_NAME).exists()
    return has_claim and not (state_dir / "index.sqlite").exists()


def keep_damaged(path: Path, error: IndexDamaged) -> None:
    """Move a damaged index out of the way, under a name of its own."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    log.error("index damaged", extra={"reason": str(error), "kept": str(kept)})


class Filling:
    """Rows on their way into the index, some at a time."""

    def __init__(
        self,
        write: Callable[[list[tuple[RelPath, Entry, Stamp | None]], dict[str, Blocks]], None],
    ) -> None:
        """Write them, and blocks, with ``write``."""
        self._write = write
        self._rows: list[tuple[RelPath, Entry, Stamp | None]] = []
        self._blocks: dict[str, Blocks] = {}

    def put(
        self, path: RelPath, entry: Entry, stamp: Stamp | None, blocks: Blocks | None = None
    ) -> None:
        """Add a row, with the blocks of a large file."""
        self._rows.append((path, entry, stamp))
        if blocks is not None:
            self._blocks[entry.digest] = blocks
        if len(self._rows) >= _PORTION or len(self._blocks) >= _BLOCKS_PORTION:
            self.write()

    def write(self) -> None:
        """Write what was put since the last time."""
        rows, self._rows = self._rows, []
        blocks, self._blocks = self._blocks, {}
        if rows:
            self._write(rows, blocks)


class Index:
    """Rows by path, and a few named values (``meta``).

    Every method raises StateDirFailed where the file cannot be read or written, with nothing
    changed, and IndexDamaged where it holds what no index can.
    """

    def __init__(self, path: Path, *, readonly: bool = False, is_claimed: bool = False) -> None:
        """Open or create the index; a new one says whether the folder ``is_claimed``.

        Raises Halted where a newer onesync wrote it.
        """
        self._path = path
        self._is_claimed_anew = is_claimed
        self._agreed: dict[RelPath, bytes] = {}
        with self._told():
            if readonly:
                self._db = sqlite3.connect(_read_only(path), uri=True, isolation_level=None)
                self._see_as_new()
                return
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA journal_size_limit={_LARGEST_LOG}")
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._damaged(found)
        version = self._version()
        if version in _OLD:
            self._bring_up_to_date(version)
        elif version is None:
            self._begin()
        elif not version.isdecimal():
            raise self._lost(f"format {version!r:.20}")
        elif int(version) > FORMAT:
            raise Halted(
                f"The index {self._path} has format {version}, newer than this onesync's {FORMAT};"
                " nothing was changed. Install the newer onesync again."
            )
        self._db.executescript(_SCHEMA)

    def _see_as_new(self) -> None:
        """Read the rows of an older format, which must not be rewritten, as if they were new."""
        version = self._version()
        if version in _OLD:
            columns = _OLDEST if version == "1" else _OLDER
            self._db.execute(f"CREATE TEMP VIEW entry AS SELECT {columns} FROM main.entry")

    def _begin(self) -> None:
        """Make a new file, or one whose maker died before it held anything."""
        self._db.execute("DROP TABLE IF EXISTS entry")
        self._db.executescript(_SCHEMA)
        self.set(format=str(FORMAT), claimed="yes" if self._is_claimed_anew else None)

    def _version(self) -> str | None:
        """Return the format of the file; None where it is new."""
        query = "SELECT count(*) FROM sqlite_master WHERE name = 'meta'"
        return self.get("format") if self._db.execute(query).fetchone()[0] else None

    def _bring_up_to_date(self, version: str) -> None:
        """Rewrite the rows of an older format, all or none: by path until 4, by directory since."""
        steps = _FROM_OLD.format(columns=_OLDEST if version == "1" else _OLDER)
        with self._transaction():
            for statement in steps.split(";"):
                self._db.execute(statement)
            self._set({"format": str(FORMAT)})

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite says into a sentence for a person."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(_DAMAGED):
                raise self._damaged(error) from error
            if not name.startswith(_FAILED):
                raise
            raise self._failed(error) from error

    def _failed(self, error: object) -> StateDirFailed:
        return StateDirFailed(
            f"{self._path} cannot be read or written ({error}), so nothing is committed; nothing is"
            f" lost. Make room in {self._path.parent} or mend its disk: onesync then goes on by"
            " itself."
        )

    def _damaged(self, error: object) -> StateDirFailed | IndexDamaged:
        """Return what it is that SQLite calls corrupt: also a disk that cannot be read."""
        if not _is_readable(self._path) or _is_sound(self._path):
            return self._failed(error)
        return self._lost(error)

    def _lost(self, error: object) -> IndexDamaged:
        return IndexDamaged(
            f"The index {self._path} is damaged ({error}); nothing was deleted in OneData. The next"
            " start makes it anew, by comparing the working copy with the manifest."
        )

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with self._told():
            yield from self._db.execute(query, values)

    def _row(self, query: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        return next(iter(list(self._rows(query, values))), None)

    def _known(self, row: tuple[Any, ...]) -> Known:
        try:
            return _known(row)
        except (ValueError, TypeError) as error:  # such as an unknown kind
            raise self._lost(error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, key: str) -> str | None:
        """Return a named value, or None."""
        row = self._row("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def set(self, **values: str | None) -> None:
        """Record named values durably and at once; None removes one."""
        with self._transaction():
            self._set(values)

    def known(self, path: RelPath) -> Known | None:
        """Return the row of ``path``."""
        row = self._row(f"SELECT {_COLUMNS} FROM entry WHERE {_IS}", _place(path))
        return None if row is None else self._known(row)

    def stamps(self, directory: RelPath) -> dict[bytes, StampRow]:
        """Return what a scan compares of the rows directly in ``directory``, by their names.

        The values come as SQLite has them (see ``StampRow``): a scan makes nothing of most.
        """
        query = f"SELECT {_STAMPS} FROM entry WHERE parent = ?"
        found = {row[0]: row[1:] for row in self._rows(query, (directory,))}
        if not directory:
            found.pop(b"", None)
        return found

    def agree(self, directory: RelPath, listing: bytes) -> None:
        """Remember, for this life, by what listing ``directory`` was all that its rows say."""
        self._agreed[directory] = listing

    def agreed(self, directory: RelPath) -> bytes | None:
        """Return that listing, unless a row directly in ``directory`` changed since."""
        return self._agreed.get(directory)

    def beneath(self, path: RelPath) -> Iterator[tuple[RelPath, Known]]:
        """Yield the row of ``path`` and all beneath it, each directory before what is in it.

        What is directly in one directory comes together, by name.
        """
        for where, values in _parts(path):
            query = f"SELECT {_COLUMNS} FROM entry WHERE {where} ORDER BY parent, name"
            for row in self._rows(query, values):
                yield join(row[0], row[1]), self._known(row)

    def upwards(self) -> Iterator[tuple[RelPath, Known]]:
        """Yield every row but the root's, what is in a directory before the directory."""
        query = f"SELECT {_COLUMNS} FROM entry ORDER BY parent DESC, name DESC"
        for row in self._rows(query):
            if path := join(row[0], row[1]):
                yield path, self._known(row)

    def entries(self) -> Iterator[tuple[RelPath, Entry]]:
        """Yield path and entry of every row, in the order of ``beneath``; makes no stamps."""
        for row in self._rows(f"SELECT {_ENTRIES} FROM entry ORDER BY parent, name"):
            try:
                yield join(row[0], row[1]), entry_of(row)
            except (ValueError, TypeError) as error:  # such as an unknown kind
                raise self._lost(error) from error

    def links(self) -> Iterator[tuple[RelPath, bytes]]:
        """Yield every link with its target."""
        rows = self._rows("SELECT parent, name, target FROM entry WHERE kind = 'link'")
        return ((join(parent, name), target) for parent, name, target in rows)

    def by_inode(self, inode: int) -> list[tuple[RelPath, Known]]:
        """Return the rows whose source had this inode."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM entry WHERE inode = ?", (inode,))
        return [(join(row[0], row[1]), self._known(row)) for row in rows]

    def count(self) -> int:
        """Return the number of rows."""
        (found,) = self._rows("SELECT count(*) FROM entry")
        return int(found[0])

    def extent(self) -> tuple[int, int, int]:
        """Return the number of directories, that of all rows, and the bytes of the files."""
        (found,) = self._rows("SELECT total(kind = 'dir'), count(*), total(size) FROM entry")
        return int(found[0]), int(found[1]), int(found[2])

    def commit(
        self,
        changes: Iterable[Change],
        stamps: dict[RelPath, Stamp],
        blocks: Mapping[str, Blocks] = MappingProxyType({}),
        pushed: Mapping[RelPath, bool] = MappingProxyType({}),
        **values: str | None,
    ) -> None:
        """Apply a checkpoint's changes, in one durable transaction.

        Args:
            changes: as written into the checkpoint, in its order.
            stamps: stamps of the sources of the paths that were set.
            blocks: as for ``remember_blocks``.
            pushed: the files whose bytes travelled, and whether each is to be read back.
            **values: named values that belong to the same moment.
        """
        with self._transaction():
            for change in changes:
                self._apply(change, stamps)
            self._put_blocks(blocks)
            self._put_unverified(pushed)
            self._set(values)

    def unverified(self, limit: int) -> list[tuple[RelPath, bool]]:
        """Return up to ``limit`` files that are not known to have arrived, by path.

        With each, whether it is to be read back.
        """
        query = "SELECT path, is_read FROM unverified WHERE is_read >= 0 ORDER BY path LIMIT ?"
        return [(path, bool(is_read)) for path, is_read in self._rows(query, (limit,))]

    def verified(self, paths: Iterable[RelPath]) -> None:
        """Remember that ``paths`` arrived, or are sent anew."""
        rows = [(path,) for path in paths]
        if rows:
            with self._transaction():
                self._db.executemany("DELETE FROM unverified WHERE path = ?", rows)

    def suspect(self) -> bool:
        """Let all that is unverified be read back; returns whether there is any."""
        with self._transaction():
            query = "UPDATE unverified SET is_read = 1 WHERE is_read >= 0"
            return self._db.execute(query).rowcount > 0

    def suspect_believed(self) -> None:
        """Let what this deployment pushed, and nobody could tell of, be ``suspected``."""
        with self._transaction():
            query = "UPDATE unverified SET is_read = ? WHERE is_read = ?"
            self._db.execute(query, (_SUSPECTED, _BELIEVED_LATELY))

    def suspected(self, limit: int) -> list[RelPath]:
        """Return up to ``limit`` of those files, by path: they are to be read back."""
        query = "SELECT path FROM unverified WHERE is_read = ? ORDER BY path LIMIT ?"
        return [path for (path,) in self._rows(query, (_SUSPECTED, limit))]

    def believe(self, paths: Iterable[RelPath], *, lately: bool = True) -> None:
        """Remember that nobody could tell of the files at ``paths`` whether they arrived.

        They are not ``unverified`` any more; an older onesync reads them back. ``lately`` are those
        that this deployment is known to have pushed.
        """
        rows = [(path, _BELIEVED_LATELY if lately else _BELIEVED) for path in paths]
        if rows:
            with self._transaction():
                self._db.executemany("INSERT OR REPLACE INTO unverified VALUES (?, ?)", rows)

    def believed(self) -> list[RelPath]:
        """Return what was believed and not read back since, by path."""
        query = "SELECT path FROM unverified WHERE is_read < 0 ORDER BY path"
        return [path for (path,) in self._rows(query)]

    def _put_unverified(self, pushed: Mapping[RelPath, bool]) -> None:
        # What was suspected before and only grew since stays so.
        self._db.executemany(
            "INSERT INTO unverified VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET"
            f" is_read = CASE is_read WHEN {_SUSPECTED} THEN 1"
            " ELSE max(is_read, excluded.is_read) END",
            list(pushed.items()),
        )

    def doubt(self, path: RelPath) -> None:
        """Remember that the replica does not hold what the row of ``path`` says.

        What this node never had stays so, as with ``doubt_tree``: with a stamp it would be missed.
        """
        known = self.known(path)
        if known is None or known.stamp is None or known.entry.kind is Kind.LINK:
            return
        with self._transaction():
            if known.entry.kind is Kind.DIRECTORY:
                self._agreed.pop(parent_of(path), None)
                self._db.execute(f"DELETE FROM entry WHERE {_IS}", _place(path))
            else:
                self._put(path, known.entry, doubted_stamp(Kind.FILE))

    def doubt_tree(self, path: RelPath) -> int:
        """Remember that the replica has nothing at ``path`` and beneath, whatever the rows say.

        Returns how many that are. What this node never had stays so: it has nothing to send.
        """
        values = "inode = -1, s_size = -1, s_mtime = 0, s_ctime = 0, s_mode = 0, s_linked = 0"
        which = "kind != 'link' AND inode IS NOT NULL"
        with self._transaction():
            self._agreed.clear()
            return sum(
                self._db.execute(
                    f"UPDATE entry SET {values} WHERE {which} AND {where}", at
                ).rowcount
                for where, at in _parts(path)
            )

    def remember_damaged(self, digests: Iterable[str]) -> None:
        """Remember what came damaged with this stage-in, in the place of what came before."""
        with self._transaction():
            self._db.execute("DELETE FROM damaged")
            self._db.executemany("INSERT INTO damaged VALUES (?)", [(d,) for d in digests])

    def damaged(self) -> frozenset[str]:
        """Return the digests of what came damaged from OneData."""
        return frozenset(row[0] for row in self._rows("SELECT digest FROM damaged"))

    def still_damaged(self, stamps: Mapping[RelPath, Stamp]) -> None:
        """Remember what damaged copies look like now that have still the bytes that came.

        Not of those whose time changed: nothing else tells that they are such copies.
        """
        rows = {path: self.known(path) for path in stamps}
        entries = {path: known.entry for path, known in rows.items() if is_damaged_row(known)}
        entries = {p: entry for p, entry in entries.items() if is_damaged_copy(entry, stamps[p])}
        if entries:
            with self._transaction():
                for path, entry in entries.items():
                    self._put(path, entry, stamps[path])

    def came_damaged(self, digest: str) -> bool:
        """Return whether content with this digest came damaged from OneData."""
        return self._row("SELECT 1 FROM damaged WHERE digest = ?", (digest,)) is not None

    def lose_stamps(self, paths: Collection[RelPath]) -> None:
        """Let the next scan tell of the files at ``paths``, whatever it sees there."""
        if not paths:
            return
        with self._transaction():
            for path in paths:
                known = self.known(path)
                if known and known.stamp and known.entry.kind is Kind.FILE:
                    self._put(path, known.entry, lost_stamp(Kind.FILE))

    def held(self) -> frozenset[RelPath]:
        """Return the tops of what is held: absent from the working copy and not to be deleted."""
        return frozenset(row[0] for row in self._rows("SELECT path FROM held"))

    def count_beneath(self, paths: Iterable[RelPath]) -> int:
        """Return the number of rows at and beneath ``paths``, of which none lies in another."""
        return sum(self._count_at(path) for path in paths)

    def _count_at(self, path: RelPath) -> int:
        queries = [(f"SELECT count(*) FROM entry WHERE {w}", values) for w, values in _parts(path)]
        return sum(int(row[0]) for query in queries for row in self._rows(*query))

    def hold(self, add: Iterable[RelPath], release: Iterable[RelPath]) -> None:
        """Change what is held, durably and at once."""
        with self._transaction():
            self._db.executemany("DELETE FROM held WHERE path = ?", [(p,) for p in release])
            self._db.executemany("INSERT OR IGNORE INTO held VALUES (?)", [(p,) for p in add])

    def explained(self) -> frozenset[RelPath]:
        """Return the paths whose absence, with all beneath, was explained and is not pushed yet."""
        return frozenset(row[0] for row in self._rows("SELECT path FROM explained"))

    def explain(self, add: Iterable[RelPath], forget: Iterable[RelPath]) -> None:
        """Change what is explained, durably and at once."""
        with self._transaction():
            self._db.executemany("DELETE FROM explained WHERE path = ?", [(p,) for p in forget])
            rows = [(path,) for path in add]
            self._db.executemany("INSERT OR IGNORE INTO explained VALUES (?)", rows)

    def blocks(self, digest: str) -> Blocks | None:
        """Return the blocks of the large file with this digest, where they are known."""
        row = self._row(_BLOCKS, (digest, ALGORITHM, OLD_ALGORITHM))
        return None if row is None else Blocks(*row)

    def remember_blocks(self, blocks: Mapping[str, Blocks]) -> None:
        """Remember blocks by their files' digests, and forget those that no row has."""
        with self._transaction():
            for table in ("blocks", "block_digests"):
                which = "digest NOT IN (SELECT digest FROM entry)"
                self._db.execute(f"DELETE FROM {table} WHERE {which}")
            self._put_blocks(blocks)

    def _put_blocks(self, blocks: Mapping[str, Blocks]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO block_digests VALUES (?,?,?,?)",
            [(digest, b.algorithm, b.size, b.digests) for digest, b in blocks.items()],
        )

    def replace(
        self, tree: Iterable[tuple[RelPath, Entry, Stamp | None]], **meta: str | None
    ) -> None:
        """Replace all rows, as after stage-in."""
        with self._transaction():
            self._empty()
            self._db.execute("DELETE FROM unverified")
            for path, entry, stamp in tree:
                self._put(path, entry, stamp)
            self._set(dict(meta))

    def _empty(self) -> None:
        self._agreed.clear()
        for table in ("entry", "held", "explained"):
            self._db.execute(f"DELETE FROM {table}")

    @contextmanager
    def refilled(self) -> Iterator[Filling]:
        """Replace all rows by those that are put while this lasts, as stage-in does.

        They are written in portions: what an interrupted one left is replaced by the next. What was
        believed stays so: a copy that is used again tells nothing of what OneData holds.
        """
        with self._transaction():
            self._empty()
            self._db.execute("DELETE FROM unverified WHERE is_read >= 0")
            self._db.execute("UPDATE unverified SET is_read = ?", (_BELIEVED,))
        filling = Filling(self._put_rows)
        yield filling
        filling.write()

    def _put_rows(
        self, rows: list[tuple[RelPath, Entry, Stamp | None]], blocks: Mapping[str, Blocks]
    ) -> None:
        with self._transaction():
            for row in rows:
                self._put(*row)
            self._put_blocks(blocks)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """An immediate transaction: committed on success, rolled back on any error."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    def _set(self, values: dict[str, str | None]) -> None:
        for key, value in values.items():
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _apply(self, change: Change, stamps: dict[RelPath, Stamp]) -> None:
        if isinstance(change, Set):
            old = self.known(change.path)
            if old is not None and old.entry.kind is Kind.DIRECTORY is not change.entry.kind:
                self._delete(change.path)
            self._put(change.path, change.entry, stamps.get(change.path))
            self._db.execute("DELETE FROM held WHERE path = ?", (change.path,))
        elif isinstance(change, Gone):
            self._delete(change.path)
        elif isinstance(change, Renamed):
            self._rename(change.source, change.target)

    def _put(self, path: RelPath, entry: Entry, stamp: Stamp | None) -> None:
        self._agreed.pop(parent_of(path), None)
        known = (entry.kind, entry.size, entry.mtime_ns, entry.mode, entry.digest, entry.target)
        more = (entry.group & _MOST_INTEGER, xattrs_text(entry.xattrs))
        seen: tuple[int | None, ...] = (None,) * 6
        if stamp is not None:
            times = (stamp.mtime_ns, stamp.ctime_ns)
            seen = (stamp.inode, stamp.size, *times, stamp.mode, stamp.linked)
        self._db.execute(
            f"INSERT OR REPLACE INTO entry ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (*_place(path), *known, *more, *seen),
        )

    def _delete(self, path: RelPath) -> None:
        self._agreed.pop(parent_of(path), None)
        for where, values in _parts(path):
            found = self._db.execute(f"DELETE FROM entry WHERE {where}", values)
            if found.rowcount and where != _IS:
                self._agreed.clear()  # rare, and looking for those beneath costs as much
        where, values = _range(path)
        self._db.execute(f"DELETE FROM unverified WHERE {where}", values)
        self._db.execute(f"DELETE FROM held WHERE {where}", values)

    def _rename(self, source: RelPath, target: RelPath) -> None:
        rows = list(self.beneath(source))
        where, values = _range(source)
        query = f"SELECT path, is_read FROM unverified WHERE {where}"
        pushed = list(self._db.execute(query, values))
        held = self._db.execute(f"SELECT path FROM held WHERE {where}", values).fetchall()
        self._delete(source)
        self._delete(target)
        self._put_unverified({target + path[len(source) :]: is_read for path, is_read in pushed})
        moved = [(target + path[len(source) :],) for (path,) in held]
        self._db.executemany("INSERT INTO held VALUES (?)", moved)
        for path, known in rows:
            self._put(target + path[len(source) :], known.entry, known.stamp)


def _is_readable(path: Path) -> bool:
    """Whether the disk gives all bytes of an index, whatever they are."""
    try:
        for part in (path, path.with_name(path.name + "-wal")):
            with suppress(FileNotFoundError), part.open("rb") as file:
                while file.read(_CHUNK):
                    pass
    except OSError:
        return False
    return True


def _is_sound(path: Path) -> bool:
    """Whether an index is whole when it is looked at anew."""
    try:
        with closing(sqlite3.connect(_read_only(path), uri=True)) as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error:
        return False
    return bool(found == "ok")


def _read_only(path: Path) -> str:
    return f"file:{quote(os.fsencode(path))}?mode=ro"


_IS = "parent = ? AND name = ?"


def _place(path: RelPath) -> tuple[RelPath, bytes]:
    return parent_of(path), name_of(path)


def _parts(path: RelPath) -> list[tuple[str, tuple[bytes, ...]]]:
    """Return the conditions that hold for ``path``, what is in it, and what is deeper, in turn."""
    if not path:
        return [("1", ())]
    deeper = (path + b"/", path + b"0")
    return [(_IS, _place(path)), ("parent = ?", (path,)), ("parent > ? AND parent < ?", deeper)]


def _range(path: RelPath) -> tuple[str, tuple[bytes, ...]]:
    """Return the condition that holds for ``path`` and all beneath it ("0" follows "/")."""
    if not path:
        return "1", ()
    return "(path = ? OR (path > ? AND path < ?))", (path, path + b"/", path + b"0")


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return the entry of a row whose columns are ``_ENTRIES``, and perhaps more."""
    _, _, kind, size, mtime_ns, mode, digest, target, group, xattrs = row[:_HAS_ENTRY]
    return Entry(Kind(kind), size, mtime_ns, mode, digest, target, group, _xattrs_of(xattrs))


def _known(row: tuple[Any, ...]) -> Known:
    entry = entry_of(row)
    *stamped, linked = row[_HAS_ENTRY:]
    if stamped[0] is None:
        return Known(entry, None)
    inode, s_size, s_mtime, s_ctime, s_mode = stamped
    stamp = Stamp(entry.kind, inode, s_size, s_mtime, s_ctime, s_mode, entry.target, bool(linked))
    return Known(entry, stamp)


def xattrs_text(xattrs: tuple[tuple[bytes, bytes], ...]) -> str:
    """Return attributes as a row has them."""
    return json.dumps([(n.hex(), v.hex()) for n, v in xattrs]) if xattrs else ""


def _xattrs_of(text: str) -> tuple[tuple[bytes, bytes], ...]:
    pairs = json.loads(text) if text else ()
    return tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in pairs)
