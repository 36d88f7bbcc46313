"""SQLite databases, live and dead, in the program as a process."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.snapshot import HEADER
from tests.node import SOON, Node


@pytest.fixture
def node(nodes: list[Node]) -> Iterator[Node]:
    node = nodes[0]
    node.deploy()
    yield node
    if node.running():
        assert node.end() == 0, node.log()


def make(path: Path, rows: int, mode: str = "DELETE") -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE IF NOT EXISTS Steps (id INTEGER)")
        db.execute(
            "INSERT INTO Steps WITH RECURSIVE step(id) AS"
            " (SELECT 0 UNION ALL SELECT id + 1 FROM step WHERE id + 1 < :rows)"
            " SELECT id FROM step WHERE id < :rows",
            {"rows": rows},
        )


def count(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not db.execute("SELECT * FROM sqlite_master").fetchall():
            return 0
        found: int = db.execute("SELECT count(*) FROM Steps").fetchone()[0]
        return found


def test_a_database_that_is_rebuilt_keeps_its_last_good_version(node: Node) -> None:
    path = node.work / "steps.sqlite"
    make(path, 10)
    assert node.flush() == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM Steps")
    (node.work / "later").write_bytes(b"1")
    deadline = time.monotonic() + SOON
    while not (node.store / "later").exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    assert count(node.store / "steps.sqlite") == 10, "emptied a moment ago"
    make(path, 20)
    assert node.flush() == 0
    assert count(node.store / "steps.sqlite") == 20
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE Steps")
    assert node.flush() == 0
    assert count(node.store / "steps.sqlite") == 0, "a flush takes it as it is"


def test_a_stray_journal_in_onedata_is_removed_and_never_restored(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    make(one.work / "project.sqlite", 10)
    assert one.flush() == 0
    stray = one.store / "project.sqlite-journal"
    stray.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(100))
    make(one.work / "project.sqlite", 5)
    assert one.flush() == 0
    assert not stray.exists()
    assert one.end() == 0, one.log()
    stray.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(100))
    two.deploy()
    assert not (two.work / "project.sqlite-journal").exists()
    assert {problem["kind"] for problem in two.status()["problems"]} == {"stray_sidecar"}
    assert count(two.work / "project.sqlite") == 15
    assert two.end() == 0, two.log()


def test_a_file_that_only_looks_like_a_database_is_a_file(node: Node) -> None:
    content = HEADER + os.urandom(5000)
    (node.work / "fake.sqlite").write_bytes(content)
    assert node.flush() == 0, node.log()
    assert (node.store / "fake.sqlite").read_bytes() == content


def test_a_dead_writers_transaction_is_rolled_back_before_it_is_taken(node: Node) -> None:
    path = node.work / "project.sqlite"
    make(path, 1000)
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size=1')\n"
        "db.execute('BEGIN')\n"
        "db.execute('UPDATE Steps SET id = id + 1000000')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=False)
    assert path.with_name("project.sqlite-journal").exists(), "the journal is hot"
    assert node.flush() == 0, node.log()
    with closing(sqlite3.connect(f"file:{node.store}/project.sqlite?immutable=1", uri=True)) as db:
        assert db.execute("SELECT max(id) FROM Steps").fetchone() == (999,)
    assert not (node.store / "project.sqlite-journal").exists()


def test_what_is_only_in_the_log_is_pushed(node: Node) -> None:
    path = node.work / "set.sqlite"
    make(path, 1, "WAL")
    assert node.flush() == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO Steps VALUES (7)")
        assert node.flush() == 0
        assert count(node.store / "set.sqlite") == 2
    assert not list(node.store.glob("*-wal"))
    assert not list(node.store.glob("*-shm"))


def test_a_database_without_a_new_row_is_not_pushed_again(node: Node) -> None:
    path = node.work / "run.db"
    make(path, 10)
    assert node.flush() == 0
    inode = (node.store / "run.db").stat().st_ino
    path.write_bytes(path.read_bytes())  # a plain copy over it, as Scipion makes
    os.utime(path)
    assert node.flush() == 0
    assert (node.store / "run.db").stat().st_ino == inode
    path.unlink()
    make(path, 3)
    assert node.flush() == 0
    assert count(node.store / "run.db") == 3


def test_a_locked_database_is_said_and_pushed_when_it_is_free(node: Node) -> None:
    path = node.work / "set.sqlite"
    make(path, 1)
    assert node.flush() == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        db.execute("INSERT INTO Steps VALUES (7)")
        (node.work / "data").write_bytes(b"1")
        flushed = node.command("flush")
        assert flushed.returncode == 3
        assert "set.sqlite could not be copied" in flushed.stderr
        assert (node.store / "data").read_bytes() == b"1", "it holds back nobody's data"
        db.execute("COMMIT")
    assert node.flush() == 0, node.log()
    assert count(node.store / "set.sqlite") == 2


def test_a_lock_that_changed_nothing_is_no_problem_afterwards(node: Node) -> None:
    path = node.work / "set.sqlite"
    make(path, 1)
    assert node.flush() == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        path.chmod(0o600)
        assert node.flush() == 3
        path.chmod(0o644)
        db.execute("ROLLBACK")
    assert node.flush() == 0, node.log()
    assert node.status()["problems"] == []


def test_the_journal_of_a_database_with_any_name_stays_here(node: Node) -> None:
    path = node.work / "anything.dat"
    make(path, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO Steps VALUES (7)")
        assert (node.work / "anything.dat-journal").exists()
        deadline = time.monotonic() + SOON
        while not (node.store / "anything.dat").exists():
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.05)
        assert node.flush() == 0
        assert not (node.store / "anything.dat-journal").exists()
        db.execute("COMMIT")
    assert node.flush() == 0
    assert count(node.store / "anything.dat") == 2


DIES = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("INSERT INTO Steps VALUES (7000)")
db.execute("BEGIN")
db.execute("UPDATE Steps SET id = id + 1000000")
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_the_final_flush_takes_what_a_dead_writer_committed_and_no_more(
    nodes: list[Node], mode: str
) -> None:
    one, two = nodes
    one.deploy()
    path = one.work / "project.sqlite"
    make(path, 1000, mode)
    assert one.flush() == 0
    subprocess.run([sys.executable, "-c", DIES, path], check=False)
    sidecar = {"DELETE": "-journal", "WAL": "-wal"}[mode]
    assert path.with_name(path.name + sidecar).stat().st_size > 0
    assert one.end() == 0, one.log()
    assert [item.name for item in one.store.glob("project.sqlite*")] == [path.name]
    two.deploy()
    with closing(sqlite3.connect(two.work / "project.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*), max(id) FROM Steps").fetchone() == (1001, 7000)
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("how", ["overwritten", "recreated"])
def test_another_database_in_its_place_is_pushed(node: Node, mode: str, how: str) -> None:
    path, other = node.work / "run.db", node.home / "other.db"
    make(path, 50, mode)
    assert node.flush() == 0
    make(other, 20, mode)
    if how == "overwritten":
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
        path.write_bytes(other.read_bytes())
    assert node.flush() == 0, node.log()
    assert count(node.store / "run.db") == 20
    assert [item.name for item in node.store.glob("run.db*")] == ["run.db"]


@pytest.mark.parametrize("sidecars", [["-journal"], ["-wal", "-shm"]])
def test_a_journal_that_came_before_its_database_was_one_is_taken_back(
    nodes: list[Node], sidecars: list[str]
) -> None:
    one, two = nodes
    one.deploy()
    path, other = one.work / "project.sqlite", one.home / "other.sqlite"
    path.touch()
    for sidecar in sidecars:
        path.with_name(path.name + sidecar).write_bytes(bytes(512))
    assert one.flush() == 0
    assert len(list(one.store.glob("project.sqlite-*"))) == len(sidecars), "nothing tells of it"
    make(other, 10)
    path.write_bytes(other.read_bytes())
    assert one.flush() == 0, one.log()
    assert [item.name for item in one.store.glob("project.sqlite*")] == [path.name]
    assert one.end() == 0, one.log()
    two.deploy()
    assert two.status()["problems"] == [], "no checkpoint has the journal"
    assert count(two.work / "project.sqlite") == 10
    assert two.end() == 0, two.log()
