"""A disk of the node does not give the content of one file any more: btrfs with a bad block."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.model import Kind, Stamp
from onesync.core.plan import Difference
from onesync.errors import LocalError
from onesync.push import _became_database
from onesync.replica.folder import FolderReplica
from onesync.transfer import Source
from tests.btrfs import Btrfs, btrfs
from tests.node import Node
from tests.test_snapshot import taken

MARKER = os.urandom(16)
CONTENT = {
    "first block": MARKER + bytes(100_000),
    "a later block": bytes(60_000) + MARKER + bytes(40_000),
    "a later block of a large file": os.urandom(20 << 20) + MARKER + bytes(40_000),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Btrfs]:
    with btrfs(tmp_path) as made:
        yield made


@pytest.fixture
def node(disk: Btrfs, store: Path) -> Iterator[Node]:
    """A node whose working directory lies on a disk that can be spoilt."""
    node = Node(disk.path / "node", store, batch__settle_seconds=0.1)
    node.deploy()
    yield node
    if node.running():
        node.end(9)


def _is_bad(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno == errno.EIO
    return False


def _only_this_is_left(node: Node, name: str) -> None:
    """A flush tells of one file; all else comes, and is looked after as ever."""
    (node.work / "other").write_bytes(os.urandom(10))
    flushed = node.command("flush")
    assert flushed.returncode == 3, flushed.stderr
    assert (node.store / "other").read_bytes() == (node.work / "other").read_bytes(), flushed.stderr
    assert f"{name}: The disk does not give the content" in flushed.stderr
    assert len(flushed.stderr.splitlines()) == 1, flushed.stderr


@pytest.mark.parametrize("content", CONTENT.values(), ids=list(CONTENT))
def test_a_new_file_whose_content_is_lost_holds_up_nothing_else(
    node: Node, disk: Btrfs, content: bytes
) -> None:
    node.pause()
    (node.work / "bad").write_bytes(content)
    disk.spoil(node.work / "bad", MARKER)
    assert _is_bad(node.work / "bad")
    node.go_on()
    _only_this_is_left(node, "bad")
    assert not (node.store / "bad").exists(), "nothing torn is published"
    (node.work / "bad").write_bytes(b"mended")
    assert node.flush() == 0, node.log()
    assert (node.store / "bad").read_bytes() == b"mended"
    assert node.end() == 0, node.log()


@pytest.mark.parametrize("content", CONTENT.values(), ids=list(CONTENT))
def test_of_a_file_that_is_lost_here_the_good_version_stays(
    node: Node, disk: Btrfs, content: bytes
) -> None:
    (node.work / "bad").write_bytes(content)
    assert node.flush() == 0, node.log()
    disk.spoil(node.work / "bad", MARKER)
    (node.work / "bad").chmod(0o600)
    _only_this_is_left(node, "bad")
    assert (node.store / "bad").read_bytes() == content
    (node.work / "bad").unlink()
    assert node.flush() == 0, node.log()
    assert not (node.store / "bad").exists()
    assert node.end() == 0, node.log()


def test_one_that_was_written_without_a_new_time_is_not_passed_over(
    node: Node, disk: Btrfs
) -> None:
    """Whether it is what was pushed nobody can read."""
    path, content = node.work / "bad", CONTENT["first block"]
    path.write_bytes(content)
    assert node.flush() == 0, node.log()
    disk.spoil(path, MARKER)
    with path.open("r+b"):
        pass  # closed after writing, which the kernel tells
    _only_this_is_left(node, "bad")
    assert (node.store / "bad").read_bytes() == content


def test_its_run_gets_no_new_marker(node: Node, disk: Btrfs) -> None:
    run = node.work / "Runs" / "000001_Import"
    (run / "extra" / "DONE").mkdir(parents=True)
    assert node.flush() == 0, node.log()
    node.pause()
    (run / "extra" / "stack.mrcs").write_bytes(CONTENT["a later block"])
    (run / "extra" / "DONE" / "1").write_bytes(b"1")
    disk.spoil(run / "extra" / "stack.mrcs", MARKER)
    node.go_on()
    assert node.command("flush").returncode == 3
    assert not (node.store / "Runs" / "000001_Import" / "extra" / "DONE" / "1").exists()
    (run / "extra" / "stack.mrcs").write_bytes(b"mended")
    assert node.flush() == 0, node.log()
    assert (node.store / "Runs" / "000001_Import" / "extra" / "DONE" / "1").exists()


def test_nothing_stays_of_what_was_appended_where_the_rest_is_lost(
    disk: Btrfs, store: Path
) -> None:
    """Nobody settles that batch: it goes on with everything else."""
    begun, path = os.urandom(3 << 20), disk.path / "stack"
    (store / "stack").write_bytes(begun)
    path.write_bytes(begun + os.urandom(8 << 20) + MARKER + bytes(40_000))
    disk.spoil(path, MARKER)
    replica = FolderReplica(os.fsencode(store))
    with pytest.raises(LocalError):
        replica.append(os.fsencode(path), b"stack", len(begun), blake3(begun).hexdigest())
    assert (store / "stack").read_bytes() == begun


@pytest.mark.parametrize("first", [True, False])
def test_what_the_disk_does_not_give_is_no_word_on_the_database(disk: Btrfs, first: bool) -> None:
    source = disk.path / "run.db"
    make_database(source, MARKER if first else IN_A_LATER_PAGE)
    disk.spoil(source, MARKER)
    found = taken(source, disk.path / "snapshot")
    if found.taken:  # sharing the lost content, which whoever digests it finds out
        assert _is_bad(disk.path / "snapshot")
    else:
        assert (found.is_database, found.lost) == (True, errno.EIO)


@pytest.mark.parametrize("size", [3 << 20, 40 << 20])
def test_what_a_file_grew_by_comes_whole_or_not_at_all(node: Node, disk: Btrfs, size: int) -> None:
    """Half of it would stand in OneData beyond what the manifest tells of."""
    path, content = node.work / "stack", os.urandom(size)
    path.write_bytes(content)
    assert node.flush() == 0, node.log()
    node.pause()
    with path.open("ab") as file:
        file.write(os.urandom(2 << 20) + MARKER + bytes(40_000))
    disk.spoil(path, MARKER)
    node.go_on()
    _only_this_is_left(node, "stack")
    assert (node.store / "stack").read_bytes() == content
    path.write_bytes(b"mended")
    assert node.flush() == 0, node.log()
    assert (node.store / "stack").read_bytes() == b"mended"
    assert node.end() == 0, node.log()


def test_of_a_copy_that_travels_what_came_stays(node: Node, disk: Btrfs) -> None:
    path = node.work / "stack"
    node.configure(batch__settle_seconds=0.1, push__bandwidth_limit="4M", push__round_seconds=0.5)
    assert node.end() == 0, node.log()
    node.deploy()
    node.pause()
    path.write_bytes(os.urandom(6 << 20) + MARKER + bytes(40_000))
    disk.spoil(path, MARKER)
    node.go_on()
    _only_this_is_left(node, "stack")
    there = node.store / "stack"
    assert not there.exists() or path.stat().st_size > there.stat().st_size
    checked = node.command("verify", "--content")
    assert all(line.startswith("working copy: ") for line in checked.stdout.splitlines())
    path.unlink()
    assert node.flush() == 0, node.log()
    assert names(node.store) == {"other"}
    assert node.end() == 0, node.log()


def names(store: Path) -> set[str]:
    return {name for name in os.listdir(store) if not name.startswith(".deployment_status")}


def make_database(path: Path, *values: bytes) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS t (x)")
        database.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
        database.commit()


IN_A_LATER_PAGE = bytes(100_000) + MARKER + bytes(50_000)


@pytest.mark.parametrize("value", [MARKER, IN_A_LATER_PAGE], ids=["first", "later"])
def test_a_new_database_whose_content_is_lost_is_no_plain_file(
    node: Node, disk: Btrfs, value: bytes
) -> None:
    """SQLite calls what the disk does not give malformed."""
    node.pause()
    make_database(node.work / "run.db", value)
    disk.spoil(node.work / "run.db", MARKER)
    node.go_on()
    _only_this_is_left(node, "run.db")
    assert names(node.store) == {"other"}
    assert node.end() == 0, node.log()


def test_where_its_header_is_lost_its_journal_does_not_come_either(node: Node, disk: Btrfs) -> None:
    """It would undo, in OneData, what the good version has."""
    path = node.work / "run.db"
    make_database(path, b"1")
    assert node.flush() == 0, node.log()
    before = (node.store / "run.db").read_bytes()
    node.end(9)  # the next one does not know that it is a database
    with path.open("r+b") as file:
        file.seek(200)
        file.write(MARKER)
    disk.spoil(path, MARKER)
    for name in ("run.db-journal", "run.db-wal"):
        (node.work / name).write_bytes(b"anything")
    node.deploy()
    _only_this_is_left(node, "run.db")
    assert names(node.store) == {"other", "run.db"}
    (node.work / "run.db-journal").write_bytes(b"anything else")
    _only_this_is_left(node, "run.db")
    assert names(node.store) == {"other", "run.db"}
    assert (node.store / "run.db").read_bytes() == before


def test_a_database_whose_content_is_lost_holds_up_nothing_else(node: Node, disk: Btrfs) -> None:
    path = node.work / "run.db"
    make_database(path, IN_A_LATER_PAGE)
    assert node.flush() == 0, node.log()
    before = (node.store / "run.db").read_bytes()
    node.pause()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
        database.commit()
    disk.spoil(path, MARKER)
    node.go_on()
    (node.work / "other").write_bytes(b"1")
    flushed = node.command("flush")
    assert flushed.returncode == 3, flushed.stderr
    assert "run.db: The disk does not give the content" in flushed.stderr
    assert (node.store / "other").read_bytes() == b"1"
    assert (node.store / "run.db").read_bytes() == before
    assert node.end() == 0, node.log()


def test_a_log_beside_a_lost_header_is_told_of(node: Node, disk: Btrfs) -> None:
    """The file itself is as it was pushed: only its log is new, and nobody has it but this node."""
    path = node.work / "run.db"
    make_database(path, MARKER)
    assert node.flush() == 0, node.log()
    node.end(9)
    with path.open("rb") as file:
        header = file.read(100)
    disk.spoil(path, header)
    (node.work / "run.db-wal").write_bytes(b"anything")
    node.deploy()
    _only_this_is_left(node, "run.db")
    assert names(node.store) == {"other", "run.db"}


def test_a_lost_log_lets_a_stop_end(node: Node, disk: Btrfs) -> None:
    path = node.work / "run.db"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (x)")
        writer.commit()
        assert node.flush() == 0, node.log()
        node.pause()
        writer.execute("INSERT INTO t VALUES (?)", (IN_A_LATER_PAGE,))
        writer.commit()
        disk.spoil(node.work / "run.db-wal", MARKER)
        node.go_on()
        _only_this_is_left(node, "run.db")
        assert node.end() == 0, node.log()


def test_what_can_be_read_again_is_no_problem_any_more(node: Node, disk: Btrfs) -> None:
    path = node.work / "run.db"
    make_database(path, IN_A_LATER_PAGE)
    assert node.flush() == 0, node.log()
    node.pause()
    make_database(path, b"2")
    good = path.read_bytes()
    disk.spoil(path, MARKER)
    node.go_on()
    _only_this_is_left(node, "run.db")
    path.write_bytes(good)
    assert node.flush() == 0, node.log()
    assert node.status()["problems"] == []
    with closing(sqlite3.connect(node.store / "run.db")) as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert node.end() == 0, node.log()


def test_what_a_lost_database_names_in_onedata_stays_there(node: Node, disk: Btrfs) -> None:
    run = node.work / "Runs" / "000001_Import"
    run.mkdir(parents=True)
    (run / "a").write_bytes(b"1")
    make_database(run / "set.sqlite", b"Runs/000001_Import/a", IN_A_LATER_PAGE)
    assert node.flush() == 0, node.log()
    node.pause()
    with closing(sqlite3.connect(run / "set.sqlite")) as database:
        database.execute("DELETE FROM t WHERE x = ?", (b"Runs/000001_Import/a",))
        database.commit()
    (run / "a").unlink()
    disk.spoil(run / "set.sqlite", MARKER)
    node.go_on()
    for number in range(4):
        (node.work / f"{number}").write_bytes(b"1")
        node.wait_until((node.store / f"{number}").exists)
    assert (node.store / "Runs" / "000001_Import" / "a").exists()
    assert node.end() == 0, node.log()  # which waits for no person


def test_a_file_too_short_for_a_header_that_cannot_be_read_is_no_database(tmp_path: Path) -> None:
    """``/proc/self/mem`` gives EIO where nothing is mapped."""
    stamp = Stamp(Kind.FILE, 1, 10, 0, 0, 0o644)
    source = Source(b"/proc/self/mem", False, b"temporary", None, None)
    assert not _became_database(Difference(b"f", None, stamp), source)
