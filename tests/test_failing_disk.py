"""A disk of the node does not give the content of one file any more: btrfs with a bad block."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.btrfs import Btrfs, btrfs
from tests.node import Node

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


def test_a_database_whose_content_is_lost_holds_up_nothing_else(node: Node, disk: Btrfs) -> None:
    path = node.work / "run.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (bytes(100_000) + MARKER + bytes(50_000),))
        database.commit()
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
    assert "run.db could not be copied" in flushed.stderr
    assert (node.store / "other").read_bytes() == b"1"
    assert (node.store / "run.db").read_bytes() == before
