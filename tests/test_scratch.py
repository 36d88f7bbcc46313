"""What programs only work on: no database waits for it, and it comes when it has settled."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.node import SOON, Node

RUN = Path("Runs/000123_ProtMock")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "store").mkdir()
    node = Node(tmp_path / "one", tmp_path / "store", batch__settle_seconds=1)
    for name in ("tmp", "extra"):
        (node.store / RUN / name).mkdir(parents=True)
    node.deploy()
    yield node
    if node.running():
        node.end(signal.SIGKILL)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Let a program write a file in small steps."""
    path.parent.mkdir(exist_ok=True)
    ended = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            while not ended.wait(0.02):
                file.write(bytes(1000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def commit(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS Objects (id)")
        database.execute("INSERT INTO Objects VALUES (?)", (number,))


def rows(path: Path) -> set[int]:
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as database:
        return {number for (number,) in database.execute("SELECT id FROM Objects")}


def wait_for_rows(node: Node, number: int) -> None:
    deadline = time.monotonic() + SOON
    while number not in rows(node.store / RUN / "items.sqlite"):
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)


@pytest.mark.parametrize("place", ["tmp/result.mrc", "tmp/movie_1/result.mrc"])
def test_databases_come_without_what_is_worked_on(node: Node, place: str) -> None:
    with written(node.work / RUN / place):
        for number in range(3):
            (node.work / RUN / "extra" / f"{number}.mrc").write_bytes(b"data")
            commit(node.work / RUN / "items.sqlite", number)
            wait_for_rows(node, number)
            assert (node.store / RUN / "extra" / f"{number}.mrc").read_bytes() == b"data"
        assert not (node.store / RUN / place).exists(), "it would have been sent in vain"
        assert not node.status()["problems"]
    node.flush()
    content = (node.work / RUN / place).read_bytes()
    assert (node.store / RUN / place).read_bytes() == content
    assert len(content) > 1000


def test_what_is_worked_on_comes_when_it_has_settled(node: Node) -> None:
    path = node.store / RUN / "tmp" / "result.mrc"
    with written(node.work / RUN / "tmp" / "result.mrc"):
        pass
    deadline = time.monotonic() + SOON
    while not path.exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    assert path.read_bytes() == (node.work / RUN / "tmp" / "result.mrc").read_bytes()


def test_what_was_worked_on_comes_with_its_row(node: Node) -> None:
    scratch, done = node.work / RUN / "tmp" / "result.mrc", node.work / RUN / "extra" / "1.mrc"
    with written(scratch):
        commit(node.work / RUN / "items.sqlite", 0)
        wait_for_rows(node, 0)
    scratch.rename(done)
    commit(node.work / RUN / "items.sqlite", 1)
    wait_for_rows(node, 1)
    assert (node.store / RUN / "extra" / "1.mrc").read_bytes() == done.read_bytes()


def test_the_last_flush_takes_it_too(node: Node) -> None:
    (node.work / RUN / "tmp" / "result.mrc").write_bytes(b"half")
    assert node.end() == 0
    assert (node.store / RUN / "tmp" / "result.mrc").read_bytes() == b"half"


def test_a_directory_that_goes_to_the_scratch_is_renamed_there(node: Node) -> None:
    old, new = (Path(RUN, name) for name in ("extra/A", "tmp/A"))
    (node.work / old).mkdir()
    (node.work / old / "1.mrc").write_bytes(b"data")
    node.flush()
    inode = (node.store / old / "1.mrc").stat().st_ino
    (node.work / old).rename(node.work / new)
    deadline = time.monotonic() + SOON
    while not (node.store / new / "1.mrc").exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    assert (node.store / new / "1.mrc").stat().st_ino == inode


def test_the_last_flush_takes_what_a_new_directory_of_the_scratch_has(node: Node) -> None:
    place = Path(RUN, "tmp", "movie_1", "result.mrc")
    (node.work / place).parent.mkdir()
    (node.work / place).write_bytes(b"half")
    assert node.end() == 0
    assert (node.store / place).read_bytes() == b"half"


def test_the_last_flush_takes_scratch_of_which_no_event_told(node: Node) -> None:
    place = Path(RUN, "tmp", "movie_1", "result.mrc")
    node.end(signal.SIGKILL)
    (node.work / place).parent.mkdir()
    (node.work / place).write_bytes(b"half")
    node.deploy()
    assert node.end() == 0
    assert (node.store / place).read_bytes() == b"half"
