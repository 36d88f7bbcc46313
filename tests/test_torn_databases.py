"""Databases that are momentarily no good state: rebuilt, or overwritten by what knows no locks."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync import snapshot
from onesync.clock import SystemClock
from onesync.core.chain import Set
from onesync.core.dirty import DirtySet, Due
from onesync.core.model import Entry, Kind
from onesync.core.ordering import SCIPION_ORDER, PublishOrder
from onesync.cut import Cut, Cuts
from onesync.index import Index
from onesync.marks import Marks
from onesync.pins import Pins
from onesync.scanner import Scanner
from tests.node import SOON, Node
from tests.test_databases import count, make

NOTHING = Due(frozenset(), frozenset(), (), ())


class Copy:
    """A working copy with a database, whose cuts are pushed at once, at a time of our own."""

    def __init__(self, home: Path, index: Index) -> None:
        self.path = home / "work" / "steps.sqlite"
        self.path.parent.mkdir()
        (home / "spool").mkdir()
        self.now = 1000.0
        self.pushed = b""
        self._index = index
        self._home = home
        self.forget()

    def forget(self) -> None:
        """Be another process, which remembers what the index does."""
        root = bytes(self.path.parent)
        self.marks = Marks(DirtySet(2.0, 30.0), SystemClock(), lambda _: False)
        self.cuts = Cuts(
            root=root,
            spool=self._home / "spool",
            index=self._index,
            scanner=Scanner(root, self._index, lambda _: False),
            marks=self.marks,
            order=PublishOrder(SCIPION_ORDER),
            drain=lambda: None,
            boottime=lambda: self.now,
            problems={},
        )

    def batch(self, *, as_is: bool = False) -> Cut:
        """Push what a cut has of the database."""
        name = self.path.name.encode()
        self.marks.changed(name)
        with Pins(bytes(self.path.parent)) as pins:
            cut = self.cuts.take(NOTHING, set(), pins, as_is=as_is)
            self.cuts.snapshots.close()
        if name in cut.found and (stamp := cut.found[name].seen) is not None:
            frozen = cut.frozen.get(name)
            self.pushed = (
                self.path if frozen is None else Path(os.fsdecode(frozen.path))
            ).read_bytes()
            digest = frozen.digest if frozen is not None else "plain"
            entry = Entry(Kind.FILE, len(self.pushed), stamp.mtime_ns, stamp.mode, digest)
            self._index.commit([Set(name, entry)], {name: stamp})
        return cut

    def problems(self) -> list[str]:
        return [problem.kind for problem in self.cuts.problems.values()]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    with closing(Index(tmp_path / "index.sqlite")) as index:
        yield Copy(tmp_path, index)


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


@pytest.mark.parametrize("statement", ["DELETE FROM Steps", "DROP TABLE Steps"])
def test_a_database_without_rows_keeps_its_last_good_version_for_thirty_seconds(
    copy: Copy, statement: str
) -> None:
    make(copy.path, 10)
    copy.batch()
    good = copy.pushed
    change(copy.path, statement)
    for seconds in (0, 20, 9.9):
        copy.now += seconds
        cut = copy.batch()
        assert copy.pushed == good
        assert cut.deferred == {b"steps.sqlite"}, "it is looked at again"
    copy.now += 0.2
    assert copy.batch().deferred == set()
    assert copy.pushed == copy.path.read_bytes() != good
    change(copy.path, "VACUUM")
    copy.batch()
    assert copy.pushed == copy.path.read_bytes(), "it stays empty, and is pushed as ever"


def test_a_database_that_had_rows_again_is_kept_as_long_the_next_time(copy: Copy) -> None:
    make(copy.path, 10)
    copy.batch()
    change(copy.path, "DROP TABLE Steps")
    copy.batch()
    copy.now += 20
    make(copy.path, 20)
    copy.batch()
    good = copy.pushed
    assert good == copy.path.read_bytes()
    change(copy.path, "DROP TABLE Steps")
    copy.batch()
    copy.now += 20
    copy.batch()
    assert copy.pushed == good


def test_a_new_database_without_rows_is_pushed_at_once(copy: Copy) -> None:
    make(copy.path, 0)
    copy.batch()
    assert copy.pushed == copy.path.read_bytes()


PARTS = [0, 10, 16, 50, 4096, 8192, 20_000]


@pytest.mark.parametrize(
    ("part", "as_is"),
    # Nothing at all is SQLite's own empty database, which a flush takes as it is.
    [(part, False) for part in PARTS] + [(part, True) for part in PARTS if part],
)
def test_half_of_a_database_is_no_new_version_of_it(copy: Copy, part: int, as_is: bool) -> None:
    make(copy.path, 5000)
    copy.batch()
    good = copy.pushed
    make(copy.path, 1000)
    new = copy.path.read_bytes()
    copy.path.write_bytes(new[:part])
    for seconds in (0, 29.9):
        copy.now += seconds
        cut = copy.batch(as_is=as_is)
        assert copy.pushed == good
        assert cut.deferred == {b"steps.sqlite"}
        assert part == 0 or copy.problems() == ["database_busy"]
    copy.path.write_bytes(new)
    copy.batch(as_is=as_is)
    assert copy.pushed == new
    assert copy.problems() == []


@pytest.mark.parametrize("part", [0, 10, 8192])
def test_half_of_a_database_that_stays_so_is_pushed_after_thirty_seconds(
    copy: Copy, part: int
) -> None:
    make(copy.path, 5000)
    copy.batch()
    half = copy.path.read_bytes()[:part]
    copy.path.write_bytes(half)
    copy.batch()
    copy.now += 30
    assert copy.batch().deferred == set()
    assert copy.pushed == half
    assert copy.problems() == []
    copy.path.write_bytes(half + b"more")
    copy.batch()
    assert copy.pushed == half + b"more", "no good version is left to be kept"


def test_a_whole_database_with_a_page_of_zeros_is_no_new_version_of_it(copy: Copy) -> None:
    """As where somebody fills a file that has its length already."""
    make(copy.path, 5000)
    copy.batch()
    good = copy.pushed
    copy.path.write_bytes(good[:4096] + bytes(len(good) - 4096))
    copy.batch()
    assert copy.pushed == good
    assert copy.problems() == ["database_busy"]


def test_half_of_a_database_that_another_process_pushed_waits_too(copy: Copy) -> None:
    make(copy.path, 5000)
    copy.batch()
    good = copy.pushed
    copy.forget()
    copy.path.write_bytes(good[:8192])
    copy.batch()
    assert copy.pushed == good


def test_what_only_looks_like_a_database_is_a_file_whenever_it_changes(copy: Copy) -> None:
    for _ in range(3):
        copy.path.write_bytes(snapshot.HEADER + os.urandom(5000))
        copy.batch()
        assert copy.pushed == copy.path.read_bytes()


def test_a_database_that_something_else_replaces_is_a_file_at_once(copy: Copy) -> None:
    make(copy.path, 10)
    copy.batch()
    copy.path.write_bytes(b"no database, and longer than a header")
    copy.batch()
    assert copy.pushed == copy.path.read_bytes()


def test_what_is_written_past_the_locks_while_it_is_copied_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "run.db", tmp_path / "snapshot"
    make(source, 5000)
    copied = snapshot._copy_bytes

    def overwritten(fd: int, place: bytes) -> None:
        copied(fd, place)
        with source.open("r+b") as file:
            file.seek(8192)
            file.write(bytes(4096))

    monkeypatch.setattr(snapshot, "_copy_bytes", overwritten)
    found = snapshot._take_one(bytes(source), bytes(target))
    assert (found.taken, found.is_database) == (False, True), "it is tried again"
    assert not target.exists()


def test_a_plain_copy_over_a_database_is_pushed_when_it_is_whole(nodes: list[Node]) -> None:
    node = nodes[0]
    node.deploy()
    path, other = node.work / "run.db", node.home / "other.db"
    make(path, 5000)
    assert node.flush() == 0
    make(other, 9000)
    content = other.read_bytes()
    with path.open("wb") as file:  # as shutil.copyfile does it
        file.write(content[: len(content) // 2])
        file.flush()
        (node.work / "later").write_bytes(b"1")
        deadline = time.monotonic() + SOON
        while not (node.store / "later").exists():
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.05)
        assert count(node.store / "run.db") == 5000
        assert node.flush() == 3, "it is not there, and said not to be"
        assert count(node.store / "run.db") == 5000
        file.write(content[len(content) // 2 :])
    assert node.flush() == 0, node.log()
    assert count(node.store / "run.db") == 9000
    assert node.status()["problems"] == []
    assert node.end() == 0, node.log()


NO_DATABASE = [
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO),
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
]


@pytest.mark.parametrize("number", [*NO_DATABASE, errno.EMFILE, errno.ENFILE, errno.EIO])
def test_what_could_not_be_read_is_not_called_a_plain_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "run.db"
    make(path, 1)

    def refuse(path: bytes, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(snapshot, "open_plain", refuse)
    if number in NO_DATABASE:
        assert not snapshot.is_database(bytes(path))
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            snapshot.is_database(bytes(path))


def test_a_database_that_may_not_be_read_any_more_stays_one(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(copy.path, 10)
    copy.batch()
    make(copy.path, 10)

    def refuse(path: bytes, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(snapshot, "open_plain", refuse)
    cut = copy.batch()
    assert cut.frozen.keys() | cut.deferred == {b"steps.sqlite"}, "never as a plain file"


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "link", "gone"])
def test_what_is_no_file_is_no_database(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.db"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bytes(path))
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "link":
        make(tmp_path / "other", 1)
        path.symlink_to("other")
    for was_one in (False, True):
        assert not snapshot.is_database(bytes(path), was_one=was_one)
