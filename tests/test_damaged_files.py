"""What came damaged from OneData goes back when its bytes were changed, and then as a whole."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.node import Node

MIB = 1 << 20
GOOD = b"good" * 1000


def damage(path: Path) -> None:
    """Leave a file as a client does that lost its buffers: of its length, with zeros in it."""
    content = path.read_bytes()
    path.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])


def kinds(node: Node) -> list[str]:
    return [problem["kind"] for problem in node.status()["problems"]]


def came_damaged(nodes: list[Node], store: Path, content: bytes) -> Node:
    """Return a node that has staged in a damaged file."""
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(content)
    assert one.end() == 0, one.log()
    damage(store / "stack.mrc")
    two.deploy()
    assert kinds(two) == ["changed_outside"]
    return two


# -- restored from a backup -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("keeps_time", [False, True])
def test_good_bytes_are_sent(nodes: list[Node], store: Path, size: int, keeps_time: bool) -> None:
    content = os.urandom(size)
    two = came_damaged(nodes, store, content)
    times = (nodes[0].work / "stack.mrc").stat()
    (two.work / "stack.mrc").write_bytes(content)
    if keeps_time:
        os.utime(two.work / "stack.mrc", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert two.flush() == 0, two.log()
    assert kinds(two) == []
    assert (store / "stack.mrc").read_bytes() == content
    assert two.end() == 0, two.log()


def test_good_bytes_are_not_cleaned_away(nodes: list[Node], store: Path) -> None:
    nodes[1].configure(undeploy__clean_working_dir=True)
    two = came_damaged(nodes, store, GOOD)
    (two.work / "stack.mrc").write_bytes(GOOD)
    assert two.end() == 0, two.log()
    assert list(two.work.iterdir()) == []
    assert (store / "stack.mrc").read_bytes() == GOOD


def test_a_large_one_that_was_changed_since_is_whole(nodes: list[Node], store: Path) -> None:
    """The node knows the blocks of the version before it was damaged, and must not patch that."""
    one = nodes[0]
    one.deploy()
    content = bytearray(os.urandom(3 * MIB))
    (one.work / "stack.mrc").write_bytes(content)
    assert one.end() == 0, one.log()
    damage(store / "stack.mrc")
    (one.work / "stack.mrc").unlink()  # so that it is brought anew
    one.deploy()
    assert kinds(one) == ["changed_outside"]
    content[2 * MIB + 5] ^= 1
    (one.work / "stack.mrc").write_bytes(content)
    assert one.flush() == 0, one.log()
    assert (store / "stack.mrc").read_bytes() == content
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_database_is_sent(nodes: list[Node], store: Path, mode: str, is_in_place: bool) -> None:
    one, two = nodes
    one.deploy()
    with closing(sqlite3.connect(one.work / "set.sqlite")) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t (v TEXT)")
        db.executemany("INSERT INTO t VALUES (?)", [("GOODVALUE" * 5,) for _ in range(500)])
        db.commit()
    assert one.end() == 0, one.log()
    good = (store / "set.sqlite").read_bytes()
    place = good.index(b"GOODVALUE", 8000)
    (store / "set.sqlite").write_bytes(good[:place] + bytes(9) + good[place + 9 :])
    two.deploy()
    assert kinds(two) == ["changed_outside"]
    if is_in_place:
        (two.work / "set.sqlite").write_bytes(good)
    else:
        (two.work / "backup").write_bytes(good)
        (two.work / "backup").rename(two.work / "set.sqlite")
    assert two.flush() == 0, two.log()
    assert (store / "set.sqlite").read_bytes() == good
    assert two.end() == 0, two.log()


# -- only its mode, its times or its name was changed ---------------------------------------------


def mode(work: Path) -> str:
    (work / "stack.mrc").chmod(0o600)
    return "stack.mrc"


def times(work: Path) -> str:
    os.utime(work / "stack.mrc")
    return "stack.mrc"


def same_bytes(work: Path) -> str:
    (work / "copy").write_bytes((work / "stack.mrc").read_bytes())
    (work / "copy").rename(work / "stack.mrc")
    return "stack.mrc"


def name(work: Path) -> str:
    (work / "stack.mrc").rename(work / "renamed.mrc")
    return "renamed.mrc"


def directory(work: Path) -> str:
    (work / "d").mkdir()
    (work / "stack.mrc").rename(work / "d" / "stack.mrc")
    (work / "d").rename(work / "e")
    (work / "e" / "stack.mrc").chmod(0o600)
    return "e/stack.mrc"


def link(work: Path) -> str:
    os.link(work / "stack.mrc", work / "also.mrc")
    return "stack.mrc"


def link_and_unlink(work: Path) -> str:
    """Rename it so that no event tells of that."""
    os.link(work / "stack.mrc", work / "renamed.mrc")
    (work / "stack.mrc").unlink()
    return "renamed.mrc"


CHANGES = [mode, times, same_bytes, name, directory, link, link_and_unlink]


@pytest.mark.parametrize("is_mended", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_what_came_damaged_does_not_go_back(
    nodes: list[Node], store: Path, change: Callable[[Path], str], is_mended: bool
) -> None:
    two = came_damaged(nodes, store, GOOD)
    damaged = (store / "stack.mrc").read_bytes()
    if is_mended:  # the bytes that were late are there now
        (store / "stack.mrc").write_bytes(GOOD)
    stored = (store / "stack.mrc").stat()
    two.pause()
    now = change(two.work)
    two.go_on()
    for _ in range(2):
        assert two.flush() == 3, two.log()
    assert kinds(two) == ["changed_outside"]
    assert (store / now).stat().st_ino == stored.st_ino
    assert (store / now).read_bytes() == (GOOD if is_mended else damaged)
    (two.work / now).write_bytes(GOOD)
    assert two.flush() == 0, two.log()
    assert (store / now).read_bytes() == GOOD
    assert two.end() == 0, two.log()


def test_a_damaged_copy_whose_mode_was_changed_is_cleaned(nodes: list[Node], store: Path) -> None:
    nodes[1].configure(undeploy__clean_working_dir=True)
    two = came_damaged(nodes, store, GOOD)
    stored = (store / "stack.mrc").stat()
    (two.work / "stack.mrc").chmod(0o600)
    assert two.end() == 0, two.log()
    assert list(two.work.iterdir()) == []
    assert (store / "stack.mrc").stat().st_mtime_ns == stored.st_mtime_ns


def test_what_was_believed_and_came_damaged_stays_told(nodes: list[Node], store: Path) -> None:
    """What is read back before a cleaning, and what this node has no good copy of."""
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(GOOD)
    assert one.end() == 0, one.log()
    (store / "stack.mrc").write_bytes(bytes(len(GOOD)))
    (one.work / "stack.mrc").unlink()
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    assert kinds(one) == ["changed_outside"]
    assert one.end() == 0, one.log()
    two.deploy()
    assert kinds(two) == ["changed_outside"]
    assert two.end() == 0, two.log()
