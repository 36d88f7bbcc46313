"""How a database's bytes are copied while its writers wait."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from onesync import snapshot
from onesync.snapshot import Snapshots
from tests.btrfs import btrfs
from tests.test_databases import count, make


@pytest.fixture
def reflinks(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can share content."""
    with btrfs(tmp_path) as made:
        yield made.path


def taken(source: Path, target: Path) -> snapshot.Taken:
    snapshots = Snapshots()
    with closing(snapshots):
        [found] = snapshots.take([(bytes(source), bytes(target))], 60)
    return found


def used(path: Path) -> int:
    os.sync()
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_snapshot_shares_its_content_where_the_file_system_can(reflinks: Path) -> None:
    source, target = reflinks / "run.db", reflinks / "snapshot"
    make(source, 2_000_000)
    size = source.stat().st_size
    assert size > 20_000_000
    before = used(reflinks)
    assert taken(source, target).taken
    assert used(reflinks) - before < size / 10
    old = target.read_bytes()
    assert old == source.read_bytes()
    make(source, 1000)
    assert target.read_bytes() == old, "what is written later is in the source alone"
    assert count(target) == 2_000_000


def test_a_snapshot_on_another_file_system_is_copied(reflinks: Path, tmp_path: Path) -> None:
    source, target = reflinks / "run.db", tmp_path / "snapshot"
    make(source, 100_000)
    assert taken(source, target).taken
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "number",
    [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ETXTBSY, errno.EPERM],
)
def test_what_cannot_be_shared_is_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    asked: list[int] = []

    def refuse(fd: int, request: int, source: int) -> int:
        asked.append(request)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("onesync.snapshot.fcntl.ioctl", refuse)
    source, target = tmp_path / "run.db", tmp_path / "snapshot"
    make(source, 100_000)
    found = snapshot._take_one(bytes(source), bytes(target))
    assert asked == [0x40049409]
    assert found.taken
    assert target.read_bytes() == source.read_bytes()


def longest_commit(path: Path, target: Path) -> float:
    """Commit until a snapshot is taken; return how many seconds the slowest one took."""
    longest = 0.0
    with (
        ThreadPoolExecutor(1) as pool,
        closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db,
    ):
        db.execute("PRAGMA synchronous = OFF")  # it is to wait for the lock, not for the disk
        found = pool.submit(taken, path, target)
        while not found.done():
            began = time.monotonic()
            db.execute("INSERT INTO Steps VALUES (7)")
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.005)
        assert found.result().taken, found.result().reason
    return longest


def test_a_writer_waits_no_longer_than_five_seconds_for_a_gigabyte(tmp_path: Path) -> None:
    path, target = tmp_path / "particles.sqlite", tmp_path / "snapshot"
    make(path, 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE Large (content BLOB)")
        for _ in range(20):
            db.execute("INSERT INTO Large VALUES (randomblob(10000000))")
    assert path.stat().st_size > 200_000_000
    assert longest_commit(path, target) <= 1.0
    assert count(target) >= 10


COMMITS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("INSERT INTO Steps VALUES (7)")
if sys.argv[2] == "checkpoints":
    db.execute("PRAGMA wal_checkpoint(FULL)")
print(flush=True)
if sys.argv[2] != "closes":
    sys.stdin.read()
db.close()
"""


@pytest.mark.parametrize("how", ["closes", "checkpoints", "stays"])
def test_who_opens_a_closed_database_while_it_is_copied_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    source, target = tmp_path / "set.sqlite", tmp_path / "snapshot"
    make(source, 1, "WAL")
    copy_bytes = snapshot._copy_bytes
    writers: list[subprocess.Popen[bytes]] = []

    def opened_meanwhile(fd: int, copied: bytes) -> None:
        copy_bytes(fd, copied)
        if not writers:
            command = [sys.executable, "-c", COMMITS, str(source), how]
            writers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert writers[0].stdout is not None
            assert writers[0].stdout.readline()
            if how == "closes":
                writers[0].wait()

    monkeypatch.setattr(snapshot, "_copy_bytes", opened_meanwhile)
    found = snapshot._take_one(bytes(source), bytes(target))
    assert found.taken, found.reason
    assert count(target) == 2, "its commit was there before the snapshot was"
    writers[0].communicate()
    with closing(sqlite3.connect(source)) as db:  # its log may be left: we had it open as well
        assert db.execute("SELECT count(*) FROM Steps").fetchone() == (2,)


def test_a_closed_database_is_waited_for_when_it_is_locked(tmp_path: Path) -> None:
    source, target = tmp_path / "set.sqlite", tmp_path / "snapshot"
    make(source, 1, "WAL")
    with closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("INSERT INTO Steps VALUES (7)")
        found = taken(source, target)
        assert (found.taken, found.is_database) == (False, True)
    assert taken(source, target).taken
    assert count(target) == 2
