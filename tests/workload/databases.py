"""Databases as Scipion uses them: opened, changed in one transaction, closed.

``user_version`` counts the transactions, ``application_id`` the lives of a database that is made
anew under its name: both outlive a dropped table, and both can be read from the file's header.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 1000.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS Objects (id INTEGER PRIMARY KEY, path TEXT, generation INTEGER)",
    "CREATE TABLE IF NOT EXISTS Properties (key TEXT PRIMARY KEY, value INTEGER)",
)

Change = Callable[[sqlite3.Connection], object]


@dataclass(frozen=True, slots=True)
class State:
    """What a database says.

    Attributes:
        counter: (life, transactions).
        rows: (id, path, generation).
        size: the property that counts the rows; None before the tables were made.
    """

    counter: tuple[int, int]
    rows: list[tuple[int, str, int]]
    size: int | None


def connect(path: Path, patience: float = _PATIENCE) -> sqlite3.Connection:
    """Open a database whose transactions are begun by hand."""
    return sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)


def commit(path: Path, change: Change, life: int = 1) -> tuple[int, float]:
    """Change a database; returns the new count of transactions and the seconds waited for it."""
    with closing(connect(path)) as db:
        return transact(db, change, life)


def transact(db: sqlite3.Connection, change: Change, life: int = 1) -> tuple[int, float]:
    """Do one transaction on an open database; see ``commit``."""
    before = time.monotonic()
    db.execute("BEGIN IMMEDIATE")
    waited = time.monotonic() - before
    try:
        for table in _TABLES:
            db.execute(table)
        change(db)
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'Objects'").fetchone():
            db.execute("INSERT OR REPLACE INTO Properties SELECT '_size', count(*) FROM Objects")
        counted = int(db.execute("PRAGMA user_version").fetchone()[0]) + 1
        db.execute(f"PRAGMA user_version = {counted}")
        db.execute(f"PRAGMA application_id = {life}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return counted, waited


def add(number: int, path: str, generation: int) -> Change:
    """Return the change that adds or replaces a row."""
    row = (number, path, generation)
    return lambda db: db.execute("INSERT OR REPLACE INTO Objects VALUES (?, ?, ?)", row)


def remove(number: int) -> Change:
    """Return the change that removes a row."""
    return lambda db: db.execute("DELETE FROM Objects WHERE id = ?", (number,))


def nothing(_: sqlite3.Connection) -> None:
    """Change only the count of transactions."""


def fill(rows: list[tuple[int, str, int]]) -> Change:
    """Return the change that adds all ``rows``."""
    return lambda db: db.executemany("INSERT OR REPLACE INTO Objects VALUES (?, ?, ?)", rows)


def drop_all(db: sqlite3.Connection) -> None:
    """Drop the tables, as before all steps are written anew."""
    for table in ("Objects", "Properties"):
        db.execute(f"DROP TABLE IF EXISTS {table}")


def read_rows(path: Path) -> list[tuple[int, str, int]]:
    """Return the rows of a living database."""
    with closing(connect(path)) as db:
        return list(db.execute("SELECT id, path, generation FROM Objects"))


def read(path: Path) -> State:
    """Read a database that nobody writes; raises AssertionError where it is damaged."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        answer = db.execute("PRAGMA integrity_check").fetchone()
        assert answer == ("ok",), f"{path}: {answer}"
        life = int(db.execute("PRAGMA application_id").fetchone()[0])
        counted = int(db.execute("PRAGMA user_version").fetchone()[0])
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'Objects'").fetchone():
            return State((life, counted), [], None)
        rows = db.execute("SELECT id, path, generation FROM Objects").fetchall()
        found = db.execute("SELECT value FROM Properties WHERE key = '_size'").fetchone()
        return State((life, counted), rows, found[0] if found else None)


def count_in_header(path: Path) -> tuple[int, int]:
    """Return (life, transactions) by the header alone: opens nothing, disturbs no lock."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100:
        return 0, 0
    counted, life = struct.unpack(">8xI4xI", header[52:72])
    return life, counted
