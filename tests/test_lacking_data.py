"""Markers of a run whose data cannot come wait for as long as that lasts; its databases do not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from onesync.errors import Exit
from onesync.outcome import OCCUPIED
from tests.campaign.life import Life, Place

RUN, OTHER = "Runs/000001_Lacking", "Runs/000002_Other"
ITEM, MARKER = "extra/item.mrc", "extra/DONE/item.TXT"
DATABASE = f"{RUN}/set.sqlite"


def begin(life: Life) -> None:
    for run in (RUN, OTHER):
        (life.place.work / run / MARKER).parent.mkdir(parents=True)


def put(life: Life) -> None:
    """Make an item in each run, in the first one where somebody else's file stands in OneData."""
    place = life.place
    (place.store / RUN / ITEM).write_bytes(b"foreign")
    for run in (RUN, OTHER):
        (place.work / run / ITEM).write_bytes(b"1" * 3000)
        (place.work / run / MARKER).touch()
    with closing(sqlite3.connect(place.work / DATABASE)) as database, database:
        database.execute("CREATE TABLE item (path TEXT)")
        database.execute("INSERT INTO item VALUES (?)", (ITEM,))


def stands(place: Place) -> bool:
    """Whether the marker of the item is in OneData."""
    return (place.store / RUN / MARKER).exists()


def live(place: Place, *steps: Callable[[Life], None]) -> Life:
    life = Life(place, [begin, put, *steps]).live()
    assert life.end is Exit.CLEAN, life.error
    return life


@pytest.mark.parametrize("small", [0, 4096])
def test_no_marker_comes_where_its_data_cannot(
    place: Place, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small new data are created under their names, large ones get them when they are whole."""
    monkeypatch.setattr("onesync.preparation.CREATED_AT_MOST", small)
    problems: list[tuple[bytes, str, str]] = []

    def look(life: Life) -> None:
        problems.extend((p.path, p.kind, p.text) for p in life.engine.problems())

    live(place, look)
    assert (place.store / RUN / ITEM).read_bytes() == b"foreign"
    assert not (place.store / RUN / MARKER).exists()
    assert (place.store / DATABASE).exists()
    assert (place.store / OTHER / MARKER).exists()
    [(path, kind, text)] = problems
    assert (path.decode(), kind) == (f"{RUN}/{ITEM}", OCCUPIED)
    assert "markers of its run" in text


def test_a_marker_that_comes_later_waits_too(place: Place) -> None:
    late = Path(MARKER).with_name("late.TXT")
    seen: list[bool] = []

    def mark(life: Life) -> None:
        for run in (RUN, OTHER):
            (life.place.work / run / late).touch()

    def look(life: Life) -> None:
        seen.append((place.store / OTHER / late).exists())

    live(place, mark, look)
    assert seen == [True]
    assert not (place.store / RUN / late).exists()


def test_the_markers_come_when_the_data_have_come(place: Place) -> None:
    def clear(life: Life) -> None:
        (life.place.store / RUN / ITEM).unlink()
        (life.place.work / RUN / ITEM).write_bytes(b"2" * 3000)

    seen: list[bool] = []
    at_rest: list[bool] = []

    def look() -> None:
        came = (place.store / RUN / ITEM).exists()
        came = came and (place.store / RUN / ITEM).read_bytes() == b"2" * 3000
        seen.append(came or not (place.store / RUN / MARKER).exists())

    life = Life(place, [begin, put, clear, lambda _: at_rest.append(stands(place))])
    life.told_commit = look
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert all(seen)
    assert at_rest == [True], "not with a flush or a rescan alone"


def test_the_markers_come_when_the_data_are_given_up(place: Place) -> None:
    at_rest: list[bool] = []

    def give_up(life: Life) -> None:
        (life.place.work / RUN / ITEM).unlink()

    live(place, give_up, lambda _: at_rest.append(stands(place)))
    assert at_rest == [True], "not with a flush or a rescan alone"
