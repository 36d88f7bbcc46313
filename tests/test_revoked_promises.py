"""Markers and databases that are deleted never outlive, in OneData, the data that they promise."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync import planning, recovery, snapshot
from onesync.errors import Exit
from onesync.push import Push
from onesync.snapshot import Taken
from tests.campaign.life import Life, Place

RUN = "Runs/000001_Restarted"
ITEM = f"{RUN}/extra/item.mrc"
MARKER = f"{RUN}/extra/DONE/item.TXT"
DATABASE = f"{RUN}/set.sqlite"
FIRST, SECOND = b"1" * 3000, b"2" * 1000


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS item (path TEXT PRIMARY KEY)")
        database.execute(statement, (ITEM,))


def begin(work: Path) -> None:
    (work / MARKER).parent.mkdir(parents=True)
    (work / ITEM).write_bytes(FIRST)
    (work / MARKER).touch()
    execute(work / DATABASE, "INSERT INTO item VALUES (?)")


def promised(folder: Path) -> bool:
    """Whether a marker or a row says that the item is done."""
    return (folder / MARKER).exists() or has_row(folder)


def has_row(folder: Path) -> bool:
    if not (folder / DATABASE).exists():
        return False
    with closing(
        sqlite3.connect(f"file:{folder / DATABASE}?mode=ro&immutable=1", uri=True)
    ) as database:
        return bool(database.execute("SELECT path FROM item").fetchall())


def content(folder: Path) -> bytes | None:
    return (folder / ITEM).read_bytes() if (folder / ITEM).exists() else None


def live(place: Place, *steps: Callable[[Path], None]) -> list[tuple[bytes | None, bool]]:
    """Return the item in OneData and whether it was promised there, at each checkpoint."""
    seen: list[tuple[bytes | None, bool]] = []
    life = Life(place, [lambda life, step=step: step(life.place.work) for step in steps])  # type: ignore[misc]
    life.told_commit = lambda: seen.append((content(place.store), promised(place.store)))
    life.live()
    assert life.end is Exit.CLEAN, life.error
    return seen


def replace_files(work: Path) -> None:
    (work / DATABASE).unlink()
    (work / MARKER).unlink()
    (work / ITEM).write_bytes(SECOND)


def replace_directories(work: Path) -> None:
    """Make the run anew; its markers' directory is not there yet."""
    shutil.rmtree(work / RUN)
    (work / ITEM).parent.mkdir(parents=True)
    (work / ITEM).write_bytes(SECOND)


@pytest.mark.parametrize("restart", [replace_files, replace_directories])
def test_what_promised_an_item_goes_before_it_is_made_anew(
    place: Place, restart: Callable[[Path], None]
) -> None:
    seen = live(place, begin, restart)
    assert (FIRST, True) in seen
    assert (SECOND, False) in seen
    assert (SECOND, True) not in seen
    assert not promised(place.store)


@pytest.mark.parametrize("restart", [replace_files, replace_directories])
def test_who_browses_never_sees_the_old_promise_beside_the_new_item(
    place: Place, restart: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = Push._confirm

    def look(self: Push, written: list[tuple[bytes, int]]) -> None:
        real(self, written)
        if content(place.store) == SECOND:
            seen.append(promised(place.store))

    monkeypatch.setattr(Push, "_confirm", look)
    live(place, begin, restart)
    assert seen
    assert not any(seen)


def test_a_file_goes_no_earlier_than_the_database_that_named_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row goes, then the file while the database is locked, then the database."""
    is_locked = False
    real = snapshot._take_one

    def take(source: bytes, target: bytes) -> Taken:
        if is_locked and source.endswith(b"set.sqlite"):
            return Taken(False, reason="database is locked")
        return real(source, target)

    monkeypatch.setattr(snapshot, "_take_one", take)
    seen: list[tuple[bool, bool]] = []

    def drop(life: Life) -> None:
        nonlocal is_locked
        work = life.place.work
        execute(work / DATABASE, "DELETE FROM item WHERE path = ?")
        (work / ITEM).unlink()
        is_locked = True
        (work / "other").touch()

    def look() -> None:
        nonlocal is_locked
        seen.append((content(place.store) is not None, has_row(place.store)))
        if is_locked:
            (place.work / DATABASE).unlink()
            is_locked = False

    life = Life(place, [lambda life: begin(life.place.work), drop])
    life.told_commit = look
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert not is_locked
    assert (True, True) in seen
    assert (False, True) not in seen
    assert seen[-1] == (False, False)


@pytest.mark.parametrize("at_once", [1, 2])
def test_of_many_deletions_promises_are_the_first(
    place: Place, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_REMOVED_AT_ONCE", at_once)

    def remove(work: Path) -> None:
        (work / ITEM).unlink()
        (work / MARKER).unlink()
        (work / DATABASE).unlink()

    seen = live(place, begin, remove)
    assert (FIRST, True) in seen
    assert (None, True) not in seen[1:]
    assert seen[-1] == (None, False)


def test_a_batch_that_fails_gives_back_what_it_revoked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old promise and the old item belong together, and so return together."""
    failed: list[bool] = []
    returned: list[tuple[bytes | None, bool]] = []
    real, settle = Push._confirm, recovery.settle

    def fail(self: Push, written: list[tuple[bytes, int]]) -> None:
        real(self, written)
        if not failed and content(place.store) == SECOND:
            failed.append(promised(place.store))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def look(*arguments: Any) -> list[str]:
        told = settle(*arguments)
        if failed and not returned:
            returned.append((content(place.store), promised(place.store)))
        return told

    monkeypatch.setattr(Push, "_confirm", fail)
    monkeypatch.setattr(recovery, "settle", look)
    seen = live(place, begin, replace_files)
    assert failed == [False]
    assert returned == [(FIRST, True)]
    assert (SECOND, True) not in seen
    assert seen[-1] == (SECOND, False)
