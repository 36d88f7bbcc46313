"""A tree on disk is what one in memory is, and takes no memory."""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from onesync.core.chain import Change, Gone, Renamed, Set, apply
from onesync.core.model import Entry, Kind, RelPath, parent_of
from onesync.core.tree import Fold, Tree
from onesync.errors import StateDirFailed
from onesync.stored_tree import StoredTree, stored_trees
from tests.apart import grown_kib
from tests.core.test_tree import CHANGES


def fold(tree: Fold, change: Change, *, plainly: bool) -> None:
    """Do what ``change`` says; ``plainly`` as where a file's line is read without an entry."""
    entry = change.entry if plainly and isinstance(change, Set) else Entry(Kind.LINK)
    if entry.kind is Kind.FILE and not (entry.group or entry.xattrs):
        assert isinstance(change, Set)
        digest = entry.digest.encode()
        tree.put_file(change.path, entry.size, entry.mtime_ns, entry.mode, digest)
        return
    apply(tree, [change])


@pytest.mark.parametrize("plainly", [False, True])
@given(changes=CHANGES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_folds_as_one_in_memory_does(
    tmp_path: Path, changes: list[Change], *, plainly: bool
) -> None:
    expected = Tree()
    with stored_trees(tmp_path) as make:
        tree = make()
        for change in changes:
            apply(expected, [change])
            fold(tree, change, plainly=plainly)
        assert dict(tree.items()) == dict(expected.items())
        assert len(tree) == len(expected)
        paths = list(tree)
        assert all(path in tree and tree[path] == expected[path] for path in paths)
        assert not any(parent_of(path) in paths[at:] for at, path in enumerate(paths))
        for directory in {b"", *map(parent_of, paths)}:
            assert tree.kinds_in(directory) == expected.kinds_in(directory)
        for kind in Kind:
            assert dict(tree.of_kind(kind)) == dict(expected.of_kind(kind))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([Renamed(b"a", b"a/b")], id="into itself"),
        pytest.param([Renamed(b"a/b", b"a")], id="over what it was in"),
        pytest.param([Renamed(b"a", b"f")], id="over a file with something beneath"),
        pytest.param([Renamed(b"a", b"z"), Set(b"z/y", Entry(Kind.FILE))], id="to the end"),
        pytest.param([Set(b"a", Entry(Kind.FILE)), Gone(b"a")], id="a directory becomes a file"),
    ],
)
def test_strange_changes_too(tmp_path: Path, changes: list[Change]) -> None:
    group = (1 << 64) - 1
    before: dict[RelPath, Entry] = {
        b"a": Entry(Kind.DIRECTORY),
        b"a/b": Entry(Kind.DIRECTORY),
        b"a/b/c\xff": Entry(Kind.FILE, 1, digest="ab" * 32, group=group),
        b"a-": Entry(Kind.FILE, 2),
        b"f": Entry(Kind.FILE, 3),
        b"f/c": Entry(Kind.LINK, target=b"\xff"),
    }
    expected = Tree(before)
    apply(expected, changes)
    with stored_trees(tmp_path) as make:
        tree = make()
        for path, entry in before.items():
            tree.put(path, entry)
        apply(tree, changes)
        assert dict(tree.items()) == dict(expected.items())


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with stored_trees(tmp_path) as make:
        one, other = make(), make()
        one.put(b"a", Entry(Kind.FILE))
        assert (list(one), list(other)) == ([b"a"], [])
        assert os.listdir(tmp_path) == []
    with pytest.raises(sqlite3.ProgrammingError):
        list(one)


def test_who_stopped_reading_may_let_go_of_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with stored_trees(tmp_path) as make:
        tree = make()
        for name in (b"a", b"b"):
            tree.put(name, Entry(Kind.FILE))
        reading = iter(tree.items())
        assert next(reading)[0] == b"a"
    del reading
    gc.collect()
    assert told == []


def test_a_disk_that_is_full_says_so(tmp_path: Path) -> None:
    with stored_trees(tmp_path) as make:
        tree = make()
        tree._db.execute("PRAGMA max_page_count=20")
        changes = (Set(b"%06d" % number, Entry(Kind.FILE)) for number in range(10_000))
        with pytest.raises(StateDirFailed, match="Make room"):
            apply(tree, changes)


def test_it_takes_no_memory(tmp_path: Path) -> None:
    def fill(number: int) -> None:
        tree = StoredTree(tmp_path)
        for one in range(number):
            tree.put_file(b"%04d/%06d" % (one // 100, one), 1, 1, 0o644, b"ab" * 32)
        assert sum(1 for _ in tree.items()) == number

    small, large = (grown_kib(partial(fill, number)) for number in (80_000, 160_000))
    assert large - small < 1_000
