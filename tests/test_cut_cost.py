"""What a cut costs, and what it takes along, whatever comes and goes meanwhile."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.clock import SystemClock
from onesync.core.dirty import DirtySet, Due
from onesync.core.model import RelPath, Stamp
from onesync.core.ordering import SCIPION_ORDER, PublishOrder
from onesync.cut import Cuts, Frozen
from onesync.index import Index
from onesync.marks import Marks
from onesync.pins import Pins
from onesync.scanner import Scanner

FILES = 300
NOTHING = Due(frozenset(), frozenset(), (), ())


class CountingScanner(Scanner):
    """Counts the looks at single paths."""

    looks = 0

    def stamp(self, path: RelPath) -> Stamp | None:
        self.looks += 1
        return super().stamp(path)


class Copy:
    """A working copy with many new files and a database, in which things come and go."""

    def __init__(self, home: Path, index: Index) -> None:
        self.root = home / "work"
        (self.root / "many").mkdir(parents=True)
        (home / "spool").mkdir()
        clock = SystemClock()
        self.marks = Marks(DirtySet(2.0, 30.0), clock, lambda _: False)
        root = bytes(self.root)
        self.scanner = CountingScanner(root, index, lambda _: False)
        self.comings: list[str] = []
        self.meanwhile: Callable[[], None] = self._come_and_go
        self._drained = False
        self.cuts = Cuts(
            root=root,
            spool=home / "spool",
            index=index,
            scanner=self.scanner,
            marks=self.marks,
            order=PublishOrder(SCIPION_ORDER),
            drain=self._drain,
            boottime=clock.boottime,
            problems={},
        )
        for number in range(FILES):
            self.write(f"many/{number}")
        with closing(sqlite3.connect(self.root / "items.sqlite")) as database:
            database.execute("CREATE TABLE Objects (id)")
        self.marks.changed(b"items.sqlite")

    def write(self, name: str) -> None:
        (self.root / name).write_bytes(b"content")
        self.marks.changed(name.encode())

    def remove(self, name: str) -> None:
        (self.root / name).unlink()
        self.marks.deleted(name.encode())

    def _drain(self) -> None:
        """Stand for the watcher; the first time is before anything is looked at."""
        if self._drained:
            self.meanwhile()
        self._drained = True

    def _come_and_go(self) -> None:
        """Tell of what came and went while the databases were copied."""
        if self.comings:
            name = self.comings.pop(0)
            self.write(name)
            self.remove(name)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    with closing(Index(tmp_path / "index.sqlite")) as index:
        copy = Copy(tmp_path, index)
        yield copy
        copy.cuts.snapshots.close()


def test_a_file_that_came_and_went_costs_no_second_look_at_all_others(copy: Copy) -> None:
    copy.comings = ["many/brief", "many/briefer"]
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
        assert len(pins) == FILES
    assert not copy.comings, "each began a new cut"
    assert b"items.sqlite" in cut.frozen
    assert copy.scanner.looks < FILES + 50


def test_what_went_while_the_databases_were_copied_is_still_pushed(copy: Copy) -> None:
    copy.comings = ["many/7"]
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
        difference = cut.found[b"many/7"]
        assert difference.seen is not None
        with open(pins.sources()[b"many/7"], "rb") as pinned:
            assert pinned.read() == b"content"
    assert copy.marks.take(everything=True).paths == {b"many/7"}


def test_a_directory_that_went_before_the_new_cut_takes_its_files_along(copy: Copy) -> None:
    def move() -> None:
        (copy.root / "many").rename(copy.root.parent / "elsewhere")
        copy.marks.deleted(b"many")
        copy.meanwhile = lambda: None

    copy.meanwhile = move
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
        assert len(pins) == 0
    assert {path for path, d in cut.found.items() if d.seen} == {b"items.sqlite"}


def test_what_was_gone_before_the_cut_and_is_told_late_begins_no_new_one(copy: Copy) -> None:
    copy.marks.changed(b"many/gone")
    rounds = 0

    def tell_late() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            copy.marks.deleted(b"many/gone")

    copy.meanwhile = tell_late
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
    assert rounds == 1
    assert b"items.sqlite" in cut.frozen


def test_more_scratch_than_can_be_marked_goes_at_once(copy: Copy) -> None:
    copy.cuts.order = PublishOrder(SCIPION_ORDER, ["/many/"])
    copy.marks._is_scratch = copy.cuts.order.is_scratch
    copy.marks._dirty = DirtySet(2.0, 30.0, limit=3)
    copy.marks.tree_changed(b"many")
    found: set[RelPath] = set()
    due = copy.marks.take(everything=True, resting=True)
    found |= copy.cuts.plain(due).found.keys()
    names = {b"many/%d" % number for number in range(FILES)}
    assert len(found & names) >= FILES - 4
    assert all(name in found or copy.marks.is_pending(name) for name in names)


# -- what comes and goes, and markers -------------------------------------------------------------

MARKER = "Runs/000001_X/extra/DONE/1"


def marked(copy: Copy) -> Copy:
    (copy.root / MARKER).parent.mkdir(parents=True)
    copy.write(MARKER)
    return copy


def passing_by(copy: Copy, folder: str) -> Callable[[], None]:
    """With each look the file that was there at the last one is gone, and another one there."""
    numbers = itertools.count(1)
    copy.write(f"{folder}/passing_0")

    def pass_by() -> None:
        number = next(numbers)
        copy.remove(f"{folder}/passing_{number - 1}")
        copy.write(f"{folder}/passing_{number}")

    return pass_by


def test_what_comes_and_goes_elsewhere_needs_no_second_look(copy: Copy) -> None:
    """No snapshot is taken, for others wait: only markers might promise what went."""
    marked(copy).comings = [f"many/brief_{number}" for number in range(9)]
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False, waiting={}, runs={b""})
    assert MARKER.encode() in cut.found
    assert len(copy.comings) == 8


@pytest.mark.parametrize("waiting", [None, {}])
@pytest.mark.parametrize(("folder", "waits"), [("many", False), ("Runs/000001_X/extra", True)])
def test_a_marker_waits_only_where_its_run_is_restless(
    copy: Copy,
    monkeypatch: pytest.MonkeyPatch,
    waiting: dict[RelPath, Frozen] | None,
    folder: str,
    waits: bool,
) -> None:
    """There is no descriptor that would hold what goes."""
    copy.meanwhile = passing_by(marked(copy), folder)
    with Pins(bytes(copy.root)) as pins:
        monkeypatch.setattr(pins, "_room", 0)
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False, waiting=waiting)
    assert cut.frozen == {}, "any row may name what went"
    assert (MARKER.encode() in cut.found) is not waits
    assert (MARKER.encode() in cut.deferred) is waits


def test_a_marker_that_was_seen_does_not_wait_for_a_directory_that_comes(copy: Copy) -> None:
    def come() -> None:
        (copy.root / "Runs/000001_X/new").mkdir(exist_ok=True)
        copy.marks.tree_changed(b"Runs/000001_X")

    marked(copy).meanwhile = come
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
    assert MARKER.encode() in cut.found
    assert cut.deferred == set()


def test_a_marker_that_only_a_late_walk_came_upon_waits(copy: Copy) -> None:
    """Nobody told of it yet: nor of its data, perhaps, which the walk was past already."""

    def come() -> None:
        (copy.root / MARKER).parent.mkdir(parents=True, exist_ok=True)
        (copy.root / MARKER).touch()
        copy.marks.tree_changed(b"Runs/000001_X")

    copy.meanwhile = come
    with Pins(bytes(copy.root)) as pins:
        cut = copy.cuts.take(NOTHING, set(), pins, as_is=False)
    assert MARKER.encode() not in cut.found
    assert cut.deferred == {MARKER.encode()}
