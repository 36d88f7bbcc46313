"""Names that are in the way in OneData, beside renames, locks, rests and batches that go on."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync.core.model import Problem, RelPath
from onesync.cut import Cuts
from onesync.errors import Exit
from onesync.only_copies import OnlyCopies
from onesync.outcome import BEHIND, OCCUPIED
from tests.campaign.life import Life, Place
from tests.test_named_databases import changing
from tests.test_old_names import (
    DATABASE,
    FOLDER,
    FOREIGN,
    ITEM,
    MARKER,
    ONLY,
    OTHER,
    RUN,
    TAKEN,
    Step,
    Watched,
    nothing,
    watched,
)
from tests.test_steady_load import Copies, act_and_look, copies, execute, put, rows

__all__ = ["copies", "watched"]
LOCKED = "Runs/000002_Align/set.sqlite"


def add_row(watched: Watched, name: str) -> None:
    path = watched.place.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS item (name TEXT)")
        database.execute("INSERT INTO item VALUES ('row')")


def elsewhere(watched: Watched, count: int) -> list[Step]:
    """Return steps that let batches pass."""
    names = iter(range(count))

    def write(_: Life) -> None:
        watched.write(f"Runs/000003_Else/more{next(names)}")

    return [write] * count


def test_what_is_renamed_over_a_file_that_rests(watched: Watched) -> None:
    rests = f"{RUN}/extra/e/growing"

    def begin(life: Life) -> None:
        watched.begin(life)
        watched.write(rests, b"grows")

    def turn(life: Life) -> None:
        life.engine.marks.growing(os.fsencode(rests), 60.0)
        watched.has_begun = True
        watched.move(ITEM, rests, touched=False)

    watched.live([begin, nothing, turn, *elsewhere(watched, 4), *[nothing] * 3])


def test_many_renames_to_taken_names_fail_once(place: Place) -> None:
    count = 12
    old, new = f"{RUN}/extra/d", f"{RUN}/extra/e"

    def begin(_: Life) -> None:
        (place.work / new).mkdir(parents=True)
        for number in range(count):
            put(place.work, f"{old}/{number}")

    def move(_: Life) -> None:
        for number in range(count):
            (place.store / new / f"{number}").write_bytes(FOREIGN)
            (place.work / old / f"{number}").rename(place.work / new / f"{number}")

    life = Life(place, [begin, nothing, move, nothing, nothing]).live()
    assert life.end is Exit.CLEAN, life.error
    assert life.failed_as == ["EEXIST"]
    assert len(life.engine.problems()) == count


@pytest.mark.parametrize("is_locked", [False, True])
def test_its_directory_is_renamed_and_that_rename_waits(
    watched: Watched, copies: Copies, is_locked: bool
) -> None:
    watched.kept = {b"other"}

    def begin(life: Life) -> None:
        watched.begin(life)
        add_row(watched, DATABASE)

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(OTHER, TAKEN)

    def rename(_: Life) -> None:
        if is_locked:
            copies.busy, copies.patience = DATABASE, 12
            add_row(watched, DATABASE)
        watched.move(f"{RUN}/extra/e", f"{RUN}/extra/e2", touched=False)

    steps = [begin, nothing, watched.act(turn), nothing, nothing, rename]
    watched.live([*steps, *elsewhere(watched, 12), nothing, nothing, watched.tell])
    assert watched.told == [[(f"{RUN}/extra/e2/x", OCCUPIED)]]


def test_its_directory_is_renamed_as_its_name_is_freed(watched: Watched) -> None:
    """It comes under the old name, for the rename to carry it along, and is told no longer."""
    watched.kept = {b"other"}

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(OTHER, TAKEN)

    def rename(_: Life) -> None:
        (watched.place.store / TAKEN).unlink()
        watched.move(f"{RUN}/extra/e", f"{RUN}/extra/e2", touched=False)

    steps = [watched.begin, nothing, watched.act(turn), nothing, watched.tell, rename]
    watched.live([*steps, nothing, nothing, watched.tell])
    assert watched.told == [[(TAKEN, OCCUPIED)], []]
    assert (watched.place.store / RUN / "extra/e2/x").read_bytes() == b"other"


@pytest.mark.parametrize("where", ["Logs", f"{RUN}/extra"])
def test_what_changes_while_it_is_copied(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Its old name stays until it has come, also where no row waits for it."""
    old, new = f"{where}/a", f"{where}/b"

    def begin(life: Life) -> None:
        watched.begin(life)
        watched.write(old, ONLY + b"!")
        watched.kept = {ONLY + b"!"}

    def turn() -> None:
        changing(monkeypatch, new)[0] = 5
        watched.move(old, new)

    watched.live([begin, nothing, watched.act(turn), *elsewhere(watched, 4), nothing])


