"""A tree on disk is what one in memory is, and takes no memory."""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from onesync.core.chain import (
    Change,
    Gone,
    Header,
    Position,
    Renamed,
    Set,
    _fold,
    apply,
    encode,
    unseal,
)
from onesync.core.model import Entry, Kind, RelPath, parent_of
from onesync.core.tree import Fold, Tree
from onesync.errors import StateDirFailed
from onesync.stored_tree import StoredTree, stored_trees
from tests.apart import grown_kib
from tests.core.test_tree import CHANGES


def fold(tree: Fold, changes: list[Change], *, plainly: bool) -> None:
    """Do what ``changes`` say; ``plainly`` as where files' lines are read without an entry."""
    if plainly:
        header = Header("f", Position(1, 1), None, "w", "t", "base")
        _fold(tree, unseal(encode(header, changes)), {})
    else:
        apply(tree, changes)


@pytest.mark.parametrize("plainly", [False, True])
@given(changes=CHANGES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_folds_as_one_in_memory_does(
    tmp_path: Path, changes: list[Change], *, plainly: bool
) -> None:
    expected = Tree()
    apply(expected, changes)
    with stored_trees(tmp_path) as make, pytest.MonkeyPatch.context() as patched:
        patched.setattr("onesync.stored_tree._TOGETHER", 3)
        tree = make()
        fold(tree, changes, plainly=plainly)
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


FEW: list[Change] = [
    Set(b"a", Entry(Kind.DIRECTORY)),
    Set(b"a", Entry(Kind.FILE, 1, digest="ab")),
    Set(b"a/b", Entry(Kind.FILE, 2, digest="ab")),
    Set(b"b", Entry(Kind.FILE, 3, digest="ab")),
    Set(b"b", Entry(Kind.LINK, target=b"a")),
    Renamed(b"a", b"b"),
    Gone(b"b"),
]


def test_every_order_of_few_changes(tmp_path: Path) -> None:
    for changes in product(FEW, repeat=3):
        expected = Tree()
        apply(expected, changes)
        with stored_trees(tmp_path) as make:
            tree = make()
            fold(tree, list(changes), plainly=True)
            assert dict(tree.items()) == dict(expected.items()), changes


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


@pytest.mark.parametrize("plainly", [False, True])
def test_a_disk_that_is_full_says_so(tmp_path: Path, *, plainly: bool) -> None:
    with stored_trees(tmp_path) as make:
        tree = make()
        tree._db.execute("PRAGMA max_page_count=20")
        entry = Entry(Kind.FILE, digest="ab")
        changes: list[Change] = [Set(b"%06d" % n, entry) for n in range(10_000)]
        with pytest.raises(StateDirFailed, match="Make room"):
            fold(tree, changes, plainly=plainly)


def test_it_takes_no_memory(tmp_path: Path) -> None:
    def fill(number: int) -> None:
        tree = StoredTree(tmp_path)
        known = (1, 1, 0o644, "ab" * 32)
        tree.put_files((f"{one // 100:04}", f"{one:06}", *known) for one in range(number))
        assert sum(1 for _ in tree.items()) == number

    small, large = (grown_kib(partial(fill, number)) for number in (80_000, 160_000))
    assert large - small < 1_000
