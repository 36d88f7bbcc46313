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

from onesync.core.model import STATUS_FOLDER
from onesync.snapshot import HEADER
from tests.node import SOON, Node

SCHEMA_FORMAT = slice(44, 48)
STRAY = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
"""How a journal begins."""


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
    stray.write_bytes(STRAY + bytes(100))
    make(one.work / "project.sqlite", 5)
    assert one.flush() == 0
    assert not stray.exists()
    assert one.end() == 0, one.log()
    stray.write_bytes(STRAY + bytes(100))
    two.deploy()
    assert not (two.work / "project.sqlite-journal").exists()
    assert {problem["kind"] for problem in two.status()["problems"]} == {"stray_sidecar"}
    assert count(two.work / "project.sqlite") == 15
    assert two.end() == 0, two.log()


def test_a_stray_journal_beside_an_unchanged_database_is_kept_elsewhere(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    make(one.work / "run.db", 10)
    (one.work / "lab").mkdir()
    assert one.end() == 0, one.log()
    stray, content = one.store / "run.db-journal", STRAY + bytes(100)
    stray.write_bytes(content)
    (one.store / "lab-journal").write_bytes(content)
    (one.store / "run.db-wal").mkdir()
    (one.store / "run.db-wal" / "file").touch()
    two.deploy()
    assert not stray.exists()
    [kept] = (one.store / STATUS_FOLDER.decode() / "torn").iterdir()
    assert kept.read_bytes() == content
    told = {problem["path"]: problem["text"] for problem in two.status()["problems"]}
    assert told.keys() == {"lab-journal", "run.db-journal", "run.db-wal"}
    assert str(kept.relative_to(one.store)) in told["run.db-journal"]
    assert (one.store / "lab-journal").exists(), "lab is no database"
    assert (one.store / "run.db-wal" / "file").exists(), "no journal is a directory"
    assert {path.name for path in two.work.iterdir()} == {"lab", "run.db"}
    assert two.end() == 0, two.log()
    three = Node(one.home.with_name("three"), one.store)
    three.deploy()
    still = {problem["path"] for problem in three.status()["problems"]}
    assert still == {"lab-journal", "run.db-wal"}
    assert three.end() == 0, three.log()


def test_a_file_that_only_looks_like_a_database_is_a_file(node: Node) -> None:
    content = HEADER + os.urandom(5000)
    (node.work / "fake.sqlite").write_bytes(content)
    assert node.flush() == 0, node.log()
    assert (node.store / "fake.sqlite").read_bytes() == content


def test_one_of_a_format_that_is_newer_than_ours_is_pushed_as_it_is(node: Node) -> None:
    made, path = node.home / "made.sqlite", node.work / "newer.sqlite"
    make(made, 10)
    content = bytearray(made.read_bytes())
    content[SCHEMA_FORMAT] = (5).to_bytes(4, "big")
    path.write_bytes(content)
    assert node.flush() == 0, node.log()
    assert (node.store / path.name).read_bytes() == content
    assert node.status()["problems"] == []


WRITES_WHAT_WE_CANNOT_PARSE = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"PRAGMA journal_mode={sys.argv[2]}")
db.execute("CREATE TABLE Steps (id INTEGER)")
db.execute("CREATE VIEW newer AS SELECT 1000")
db.execute("PRAGMA writable_schema=ON")
db.execute("UPDATE sqlite_master SET sql = 'CREATE VIEW newer AS SELECT 1_o' WHERE type = 'view'")
db.execute("PRAGMA writable_schema=OFF")
while True:
    db.execute("INSERT INTO Steps VALUES (7)")
    print(flush=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_live_one_whose_schema_we_cannot_parse_is_snapshotted(node: Node, mode: str) -> None:
    path = node.work / "newer.sqlite"
    command = [sys.executable, "-c", WRITES_WHAT_WE_CANNOT_PARSE, str(path), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            assert node.flush() == 0, node.log()
        finally:
            writer.kill()
    assert node.status()["problems"] == []
    stored = node.store / path.name
    assert [item.name for item in node.store.glob("newer.sqlite*")] == [path.name]
    with closing(sqlite3.connect(f"file:{stored}?mode=ro&immutable=1", uri=True)) as db:
        db.execute("PRAGMA writable_schema=ON")
        assert db.execute("SELECT count(*) FROM Steps").fetchone()[0] > 0
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


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
    with closing(
        sqlite3.connect(f"file:{node.store}/project.sqlite?mode=ro&immutable=1", uri=True)
    ) as db:
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


def test_one_that_was_closed_is_pushed_without_anything_made_beside_it(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    folder = one.work / "set"
    folder.mkdir()
    make(folder / "set.sqlite", 5, "WAL")
    os.utime(folder, ns=(1, 10**18 + 7))
    for _ in range(2):
        assert one.flush() == 0, one.log()
        assert [item.name for item in folder.iterdir()] == ["set.sqlite"]
        os.utime(folder / "set.sqlite")
    assert folder.stat().st_mtime_ns == 10**18 + 7
    assert one.end() == 0, one.log()
    assert count(one.store / "set" / "set.sqlite") == 5
    two.deploy()
    assert (two.work / "set").stat().st_mtime_ns == 10**18 + 7
    assert two.end() == 0, two.log()


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


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_one_that_goes_while_it_is_locked_is_no_problem_afterwards(node: Node, how: str) -> None:
    made, path = node.home / "made.sqlite", node.work / "new.sqlite"
    make(made, 1)
    with closing(sqlite3.connect(made, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        made.rename(path)
        assert node.flush() == 3
        assert [problem["kind"] for problem in node.status()["problems"]] == ["database_busy"]
        if how == "deleted":
            path.unlink()
        else:
            path.rename(node.work / "renamed.sqlite")
    assert node.flush() == 0, node.log()
    assert node.status()["problems"] == []
    assert (node.store / "renamed.sqlite").exists() == (how == "renamed")


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_databases_that_live_for_moments_leave_no_problem(node: Node, mode: str) -> None:
    path = node.work / "moment.sqlite"
    for number in range(20):
        make(path, 1, mode)
        time.sleep(number % 10 * 0.01)  # so that it goes at any moment of a cut
        path.unlink()
    assert node.flush() == 0, node.log()
    assert node.status()["problems"] == []
    # A log stays here where a snapshot had the database open when it was closed.
    assert not (node.store / path.name).exists()


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