def travelling(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let TAKEN be behind, as a large file of which some is there, as often as the list tells."""
    left = [0]
    behind, taken = OnlyCopies._behind, os.fsencode(TAKEN)

    def travels(self: OnlyCopies) -> set[RelPath]:
        left[0] -= 1
        if left[0] > 0:
            self.problems[taken] = Problem(taken, BEHIND, "")
        else:
            self.problems.pop(taken, None)
        return behind(self)

    monkeypatch.setattr(OnlyCopies, "_behind", travels)
    return left


def touch_at(work: Path, old: str, new: str) -> None:
    (work / old).rename(work / new)
    os.utime(work / new, (1, 1))


@pytest.mark.parametrize("is_late", [False, True])
def test_a_marker_waits_anew_for_what_is_put_off_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """One thing that is put off for long must not let go the markers of what comes later."""
    again, promised = f"{RUN}/extra/f", f"{RUN}/extra/f/new"
    early: list[int] = []
    left = travelling(monkeypatch)
    numbers = iter(range(99))

    def begin(work: Path) -> None:
        put(work, FOLDER, again, f"{RUN}/extra/e/first")

    def turn(work: Path) -> None:
        left[0] = 40
        touch_at(work, FOLDER, TAKEN)
        put(work, f"{FOLDER}/new")

    def later(work: Path) -> None:
        now = time.monotonic
        if is_late:
            monkeypatch.setattr(time, "monotonic", lambda: now() + 11)
        more(work)

    def turn_again(work: Path) -> None:
        touch_at(work, again, f"{RUN}/extra/e/y")
        put(work, promised, MARKER)

    def more(work: Path) -> None:
        put(work, f"Runs/000003_Else/more{next(numbers)}")

    def look() -> None:
        if (place.store / MARKER).exists() and not (place.store / promised).is_file():
            early.append(1)

    acts: list[Callable[[Path], None]]
    acts = [begin, more, more, turn, more, more, later, turn_again, *[more] * 6]
    act_and_look(place, acts, look)
    assert early == []
    assert (place.store / MARKER).exists()


@pytest.mark.parametrize("is_told_again", [False, True])
def test_a_rename_into_a_new_directory_whose_name_a_file_has(
    place: Place, is_told_again: bool
) -> None:
    old, new = f"{RUN}/extra/old", f"{RUN}/extra/e"

    def begin(work: Path) -> None:
        put(work, old)

    def turn(work: Path) -> None:
        (place.store / new).write_bytes(FOREIGN)
        (work / new).mkdir()
        (work / old).rename(work / f"{new}/x")
        put(work, f"{RUN}/extra/more")

    def again(work: Path) -> None:
        if is_told_again:
            os.utime(work / new, (1, 1))
        put(work, f"{RUN}/extra/more2")

    def more(work: Path) -> None:
        put(work, f"{RUN}/extra/more3")

    acts: list[Callable[[Path], None]] = [begin, turn, again, more]

    def act(_: object = None) -> None:
        if acts:
            acts.pop(0)(place.work)

    life = Life(place, [act] * 7)
    life.told_commit = act
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert len(life.failed_as) <= 1
    assert (place.store / old).is_file()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_rename_waits_for_no_database_that_waits_for_what_is_put_off(
    place: Place, kind: str
) -> None:
    old, new = f"{RUN}/extra/d", f"{RUN}/extra/e"
    came: list[int] = []
    done: list[int] = []

    def begin(work: Path) -> None:
        put(work, f"{old}/x")
        execute(work, RUN, "INSERT INTO item VALUES (?)", f"{old}/x")

    def turn(work: Path) -> None:
        execute(work, RUN, "DELETE FROM item WHERE path = ?", f"{old}/x")
        (work / old).rename(work / new)
        if kind == "link":
            (work / old).symlink_to("e")
        else:
            put(work, old)
        execute(work, RUN, "INSERT INTO item VALUES (?)", f"{new}/x")
        done.append(1)

    def more(work: Path) -> None:
        name = f"{RUN}/extra/z{len(done)}"
        put(work, name)
        execute(work, RUN, "INSERT INTO item VALUES (?)", name)
        done.append(1)

    def look() -> None:
        if not came and f"{new}/x" in rows(place.store, RUN):
            came.append(len(done))

    acts: list[Callable[[Path], None]]
    acts = [begin, lambda _: None, lambda _: None, turn, *[more] * 40]
    act_and_look(place, acts, look)
    assert came[0] < 12


@pytest.mark.parametrize("when", ["before", "in the cut"])
def test_what_could_not_come_and_goes_is_told_no_longer(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    is_due: list[int] = []
    freeze = Cuts._freeze

    def frozen(cuts: Cuts, *arguments: Any) -> Any:
        found = freeze(cuts, *arguments)
        if is_due:
            is_due.clear()
            (watched.place.work / TAKEN).unlink()
        return found

    monkeypatch.setattr(Cuts, "_freeze", frozen)

    def begin(_: Life) -> None:
        watched.write(f"{RUN}/extra/e/first")
        add_row(watched, LOCKED)
        watched.take(TAKEN)
        watched.write(TAKEN)

    def remove(_: Life) -> None:
        add_row(watched, LOCKED)
        if when == "before":
            (watched.place.work / TAKEN).unlink()
        else:
            is_due.append(1)

    watched.live([begin, nothing, watched.tell, remove, nothing, nothing, watched.tell])
    assert watched.told == [[(TAKEN, OCCUPIED)], []]
