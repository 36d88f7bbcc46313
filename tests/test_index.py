"""The index: what older versions wrote is read, and what is remembered comes back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.blocks import OLD_ALGORITHM, Blocks
from onesync.core.chain import Gone, Renamed, Set
from onesync.core.model import Entry, Kind, Known, Stamp, is_doubted
from onesync.errors import Halted
from onesync.index import Index

FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (
    path BLOB PRIMARY KEY, parent BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, mode INTEGER NOT NULL, digest TEXT NOT NULL, target BLOB NOT NULL,
    inode INTEGER, s_size INTEGER, s_mtime INTEGER, s_ctime INTEGER, s_mode INTEGER
) WITHOUT ROWID;
INSERT INTO meta VALUES ('format', '1'), ('staged', 'abc');
INSERT INTO entry VALUES (x'61', x'', 'file', 5, 6, 420, 'cd', x'', 7, 5, 6, 8, 420);
INSERT INTO entry VALUES (x'62', x'', 'link', 0, 0, 0, '', x'61', NULL, NULL, NULL, NULL, NULL);
"""
FORMAT_2 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (
    path BLOB PRIMARY KEY, parent BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, mode INTEGER NOT NULL, digest TEXT NOT NULL, target BLOB NOT NULL,
    inode INTEGER, s_size INTEGER, s_mtime INTEGER, s_ctime INTEGER, s_mode INTEGER,
    link_group INTEGER NOT NULL DEFAULT 0, xattrs TEXT NOT NULL DEFAULT '', s_linked INTEGER
) WITHOUT ROWID;
CREATE TABLE blocks (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, digests BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX entry_parent ON entry (parent);
CREATE INDEX entry_inode ON entry (inode);
INSERT INTO meta VALUES ('format', '2'), ('staged', 'abc'), ('root_inode', '42');
INSERT INTO entry VALUES (x'61', x'', 'file', 5, 6, 420, 'cd', x'', 7, 5, 6, 8, 420, 0, '', 0);
INSERT INTO entry VALUES
    (x'62', x'', 'link', 0, 0, 0, '', x'61', NULL, NULL, NULL, NULL, NULL, 0, '', NULL);
"""
FORMAT_3 = (
    FORMAT_2.replace("('format', '2')", "('format', '3')")
    + """
CREATE TABLE unverified (path BLOB PRIMARY KEY, is_read INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE held (path BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO unverified VALUES (x'61', 1);
INSERT INTO held VALUES (x'61');
"""
)
FORMAT_4 = (
    FORMAT_3.replace("('format', '3')", "('format', '4')")
    + """
CREATE TABLE explained (path BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO entry VALUES
    (x'632f64', x'63', 'file', 5, 6, 420, 'ce', x'', 8, 5, 6, 8, 420, 0, '', 1);
INSERT INTO held VALUES (x'632f64');
INSERT INTO explained VALUES (x'65');
"""
)
OLD = Known(Entry(Kind.FILE, 5, 6, 0o644, "cd"), Stamp(Kind.FILE, 7, 5, 6, 8, 0o644))


def test_rows_that_had_paths_are_found_by_directory(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FORMAT_4)
    for readonly in (True, False, True):
        with closing(Index(path, readonly=readonly)) as index:
            assert index.known(b"a") == OLD
            assert [p for p, _ in index.beneath(b"")] == [b"a", b"b", b"c/d"]
            assert index.stamps(b"c") == {b"d": ("file", 8, 5, 6, 8, 0o644, 1, b"")}
            assert [p for p, _ in index.by_inode(8)] == [b"c/d"]
            assert index.held() == {b"a", b"c/d"}
            assert index.explained() == {b"e"}


@pytest.mark.parametrize("old", [FORMAT_1, FORMAT_2, FORMAT_3])
def test_an_older_format_is_read_and_not_rewritten(tmp_path: Path, old: str) -> None:
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(old)
    before = path.read_bytes()
    with closing(Index(path, readonly=True)) as index:
        assert index.known(b"a") == OLD
        assert index.known(b"b") == Known(Entry(Kind.LINK, target=b"a"), None)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "held"), [(FORMAT_1, set()), (FORMAT_2, set()), (FORMAT_3, {b"a"})]
)
def test_an_index_of_an_older_format_is_brought_up_to_date(
    tmp_path: Path, old: str, held: set[bytes]
) -> None:
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(old)
    for _ in range(2):  # once more: it is of format 5 now
        with closing(Index(path)) as index:
            assert index.get("format") == "5"
            assert index.held() == held
            assert index.explained() == set()
            assert index.unverified(9) == [(path, True) for path in held]
            assert index.get("staged") == "abc"
            assert index.known(b"a") == OLD
            assert index.known(b"b") == Known(Entry(Kind.LINK, target=b"a"), None)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.set(format="99")
    with pytest.raises(Halted, match="format 99"):
        Index(tmp_path / "index.sqlite")


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    entry = Entry(Kind.FILE, 5, 6, 0o644, "cd", group=7, xattrs=((b"user.\xff", b"\0"),))
    stamp = Stamp(Kind.FILE, 7, 5, 6, 8, 0o644, linked=True)
    blocks = Blocks(65_536, b"digests of blocks")
    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.commit([Set(b"a", entry)], {b"a": stamp}, {"cd": blocks})
        assert index.known(b"a") == Known(entry, stamp)
        assert index.blocks("cd") == blocks
        index.commit([Set(b"a", Entry(Kind.FILE, digest="ef"))], {})
        index.remember_blocks({})
        assert index.blocks("cd") is None, "no row has that content any more"


def test_blocks_that_an_earlier_onesync_digested_are_remembered_as_what_they_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FORMAT_2 + "INSERT INTO blocks VALUES ('cd', 65536, x'0102');")
    old = Blocks(65_536, b"\x01\x02", OLD_ALGORITHM)
    with closing(Index(path)) as index:
        assert index.blocks("cd") == old
        index.remember_blocks({})
        assert index.blocks("cd") == old
        index.remember_blocks({"cd": Blocks(65_536, b"new")})
        assert index.blocks("cd") == Blocks(65_536, b"new")
        index.commit([Gone(b"a")], {})
        index.remember_blocks({})
        assert index.blocks("cd") is None


def test_old_digests_that_are_put_stay_old(tmp_path: Path) -> None:
    """As of a file that changed while it was compared with them."""
    old = Blocks(65_536, b"old", OLD_ALGORITHM)
    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.commit([], {}, {"cd": old})
        assert index.blocks("cd") == old


def test_digests_of_a_later_onesync_are_unknown(tmp_path: Path) -> None:
    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.commit([], {}, {"cd": Blocks(65_536, b"later", "sha5")})
        assert index.blocks("cd") is None


def test_what_is_held_follows_the_rows(tmp_path: Path) -> None:
    file = Entry(Kind.FILE, digest="cd")
    paths = [b"a", b"a/x", b"a/y", b"a0", b"b"]
    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.commit([Set(path, file) for path in paths], {})
        index.hold([b"a/x", b"a/y", b"a0", b"b"], [])
        index.commit([Renamed(b"a", b"c")], {})
        assert index.held() == {b"c/x", b"c/y", b"a0", b"b"}
        index.commit([Set(b"b", file)], {})
        index.commit([Gone(b"a0")], {})
        assert index.held() == {b"c/x", b"c/y"}
        assert index.count_beneath([b"c"]) == 3
    with closing(Index(tmp_path / "index.sqlite")) as index:
        assert index.held() == {b"c/x", b"c/y"}
        index.hold([], [b"c/x"])
        assert index.held() == {b"c/y"}
        index.replace(())
        assert index.held() == frozenset()


def test_what_is_explained_comes_back_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with closing(Index(path)) as index:
        index.explain([b"a", b"b"], [])
        index.explain([b"b", b"c"], [b"a"])
    with closing(Index(path)) as index:
        assert index.explained() == {b"b", b"c"}
        index.replace(())
        assert index.explained() == set()


def _steps_of_a_commit(path: Path, rows: int) -> int:
    """Return how many hundreds of SQLite's instructions a commit of ten files takes."""
    file, stamp = Entry(Kind.FILE, digest="cd"), Stamp(Kind.FILE, 7, 5, 6, 8, 0o644)
    with closing(Index(path)) as index:
        index.replace((b"%d/%d" % (n % 97, n), file, stamp) for n in range(rows))
        steps = 0

        def counted() -> int:
            nonlocal steps
            steps += 1
            return 0

        index._db.set_progress_handler(counted, 100)
        changes = [Set(b"new/%d" % n, file) for n in range(10)]
        changes += [Set(b"5/%d" % n, file) for n in range(5, 970, 97)]
        index.commit([*changes, Gone(b"6/6"), Renamed(b"7/7", b"z")], {}, pushed={b"new/1": False})
        index._db.set_progress_handler(None, 0)
        return steps


def test_a_commit_costs_what_it_changes_whatever_the_index_holds(tmp_path: Path) -> None:
    few, many = (_steps_of_a_commit(tmp_path / f"{n}", n) for n in (1_000, 30_000))
    assert many <= few * 1.2 + 1, (few, many)


def test_what_is_doubted_with_all_beneath_is_not_in_the_replica(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite")
    entries = {
        b"d": Entry(Kind.DIRECTORY),
        b"d/file": Entry(Kind.FILE, 5),
        b"d/e/deep": Entry(Kind.FILE, 5),
        b"d/link": Entry(Kind.LINK, target=b"file"),
        b"d/never here": Entry(Kind.FILE, 5),
        b"d0": Entry(Kind.FILE, 5),
    }
    changes = [Set(path, entry) for path, entry in entries.items()]
    stamps = {path: Stamp(entry.kind, 7, 5, 6, 7, 0o644) for path, entry in entries.items()}
    del stamps[b"d/never here"]
    index.commit(changes, stamps)
    index.agree(b"d", b"listing")
    assert index.doubt_tree(b"d") == 3
    known = {path: index.known(path) for path in entries}
    assert {path for path, one in known.items() if one and is_doubted(one.stamp)} == {
        b"d",
        b"d/file",
        b"d/e/deep",
    }
    assert index.known(b"d/never here") == Known(Entry(Kind.FILE, 5), None)
    assert index.agreed(b"d") is None
    index.close()
