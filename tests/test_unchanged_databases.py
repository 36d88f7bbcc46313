"""What a database costs that nobody changed, on the FUSE stand-in."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.node import SOON, Node
from tests.standin.mounted import Mounted
from tests.test_databases import make

pytestmark = pytest.mark.fuse


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


def lock_and_let_go(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")


def look_into(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("SELECT count(*) FROM Steps").fetchone()


def open_to_write(path: Path) -> None:
    path.open("r+b").close()


def date(path: Path) -> None:
    os.utime(path)


def empty_log(path: Path) -> None:
    """Bring all into the file: who looked at it meanwhile keeps its writer from doing so."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def roll_back_what_was_written(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        db.execute("UPDATE Steps SET id = id + 1000000")
        db.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("touch", "mode"),
    [
        (lock_and_let_go, "DELETE"),
        (look_into, "DELETE"),
        (open_to_write, "DELETE"),
        (date, "DELETE"),
        (roll_back_what_was_written, "DELETE"),
        (lock_and_let_go, "WAL"),
        (look_into, "WAL"),
        (date, "WAL"),
    ],
)
def test_a_database_that_nobody_changed_is_not_sent(
    nodes: list[Node], mounted: Mounted, touch: Callable[[Path], None], mode: str
) -> None:
    node = nodes[0]
    node.configure(mount__require_fuse=True)
    node.deploy()
    path, spool = node.work / "run.db", node.home / "state" / "spool"
    make(path, 50_000, mode)
    if mode == "WAL":
        empty_log(path)
    assert node.flush() == 0, node.log()
    assert path.stat().st_size > 400_000
    before = spool.stat().st_mtime_ns
    mounted.reset()
    touch(path)
    # Told after it, so it is taken with it.
    (node.work / "later.sqlite").write_bytes(b"later")
    deadline = time.monotonic() + SOON
    while not (mounted.backing / "project" / "later.sqlite").exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)
    assert node.flush() == 0, node.log()
    assert mounted.counts()["bytes_written"] < 20_000
    if mode == "DELETE" and touch in (lock_and_let_go, look_into, open_to_write):
        assert spool.stat().st_mtime_ns == before, "it was not even copied here"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Steps SET id = -1 WHERE id = 7")
    assert node.flush() == 0, node.log()
    with closing(sqlite3.connect(mounted.backing / "project" / "run.db")) as db:
        assert db.execute("SELECT min(id), count(*) FROM Steps").fetchone() == (-1, 50_000)
