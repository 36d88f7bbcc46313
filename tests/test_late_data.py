"""Data left to the next batch: what waits for them, what does not, and that nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import Kind, RelPath, Stamp
from onesync.core.ordering import (
    SCIPION_ORDER,
    SCIPION_SCRATCH,
    SCIPION_UNNAMED,
    PublishOrder,
)
from onesync.core.plan import Move, Plan
from onesync.holds import Holds, ProjectWait
from tests.campaign.life import PORTION, Place
from tests.test_steady_load import (
    EXTRA,
    LOAD,
    MANY,
    ONE,
    THREE,
    TWO,
    Act,
    act_and_look,
    execute,
    live,
    nothing,
    put,
    rows,
    without_files,
    write,
)

pytestmark = pytest.mark.usefixtures("small_portions")


def come(place: Place) -> int:
    """Return how many of MANY are in OneData."""
    return sum((place.store / name).exists() for name in MANY)


def test_an_old_name_stays_until_the_new_one_has_come(place: Place) -> None:
    """Renamed and touched, each is a new file and a removal, and no database is there."""
    other = f"{ONE}/other"
    lost: list[str] = []
    left = list(MANY)

    def renames(work: Path) -> None:
        (work / other).mkdir()
        for number, name in enumerate(MANY):
            new = work / other / os.path.basename(name)
            (work / name).rename(new)
            os.utime(new, (number, number))
        left.clear()

    def look() -> None:
        names = () if left else [(n, f"{other}/{os.path.basename(n)}") for n in MANY]
        for both in names:
            if not any((place.store / name).exists() for name in both):
                lost.append(both[0])

    begin: list[Act] = [lambda work: put(work, *MANY), *[nothing] * 8]
    act_and_look(place, [*begin, renames, *[nothing] * 8], look)
    assert not left
    assert lost == []
    assert len(os.listdir(place.store / other)) == len(MANY)
    assert os.listdir(place.store / EXTRA) == []


def test_others_databases_come_while_snapshots_wait(place: Place) -> None:
    """Those of the burst's run wait for all of it; another run's, that names nothing of it, not."""
    own = [f"{TWO}/extra/own_{n}" for n in range(8)]
    seen: list[tuple[int, int, int]] = []

    def begin(work: Path) -> None:
        write(work, ONE, *MANY)

    def goes_on(number: int) -> Act:
        return lambda work: write(work, TWO, own[number])

    def look() -> None:
        named = rows(place.store, TWO)
        assert all((place.store / name).exists() for name in named)
        seen.append((come(place), len(rows(place.store, ONE)), len(named)))

    act_and_look(place, [begin, *map(goes_on, range(8)), nothing], look)
    meanwhile = {two for number, one, two in seen if 0 < number < len(MANY) and not one}
    assert len(meanwhile) > 2, seen
    assert all(number == len(MANY) for number, one, _ in seen if one)
    assert seen[-1] == (len(MANY), len(MANY), len(own))


def test_a_row_waits_for_a_new_database_of_a_run_that_waits(place: Place) -> None:
    other = f"{ONE}/other.sqlite"
    wrong: list[str] = []

    def tells(work: Path) -> None:
        with closing(sqlite3.connect(work / other)) as database, database:
            database.execute("CREATE TABLE item (path TEXT)")
        execute(work, TWO, "INSERT INTO item VALUES (?)", other)

    def look() -> None:
        wrong.extend(without_files(place.store, TWO))

    begin: Act = lambda work: write(work, ONE, *MANY)  # noqa: E731
    act_and_look(place, [begin, nothing, tells, nothing, nothing], look)
    assert wrong == []
    assert rows(place.store, TWO) == {other}


def test_a_row_waits_for_its_own_file_alone(place: Place) -> None:
    """It names one that has come, of a run of which others have not; then one that has not."""
    named: list[tuple[int, set[str]]] = []
    told: list[str] = []

    def tells(work: Path) -> None:
        there = [name for name in MANY if (place.store / name).exists()]
        missing = [name for name in MANY if name not in there]
        told.append((there if not told else missing)[-1])
        execute(work, THREE, "INSERT INTO item VALUES (?)", told[-1])

    def look() -> None:
        found = rows(place.store, THREE)
        assert all((place.store / name).exists() for name in found)
        named.append((come(place), found))

    acts: list[Act] = [lambda work: write(work, ONE, *MANY), tells, *[nothing] * 4, tells]
    act_and_look(place, [*acts, nothing, nothing], look)
    assert any(number < len(MANY) and found == {told[0]} for number, found in named), named
    assert named[-1][1] == set(told)


@pytest.mark.parametrize("at_once", [False, True], ids=["before the burst", "with the burst"])
def test_a_row_waits_for_a_rename_in_another_run(place: Place, at_once: bool) -> None:
    """All renames wait while data are late, and so do the rows that name their targets."""
    old, new = f"{TWO}/extra/old", f"{TWO}/extra/new"
    wrong: list[str] = []

    def renames(work: Path) -> None:
        execute(work, TWO, "DELETE FROM item WHERE path = ?", old)
        (work / old).rename(work / new)
        execute(work, TWO, "INSERT INTO item VALUES (?)", new)

    def burst(work: Path) -> None:
        write(work, ONE, *MANY)
        execute(work, THREE, "INSERT INTO item VALUES (?)", new)

    def both(work: Path) -> None:
        renames(work)
        burst(work)

    def look() -> None:
        wrong.extend(without_files(place.store, THREE))

    begin: list[Act] = [lambda work: write(work, TWO, old), *[nothing] * 3]
    acts: list[Act] = [both] if at_once else [renames, burst]
    act_and_look(place, [*begin, *acts, nothing, nothing], look)
    assert wrong == []
    assert rows(place.store, THREE) == {new}


def test_a_row_waits_for_what_links_lead_to_through_another_run(place: Place) -> None:
    first, second = f"{THREE}/extra/link", f"{TWO}/extra/link"
    seen: list[tuple[set[str], int]] = []

    def begin(work: Path) -> None:
        put(work, *MANY)
        for name, target in ((first, MANY[-1]), (second, first)):
            (work / name).parent.mkdir(parents=True)
            (work / name).symlink_to(f"../../../{target}")
        execute(work, TWO, "INSERT INTO item VALUES (?)", second)

    act_and_look(
        place, [begin, nothing], lambda: seen.append((rows(place.store, TWO), come(place)))
    )
    assert any(0 < count < len(MANY) for _, count in seen)
    assert all(count == len(MANY) for two, count in seen if two)
    assert seen[-1][0] == {second}


def test_a_row_waits_for_what_a_link_in_a_renamed_directory_leads_to(place: Place) -> None:
    link = f"{THREE}/extra/d/link"
    seen: list[tuple[set[str], int]] = []

    def begin(work: Path) -> None:
        put(work, f"{TWO}/extra/d/own", f"{THREE}/extra/own")
        (work / TWO / "extra/d/link").symlink_to(f"../../../../{MANY[-1]}")

    def renames(work: Path) -> None:
        (work / TWO / "extra/d").rename(work / THREE / "extra/d")

    def burst(work: Path) -> None:
        put(work, *MANY)
        execute(work, THREE, "INSERT INTO item VALUES (?)", link)

    acts: list[Act] = [begin, *[nothing] * 3, renames, burst, nothing, nothing]
    act_and_look(place, acts, lambda: seen.append((rows(place.store, THREE), come(place))))
    assert any(0 < count < len(MANY) for _, count in seen)
    assert all(count == len(MANY) for three, count in seen if three)
    assert seen[-1][0] == {link}


@pytest.mark.parametrize("brings", [write, lambda work, _, *names: put(work, *names)])
def test_steady_data_starve_no_rename_of_their_directory(
    place: Place, brings: Callable[..., None]
) -> None:
    new = f"{ONE}/renamed"
    there: list[bool] = []
    known: list[int] = []

    def load(work: Path) -> None:
        brings(work, ONE, *(f"{new}/item_{len(there)}_{n}" for n in range(PORTION + 1)))
        there.append((place.store / new).exists())
        known.append(len(rows(place.store, ONE)))

    def renames(work: Path) -> None:
        (work / EXTRA).rename(work / new)
        load(work)

    begin: list[Act] = [lambda work: put(work, f"{EXTRA}/first"), *[nothing] * 3]
    assert live(place, [*begin, renames, *[load] * LOAD]) == set()
    assert there[-1]
    assert known[-1] > 1 or brings is not write


def some_holds() -> Holds:
    none = frozenset[RelPath]()
    order = PublishOrder(SCIPION_ORDER, SCIPION_SCRATCH, SCIPION_UNNAMED)
    named, at = lambda *_: none, lambda _: none
    return Holds(
        None, none, none, ProjectWait(), none, tuple, named, named, at, at, none, none, order
    )


@pytest.mark.parametrize(
    ("path", "is_held"), [(b"Logs/project.log", False), (b"Movies/1.mrc", True), (b"1.mrc", True)]
)
def test_databases_wait_for_what_is_missing_but_for_what_no_row_names(
    tmp_path: Path, path: bytes, is_held: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "set.sqlite")) as database, database:
        database.execute("CREATE TABLE item (path TEXT)")
    copies = {
        name: os.fsencode(tmp_path / "set.sqlite")
        for name in (b"project.sqlite", b"Runs/000002_Y/set.sqlite")
    }
    holds = some_holds()
    holds.leave_behind(path, is_missing=True)
    holds.begin_databases(copies, (), Plan())
    for name in copies:
        assert holds.is_held(name, is_database=True) == is_held


def test_a_rename_is_judged_while_workers_take_up_what_was_left() -> None:
    stamp = Stamp(Kind.FILE, 1, 0, 0, 0, 0o644)
    holds = some_holds()
    names = [b"Runs/000001_X/extra/%d" % number for number in range(5000)]
    for name in names:
        holds.defer(name)
    holds.begin_databases({}, (), Plan())
    plan = Plan(moves=[Move(b"Runs/000002_Y/a", b"Runs/000002_Y/b", Kind.FILE, stamp)])
    ended = threading.Event()

    def take_up() -> None:
        for name in names:
            holds.take_up(name)
            time.sleep(0)  # lets the other one go on
        ended.set()

    worker = threading.Thread(target=take_up)
    worker.start()
    try:
        while not ended.is_set():
            assert not holds.waiting(plan)
            holds._waits = None
    finally:
        worker.join()
