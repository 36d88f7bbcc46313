"""Journals and logs that a deployment leaves beside its databases, met by the next start here."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.node import Node

MODES = pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
GROWS = pytest.mark.parametrize("grows", [False, True], ids=["changes", "grows"])

DIES = """
import os, sqlite3, sys
path, mode, statement = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("UPDATE t SET v = 'committed' WHERE id = 1")
db.execute("PRAGMA cache_size=1")
db.execute("BEGIN")
db.execute(statement)
os.kill(os.getpid(), 9)
"""
OVERWRITES = "UPDATE t SET v = replace(v, 'v', 'x')"
INSERTS = "INSERT INTO t SELECT id + 10000, v FROM t"


def make(path: Path, mode: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, "v" * 50) for i in range(2000)])
        db.execute("COMMIT")


def die_writing(path: Path, mode: str, *, grows: bool) -> None:
    """Commit once, and be killed in the transaction after it."""
    words = [sys.executable, "-c", DIES, str(path), mode, INSERTS if grows else OVERWRITES]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert any(side.stat().st_size for side in sidecars(path)), "its journal or log is left"


def left_by_a_killed_writer(node: Node, mode: str) -> Path:
    """Deploy, push a database, and let its next writer be killed; returns where it is."""
    node.deploy()
    path = node.work / "project.sqlite"
    make(path, mode)
    assert node.flush() == 0
    die_writing(path, mode, grows=False)
    return path


def sidecars(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}-*"))


def look(path: Path, *, alone: bool = False) -> tuple[object, ...]:
    """Return what a program finds in a database; ``alone`` without what lies beside it."""
    uri = f"file:{path}" + ("?mode=ro&immutable=1" if alone else "")
    with closing(sqlite3.connect(uri, uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        query = "SELECT count(*), sum(v LIKE 'x%'), sum(v = 'committed') FROM t"
        found: tuple[object, ...] = db.execute(query).fetchone()
        return found


GOOD = (2000, 0, 1)


@MODES
@GROWS
def test_a_start_after_a_stop_goes_on_with_what_a_dead_writer_left(
    nodes: list[Node], mode: str, grows: bool
) -> None:
    one, two = nodes
    one.deploy()
    path = one.work / "project.sqlite"
    make(path, mode)
    assert one.flush() == 0
    die_writing(path, mode, grows=grows)
    assert one.end() == 0, one.log()
    assert look(one.store / path.name, alone=True) == GOOD
    one.deploy()
    assert one.status()["problems"] == []
    assert one.flush() == 0
    assert look(one.store / path.name, alone=True) == GOOD
    assert look(path) == GOOD
    assert one.end() == 0, one.log()
    two.deploy()
    assert look(two.work / path.name) == GOOD
    assert two.end() == 0, two.log()


@MODES
def test_cleaning_takes_what_a_dead_writer_left(nodes: list[Node], mode: str) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    path = one.work / "project.sqlite"
    make(path, mode)
    assert one.flush() == 0
    die_writing(path, mode, grows=True)
    assert one.end() == 0, one.log()
    assert os.listdir(one.work) == []
    one.deploy()
    assert look(path) == GOOD
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("how", ["handover", "killed"])
def test_a_resumed_deployment_goes_on_with_it_too(nodes: list[Node], mode: str, how: str) -> None:
    one, _ = nodes
    path = left_by_a_killed_writer(one, mode)
    if how == "handover":
        assert one.command("handover").returncode == 0, one.log()
        assert one.wait() == 0
    else:
        one.end(signal.SIGKILL)
    one.deploy()
    assert one.flush() == 0, one.log()
    assert look(one.store / path.name, alone=True) == GOOD
    assert look(path) == GOOD
    assert one.end() == 0, one.log()


@MODES
def test_another_nodes_version_is_never_beside_the_journal_of_ours(
    nodes: list[Node], mode: str
) -> None:
    one, two = nodes
    path = left_by_a_killed_writer(one, mode)
    assert one.end() == 0, one.log()
    two.deploy()
    with closing(sqlite3.connect(two.work / path.name, isolation_level=None)) as db:
        db.execute("UPDATE t SET v = 'committed'")
    assert two.end() == 0, two.log()
    one.deploy()
    assert sidecars(path) == []
    assert look(path) == (2000, 0, 2000)
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_without_its_journal_a_database_is_not_taken_for_the_one_in_onedata(
    nodes: list[Node], mode: str
) -> None:
    one, _ = nodes
    path = left_by_a_killed_writer(one, mode)
    assert one.end() == 0, one.log()
    for side in sidecars(path):
        side.rename(one.home / side.name)
    one.deploy()
    assert look(path, alone=True) == GOOD
    assert one.status()["problems"] == []
    assert one.flush() == 0
    assert look(one.store / path.name, alone=True) == GOOD
    assert one.end() == 0, one.log()


def test_what_a_living_writer_commits_later_is_kept_and_named_with_its_log(
    nodes: list[Node],
) -> None:
    one, _ = nodes
    one.deploy()
    path = one.work / "project.sqlite"
    make(path, "WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE t SET v = 'committed' WHERE id = 1")
        assert one.end() == 0, one.log()
        one.deploy()
        db.execute("UPDATE t SET v = 'committed' WHERE id < 5")
        assert one.flush() == 0
        assert look(one.store / path.name, alone=True) == (2000, 0, 5), "it has the same file open"
        assert one.end() == 0, one.log()
        db.execute("UPDATE t SET v = 'committed' WHERE id < 7")
        assert one.refusal() == 13
        assert "project.sqlite, project.sqlite-shm, project.sqlite-wal" in one.log()
    assert look(path) == (2000, 0, 7)


COMMITS_LATE = """
import sqlite3
from onesync import working_copy
clean, held = working_copy.clean, []

def commit_first(root, *others):
    db = sqlite3.connect(root + b"/project.sqlite", isolation_level=None)
    db.execute("UPDATE t SET v = 'committed' WHERE id < 5")
    held.append(db)
    return clean(root, *others)

working_copy.clean = commit_first
"""


def test_cleaning_keeps_a_database_whose_log_has_more_than_onedata(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.start_after(COMMITS_LATE)
    one.wait_for_phase("syncing")
    path = one.work / "project.sqlite"
    make(path, "WAL")
    assert one.end() == 13
    assert "project.sqlite, project.sqlite-shm, project.sqlite-wal" in one.log()
    assert look(path) == (2000, 0, 5)


def test_a_journal_whose_database_was_moved_away_meets_no_other_version(nodes: list[Node]) -> None:
    """A stage-in died; what is beside the name of a database is not of the one that comes."""
    one, two = nodes
    one.deploy()
    make(one.work / "project.sqlite", "DELETE")
    assert one.end() == 0, one.log()
    two.start_dying("onesync.stagein", "StageIn", "_finish", 1)
    assert two.wait() == -signal.SIGKILL
    path = two.work / "project.sqlite"
    die_writing(path, "DELETE", grows=False)
    path.rename(two.home / path.name)
    assert two.refusal() == 13
    assert "project.sqlite with project.sqlite-journal stands in" in two.log()
    assert not path.exists()
    assert [side.name for side in sidecars(path)] == ["project.sqlite-journal"]
