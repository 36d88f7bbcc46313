"""Whenever the node dies, what is restored is consistent: no row or marker without its file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node, picture

STATUS = os.fsdecode(STATUS_FOLDER)
RUN = Path("Runs/000123_ProtMock")

# What a streaming protocol does: a file, its marker, then the rows that promise both; and now and
# then an item is taken back: its row first, then its file.
WORKLOAD = """
import sqlite3, sys, time
from pathlib import Path
run, mode = Path(sys.argv[1]), sys.argv[2]
(run / "extra" / "DONE").mkdir(parents=True)
items = sqlite3.connect(run / "micrographs.sqlite", isolation_level=None)
project = sqlite3.connect(run.parents[1] / "project.sqlite", isolation_level=None)
for db in (items, project):
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute("CREATE TABLE Objects (id INTEGER PRIMARY KEY, path TEXT)")
number = 0
while True:
    number += 1
    path = run / "extra" / f"mic_{number}.mrc"
    with path.open("wb") as file:
        for _ in range(10):
            file.write(bytes([number % 256]) * 1000)
            file.flush()
    (run / "extra" / "DONE" / f"mic_{number}.TXT").touch()
    for db in (items, project):
        db.execute("INSERT INTO Objects VALUES (?, ?)", (number, str(path)))
    if number % 7 == 0 and number > 40:
        gone = number - 40
        for db in (project, items):
            db.execute("DELETE FROM Objects WHERE id = ?", (gone,))
        (run / "extra" / "DONE" / f"mic_{gone}.TXT").unlink()
        (run / "extra" / f"mic_{gone}.mrc").unlink()
    time.sleep(0.004)
"""


@pytest.fixture(params=["DELETE", "WAL"])
def workload(request: pytest.FixtureRequest, one: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A run in motion in node one's working copy."""
    one.deploy()
    process = subprocess.Popen([sys.executable, "-c", WORKLOAD, str(one.work / RUN), request.param])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "store").mkdir()
    # Files settle much later than databases: the cut must not depend on it.
    node = Node(tmp_path / "one", tmp_path / "store", batch__settle_seconds=1)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


def restored(tmp_path: Path, store: Path, number: int) -> Path:
    """Deploy a copy of the folder, as it is right now, on a node of its own."""
    copy = tmp_path / f"copy{number}"
    shutil.copytree(store, copy)
    (copy / STATUS / "lock").unlink()
    node = Node(tmp_path / f"restored{number}", copy)
    node.deploy()
    node.end(signal.SIGKILL)
    return node.work


def rows(path: Path) -> set[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not db.execute("SELECT * FROM sqlite_master").fetchall():
            return set()  # as it was for a moment, before its table was made
        return set(db.execute("SELECT id, path FROM Objects"))


def assert_consistent(work: Path) -> int:
    """Return how many rows there are; each has its file, whole, and each marker has one too."""
    extra = work / RUN / "extra"
    whole = {
        int(path.stem.partition("_")[2])
        for path in extra.glob("*.mrc")
        if path.stat().st_size == 10_000
    }
    items = rows(work / RUN / "micrographs.sqlite")
    assert {number for number, _ in items} <= whole
    assert {number for number, _ in rows(work / "project.sqlite")} <= whole
    assert {int(path.stem.partition("_")[2]) for path in (extra / "DONE").iterdir()} <= whole
    return len(items)


def test_a_run_in_motion_is_restored_as_it_really_was(
    tmp_path: Path, one: Node, workload: subprocess.Popen[bytes]
) -> None:
    chance = random.Random(7)
    seen: list[int] = []
    for number in range(3):
        wait_for_rows(one, more_than=max(seen, default=0))
        time.sleep(chance.uniform(0, 1.5))  # dies anywhere in a batch
        one.end(signal.SIGKILL)
        seen.append(assert_consistent(restored(tmp_path, one.store, number)))
        one.deploy()
    assert seen[-1] > seen[0] > 0, seen
    workload.kill()
    workload.wait()
    flushed = one.command("flush")
    assert flushed.returncode == 0, flushed.stderr + one.log()
    assert one.end() == 0, one.log()
    two = Node(tmp_path / "two", one.store)
    two.deploy()
    assert_consistent(two.work)
    expected, found = picture(one.work), picture(two.work)
    assert {p for p in expected if b"sqlite" not in p} == {p for p in found if b"sqlite" not in p}
    for name in ("project.sqlite", RUN / "micrographs.sqlite"):
        assert rows(two.work / name) == rows(one.work / name)
    assert two.end() == 0, two.log()


def wait_for_rows(node: Node, more_than: int) -> None:
    """Wait until the replica's set has grown, whatever a half-done batch does to it meanwhile."""
    deadline = time.monotonic() + 2 * SOON
    path = node.store / RUN / "micrographs.sqlite"
    while True:
        assert time.monotonic() < deadline, node.log()
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
                if db.execute("SELECT count(*) FROM Objects").fetchone()[0] > more_than:
                    return
        except sqlite3.Error:
            pass  # replaced while it was read
        time.sleep(0.1)
