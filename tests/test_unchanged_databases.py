"""What a database costs that nobody changed, on the FUSE stand-in."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from onesync.cut import Cut, Cuts
from onesync.errors import Exit
from onesync.snapshot import state_of
from tests.campaign.life import Life, Place
from tests.node import SOON, Node
from tests.standin.mounted import Mounted
from tests.test_databases import make


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


def sent_after(touch: Callable[[Path], None], node: Node, mounted: Mounted) -> int:
    """Touch ``run.db``, and return how many bytes a flush and the batch before it wrote."""
    mounted.reset()
    touch(node.work / "run.db")
    # Told after it, so it is taken with it.
    (node.work / "later.sqlite").write_bytes(b"later")
    deadline = time.monotonic() + SOON
    while not (mounted.backing / "project" / "later.sqlite").exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)
    assert node.flush() == 0, node.log()
    return mounted.counts()["bytes_written"]


def when_known(node: Node, path: Path, spool: Path) -> int:
    """Return the spool's date when ``path`` was copied at rest, and no copy is left.

    The first copy may have begun while it was written: nothing cheap tells the same one then.
    """
    date(path)
    assert node.flush() == 0, node.log()
    deadline = time.monotonic() + SOON
    while any(spool.glob("*.snapshot")):  # they go when the flush was answered
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return spool.stat().st_mtime_ns


@pytest.mark.fuse
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
    before = when_known(node, path, spool)
    assert sent_after(touch, node, mounted) < 20_000
    if mode == "DELETE" and touch in (lock_and_let_go, look_into, open_to_write):
        assert spool.stat().st_mtime_ns == before, "it was not even copied here"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Steps SET id = -1 WHERE id = 7")
    assert node.flush() == 0, node.log()
    with closing(sqlite3.connect(mounted.backing / "project" / "run.db")) as db:
        assert db.execute("SELECT min(id), count(*) FROM Steps").fetchone() == (-1, 50_000)


@pytest.mark.fuse
@pytest.mark.parametrize("touch", [lock_and_let_go, look_into, open_to_write, date])
def test_a_database_whose_log_nobody_wrote_is_not_even_copied(
    nodes: list[Node], mounted: Mounted, touch: Callable[[Path], None]
) -> None:
    node = nodes[0]
    node.configure(mount__require_fuse=True)
    node.deploy()
    path, spool = node.work / "run.db", node.home / "state" / "spool"
    make(path, 50_000, "WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Steps SET id = -1 WHERE id = 7")
        assert path.with_name("run.db-wal").stat().st_size > 0
        assert node.flush() == 0, node.log()
        before = when_known(node, path, spool)
        assert sent_after(touch, node, mounted) < 20_000
        if touch is not date:
            assert spool.stat().st_mtime_ns == before, "it was not even copied here"
        for number in (2, 3):  # the log is begun anew, and keeps its size
            db.execute("PRAGMA wal_checkpoint(FULL)")
            db.execute(f"UPDATE Steps SET id = {-number} WHERE id = {1 - number}")
            assert node.flush() == 0, node.log()
            with closing(sqlite3.connect(mounted.backing / "project" / "run.db")) as stored:
                found = stored.execute("SELECT min(id), count(*) FROM Steps").fetchone()
            assert found == (-number, 50_000)


def test_each_commit_into_a_log_is_told_apart_though_its_size_and_time_stand_still(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    log = path.with_name("run.db-wal")
    make(path, 10, "WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Steps SET id = id + 1")
        first = log.stat().st_mtime_ns
        states = set()
        for _ in range(5):
            db.execute("UPDATE Steps SET id = id + 1")
            db.execute("PRAGMA wal_checkpoint(RESTART)")  # the next one begins the log anew
            db.execute("UPDATE Steps SET id = id + 1")
            os.utime(log, ns=(first, first))
            state = state_of(bytes(path))
            assert state is not None
            look_into(path)
            assert state_of(bytes(path)) == state
            states.add(state)
        assert len(states) == 5


@pytest.mark.parametrize("lost", ["-shm", "half", "never made"])
def test_a_log_whose_index_tells_nothing_is_copied(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "run.db"
    index = path.with_name("run.db-shm")
    make(path, 10, "WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Steps SET id = id + 1")
        content = index.read_bytes()
        log = path.with_name("run.db-wal").read_bytes()
    path.with_name("run.db-wal").write_bytes(log)
    if lost == "half":
        index.write_bytes(content[:48] + bytes(48) + content[96:])
    elif lost == "never made":
        index.write_bytes(bytes(len(content)))
    assert state_of(bytes(path)) is None
    index.write_bytes(content)
    assert state_of(bytes(path)) is not None


def test_a_copy_of_what_proved_to_be_unchanged_does_not_stay(tmp_path: Path) -> None:
    """A log that was filled and rolled back tells nothing cheap: it is copied, and is the same."""
    (tmp_path / "store").mkdir()
    place = Place(tmp_path / "node", tmp_path / "store")
    copies: list[int] = []
    take = Cuts.take

    def counted(cuts: Cuts, *arguments: Any, **named: Any) -> Cut:
        cut = take(cuts, *arguments, **named)
        copies.append(len(cut.frozen))
        return cut

    def rolls_back(life: Life) -> None:
        copies.clear()
        roll_back_what_was_written(life.place.work / "run.db")

    readers: list[sqlite3.Connection] = []

    def begin(life: Life) -> None:
        path = life.place.work / "run.db"
        make(path, 1000, "WAL")
        readers.append(sqlite3.connect(path))  # so that the log stays
        readers[0].execute("SELECT count(*) FROM Steps").fetchone()

    with mock.patch.object(Cuts, "take", counted):
        life = Life(place, [begin, rolls_back]).live()
    readers[0].close()
    assert life.end is Exit.CLEAN, life.error
    assert any(copies), "it was copied"
    assert not any(place.state.glob("**/*.snapshot"))
