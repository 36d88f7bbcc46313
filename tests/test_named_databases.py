"""Databases that rows name come before these; databases that go, with what their rows name."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from onesync import planning
from onesync.batch import Batches
from onesync.core.plan import Difference
from onesync.mentions import Published
from onesync.push import Push
from onesync.transfer import Source
from tests.campaign.life import Place
from tests.test_steady_load import (
    MANY,
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
    without_files,
    write,
)

__all__ = ["copies"]
PROJECT = "."
NEW = f"{ONE}/other.sqlite"
CHANGING = f"{ONE}/extra/changing"
OLD = f"{ONE}/extra/old"
pytestmark = pytest.mark.usefixtures("small_portions")


def looked_for(
    place: Place, run: str, is_there: Callable[[Path], bool] = Path.exists
) -> tuple[Callable[[], None], list[str], list[str]]:
    """Return what looks at the rows of ``run``'s database, which names lie nowhere, and all."""
    wrong: list[str] = []
    seen: list[str] = []

    def look() -> None:
        seen.extend(rows(place.store, run))
        wrong.extend(without_files(place.store, run, is_there=is_there))

    return look, wrong, seen


def make_database(work: Path, name: str, *names: str) -> None:
    """Make a database with a row for each of ``names``."""
    with closing(sqlite3.connect(work / name)) as database, database:
        database.execute("CREATE TABLE item (path TEXT)")
        database.executemany("INSERT INTO item VALUES (?)", [(name,) for name in names])


def changing(monkeypatch: pytest.MonkeyPatch, path: str, *, is_known: bool = False) -> list[int]:
    """Let a file change whenever it is copied, so many times as the list that is returned tells.

    Of one that ``is_known`` only what comes after the first version.
    """
    bring, left = Push._try_to_bring, [4]

    def changes(push: Push, difference: Difference, source: Source) -> object:
        is_it = os.fsdecode(difference.path) == path and left[0]
        if is_it and (difference.known is not None or not is_known):
            left[0] -= 1
            push.outcome.retry.add(difference.path)
            return None
        return bring(push, difference, source)

    monkeypatch.setattr(Push, "_try_to_bring", changes)
    return left


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
    left = changing(monkeypatch, CHANGING, is_known=True)

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


@pytest.mark.parametrize("is_locked", [True, False], ids=["locked", "held back"])
@pytest.mark.parametrize("run", [TWO, THREE, PROJECT])
def test_a_row_waits_for_a_new_database_that_a_link_leads_to(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, run: str, is_locked: bool
) -> None:
    link = f"{TWO}/link.sqlite"
    wrong: list[bool] = []
    left = changing(monkeypatch, CHANGING, is_known=True)

    def look() -> None:
        if link in rows(place.store, run):
            wrong.append(not (place.store / NEW).exists())

    def names(work: Path) -> None:
        if is_locked:
            copies.busy, copies.patience, left[0] = "other.sqlite", 4, 0
        (work / CHANGING).write_bytes(b"other data")
        make_database(work, NEW)
        (work / TWO).mkdir(exist_ok=True)
        (work / link).symlink_to(f"../../{NEW}")
        execute(work, run, "INSERT INTO item VALUES (?)", link)

    begin: Callable[[Path], None] = lambda work: put(work, CHANGING)  # noqa: E731
    act_and_look(place, [begin, nothing, names, *[nothing] * 6], look)
    assert wrong
    assert not any(wrong)


@pytest.mark.parametrize("new", ["other.sqlite", NEW, f"{THREE}/other.sqlite"])
@pytest.mark.parametrize("delay", [0, 1])
def test_a_row_waits_for_a_locked_new_database_beside_snapshots_that_wait(
    place: Place, copies: Copies, new: str, delay: int
) -> None:
    look, wrong, seen = looked_for(place, TWO)

    def begin(work: Path) -> None:
        put(work, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{ONE}/a")

    def names(work: Path) -> None:
        copies.busy, copies.patience = "other.sqlite", 8
        make_database(work, new)
        execute(work, TWO, "INSERT INTO item VALUES (?)", new)

    def late(work: Path) -> None:
        write(work, ONE, *MANY)
        if not delay:
            names(work)

    acts = [begin, nothing, nothing, late, *[names] * delay, *[nothing] * 8]
    act_and_look(place, acts, look)
    assert wrong == []
    assert new in seen


@pytest.mark.parametrize("gap", [2, 4])
def test_ever_new_locked_databases_starve_no_other(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, gap: int
) -> None:
    """Each is locked for twelve seconds, and then deleted; a second goes by with each batch."""
    seconds = [1000.0]
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    batch = Batches._batch
    known: list[int] = []
    copies.busy, copies.patience = "/new", 100_000

    def second(batches: Batches, everything: bool) -> bool:
        seconds[0] += 1
        return batch(batches, everything)

    monkeypatch.setattr(Batches, "_batch", second)

    def load(work: Path) -> None:
        number = len(known)
        if number % gap == 0:
            make_database(work, f"{ONE}/new{number}.sqlite")
        (work / f"{ONE}/new{number - 12}.sqlite").unlink(missing_ok=True)
        write(work, ONE, f"{ONE}/item{number}")
        known.append(len(rows(place.store, ONE)))

    def end(work: Path) -> None:
        for path in (work / ONE).glob("new*"):
            path.unlink()

    begin: Callable[[Path], None] = lambda work: write(work, ONE, f"{ONE}/a")  # noqa: E731
    act_and_look(place, [begin, nothing, nothing, *[load] * 40, end], lambda: None)
    assert known[-1] > 20


def test_a_run_that_is_made_anew_is_still_named(tmp_path: Path) -> None:
    snapshot = tmp_path / "set.sqlite"
    make_database(tmp_path, "set.sqlite")
    with closing(sqlite3.connect(snapshot)) as database, database:
        database.execute("INSERT INTO item VALUES (?)", (OLD,))
    published = Published()
    published.know({ONE.encode(), THREE.encode()})
    published.see(b"Runs/000002_Two/set.sqlite", os.fsencode(snapshot))  # without asking for runs
    runs = {ONE.encode(), THREE.encode(), b""}
    assert published.named(b"Runs/000002_Two/set.sqlite", runs) == runs - {THREE.encode()}
