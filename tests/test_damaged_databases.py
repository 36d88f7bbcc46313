"""A database that was damaged in OneData is not taken for good before somebody wrote to it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.node import Node

MODES = pytest.mark.parametrize("mode", ["DELETE", "WAL"])
WORD = b"GOODVALUE"


def read(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (500,)


def lock_and_let_go(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE t SET v = 'other' WHERE id = 3")
        db.execute("ROLLBACK")


def open_to_write(path: Path) -> None:
    path.open("r+b").close()


def kinds(node: Node) -> list[tuple[str, str]]:
    return [(problem["path"], problem["kind"]) for problem in node.status()["problems"]]


SPILLS = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("UPDATE t SET v = replace(v, 'G', 'g')")
if sys.argv[2] == "dies":
    os.kill(os.getpid(), 9)
db.execute("ROLLBACK")
"""

DAMAGED = [("set.sqlite", "changed_outside")]


@pytest.fixture
def two(nodes: list[Node], mode: str) -> Node:
    """A node that has staged in a database with zeros in it."""
    one, two = nodes
    one.deploy()
    with closing(sqlite3.connect(one.work / "set.sqlite", isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, 5 * WORD.decode()) for i in range(500)])
        db.execute("COMMIT")
    assert one.end() == 0, one.log()
    stored = two.store / "set.sqlite"
    content = stored.read_bytes()
    place = content.index(WORD, 8000)
    stored.write_bytes(content[:place] + bytes(len(WORD)) + content[place + len(WORD) :])
    two.configure(verify__content="none")
    two.deploy()
    assert kinds(two) == DAMAGED
    return two


@MODES
@pytest.mark.parametrize("touch", [read, lock_and_let_go, open_to_write])
def test_it_stays_reported_however_often_it_is_opened(
    nodes: list[Node], two: Node, touch: Callable[[Path], None]
) -> None:
    stored = (two.store / "set.sqlite").stat()
    for _ in range(2):
        touch(two.work / "set.sqlite")
        assert two.flush() == 3
        assert kinds(two) == DAMAGED
    now = (two.store / "set.sqlite").stat()
    assert (now.st_ino, now.st_mtime_ns) == (stored.st_ino, stored.st_mtime_ns), "nothing was sent"
    verified = two.command("verify", "--content")
    assert verified.returncode != 0
    assert "set.sqlite" in verified.stdout
    assert two.end() == 0, two.log()
    three = nodes[0]
    three.deploy()
    assert kinds(three) == DAMAGED
    assert three.end() == 0, three.log()


@pytest.mark.parametrize("mode", ["DELETE"])
@pytest.mark.parametrize("how", ["rolls back", "dies"])
def test_what_was_written_and_not_committed_makes_it_no_better(two: Node, how: str) -> None:
    path = two.work / "set.sqlite"
    before, stored = path.stat(), (two.store / path.name).stat()
    subprocess.run([sys.executable, "-c", SPILLS, str(path), how], check=False)
    assert path.stat().st_mtime_ns != before.st_mtime_ns
    for _ in range(2):
        assert two.flush() == 3
        assert kinds(two) == DAMAGED
    now = (two.store / path.name).stat()
    assert (now.st_ino, now.st_mtime_ns) == (stored.st_ino, stored.st_mtime_ns), "nothing was sent"
    assert two.end() == 0, two.log()


@MODES
def test_scrub_does_not_send_it_as_good(two: Node) -> None:
    done = two.command("scrub")
    assert done.returncode == 3
    assert "has no good one" in done.stderr
    assert kinds(two) == DAMAGED
    assert two.command("verify", "--content").returncode != 0
    assert two.end() == 0, two.log()


@MODES
def test_what_somebody_commits_to_it_is_the_new_version(two: Node) -> None:
    with closing(sqlite3.connect(two.work / "set.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE t SET v = 'mended'")
    assert two.flush() == 0, two.log()
    assert kinds(two) == []
    assert "replica" not in two.command("verify", "--content").stdout
    with closing(
        sqlite3.connect(f"file:{two.store}/set.sqlite?mode=ro&immutable=1", uri=True)
    ) as db:
        assert db.execute("SELECT count(*) FROM t WHERE v = 'mended'").fetchone() == (500,)
    assert two.end() == 0, two.log()


@MODES
def test_a_commit_that_is_still_in_the_log_is_one(two: Node) -> None:
    with closing(sqlite3.connect(two.work / "set.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE t SET v = 'mended'")
        assert two.flush() == 0, two.log()
        assert kinds(two) == []
    assert two.command("scrub").returncode == 0
    assert two.end() == 0, two.log()


@MODES
def test_a_lost_index_makes_it_no_better(two: Node) -> None:
    stored = (two.store / "set.sqlite").stat()
    two.end(signal.SIGKILL)
    for part in (two.home / "state").glob("index.sqlite*"):
        part.unlink()
    two.deploy()
    assert two.flush() == 3
    assert kinds(two) == DAMAGED
    now = (two.store / "set.sqlite").stat()
    assert (now.st_ino, now.st_mtime_ns) == (stored.st_ino, stored.st_mtime_ns), "nothing was sent"
    assert two.end() == 0, two.log()
