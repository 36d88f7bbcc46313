"""Databases that rows name come before these; databases that go, before what their rows name."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.plan import Difference
from onesync.mentions import Published
from onesync.push import Push
from onesync.transfer import Source
from tests.campaign.life import Place
from tests.test_steady_load import (
    ONE,
    THREE,
    TWO,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    rows,
)

__all__ = ["copies"]
PROJECT = "."
NEW = f"{ONE}/other.sqlite"
CHANGING = f"{ONE}/extra/changing"
OLD = f"{ONE}/extra/old"
pytestmark = pytest.mark.usefixtures("small_portions")


def looked_for(place: Place, run: str) -> tuple[Callable[[], None], list[str], list[str]]:
    """Return what looks at the rows of ``run``'s database, which names lie nowhere, and all."""
    wrong: list[str] = []
    seen: list[str] = []

    def look() -> None:
        found = rows(place.store, run)
        seen.extend(found)
        wrong.extend(name for name in found if not (place.store / name).exists())

    return look, wrong, seen


def make_database(work: Path, name: str) -> None:
    with closing(sqlite3.connect(work / name)) as database, database:
        database.execute("CREATE TABLE item (path TEXT)")


@pytest.mark.parametrize("run", [TWO, ONE, PROJECT])
def test_a_row_waits_for_a_new_database_that_is_locked(
    place: Place, copies: Copies, run: str
) -> None:
    look, wrong, seen = looked_for(place, run)

    def named_and_locked(work: Path) -> None:
        copies.busy, copies.patience = "other.sqlite", 4
        make_database(work, NEW)
        execute(work, run, "INSERT INTO item VALUES (?)", NEW)

    begin: Callable[[Path], None] = lambda work: put(work, f"{ONE}/a")  # noqa: E731
    act_and_look(place, [begin, nothing, named_and_locked, *[nothing] * 6], look)
    assert wrong == []
    assert NEW in seen


def test_a_new_database_that_is_locked_for_long_is_waited_for_no_longer(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onesync.planning._ABSENT_SECONDS", 0.0)
    look, wrong, _ = looked_for(place, TWO)

    def named_and_locked(work: Path) -> None:
        copies.busy, copies.patience = "other.sqlite", 6
        make_database(work, NEW)
        execute(work, TWO, "INSERT INTO item VALUES (?)", NEW)

    begin: Callable[[Path], None] = lambda work: put(work, f"{ONE}/a")  # noqa: E731
    act_and_look(place, [begin, nothing, named_and_locked, *[nothing] * 8], look)
    assert NEW in wrong


@pytest.mark.parametrize("run", [THREE, PROJECT])
def test_a_row_waits_for_a_new_database_that_waits_for_a_file_that_changes(
    place: Place, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    look, wrong, seen = looked_for(place, run)
    bring, left = Push._try_to_bring, [4]

    def changes(push: Push, difference: Difference, source: Source) -> object:
        is_it = os.fsdecode(difference.path) == CHANGING and difference.known is not None
        if is_it and left[0]:
            left[0] -= 1
            push.outcome.retry.add(difference.path)
            return None
        return bring(push, difference, source)

    monkeypatch.setattr(Push, "_try_to_bring", changes)

    def change(work: Path) -> None:
        (work / CHANGING).write_bytes(b"other data")
        make_database(work, NEW)
        execute(work, run, "INSERT INTO item VALUES (?)", NEW)

    begin: Callable[[Path], None] = lambda work: put(work, CHANGING)  # noqa: E731
    act_and_look(place, [begin, nothing, nothing, change, *[nothing] * 6], look)
    assert left == [0]
    assert wrong == []
    assert NEW in seen


@pytest.mark.parametrize("how", ["deleted", "renamed", "its run deleted"])
def test_a_busy_database_that_lost_a_row_goes_before_the_file_that_this_named(
    place: Place, copies: Copies, how: str
) -> None:
    look, wrong, seen = looked_for(place, TWO)
    database = f"{TWO}/set.sqlite"

    def begin(work: Path) -> None:
        put(work, OLD)
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD)

    def loses(work: Path) -> None:
        copies.busy, copies.patience = TWO, 1000
        execute(work, TWO, "DELETE FROM item WHERE path = ?", OLD)
        (work / OLD).unlink()
        put(work, f"{ONE}/x")

    def goes(work: Path) -> None:
        copies.busy = None
        if how == "renamed":
            (work / database).rename(work / TWO / "renamed.sqlite")
            return
        (work / database).unlink()
        if how != "deleted":
            (work / TWO).rmdir()

    acts = [begin, nothing, nothing, loses, lambda work: put(work, f"{ONE}/y"), goes]
    act_and_look(place, [*acts, *[nothing] * 6], look)
    assert OLD in seen
    assert wrong == []
    assert not (place.store / OLD).exists()
    assert not (place.store / database).exists()


def test_a_run_that_is_made_anew_is_still_named(tmp_path: Path) -> None:
    snapshot = tmp_path / "set.sqlite"
    make_database(tmp_path, "set.sqlite")
    with closing(sqlite3.connect(snapshot)) as database, database:
        database.execute("INSERT INTO item VALUES (?)", (OLD,))
    published = Published()
    published.know({ONE.encode(), THREE.encode()})
    published.see(b"Runs/000002_Two/set.sqlite", os.fsencode(snapshot))  # without asking for runs
    assert published.may_name(b"Runs/000002_Two/set.sqlite", ONE.encode())
    assert not published.may_name(b"Runs/000002_Two/set.sqlite", THREE.encode())
