"""Renames: rows come with the files that they name, nothing waits for ever, no only copy goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onesync import planning
from tests.campaign.life import Place
from tests.test_steady_load import (
    EXTRA,
    LOAD,
    ONE,
    TWO,
    Act,
    execute,
    live,
    nothing,
    put,
    rename,
    rows,
    write,
)


def test_what_is_new_in_a_renamed_directory_comes_with_the_rows_that_name_it(place: Place) -> None:
    old = [f"{ONE}/before/item_{n}" for n in range(2)]
    new = [f"{ONE}/after/item_{n}" for n in range(3)]

    def turn(work: Path) -> None:
        execute(work, ONE, "DELETE FROM item WHERE path = ?", *old)
        put(work, f"{ONE}/before/item_2")
        (work / ONE / "before").rename(work / ONE / "after")
        execute(work, ONE, "INSERT INTO item VALUES (?)", *new)

    acts: list[Act] = [lambda work: write(work, ONE, *old), turn]
    assert live(place, acts, at_rest=True) == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data/item", "data/renamed"),
        (f"{EXTRA}/item", "data/item"),
        ("data/item", f"{EXTRA}/item"),
        (f"{EXTRA}/item", f"{TWO}/item"),
        (f"{TWO}/item", f"{EXTRA}/item"),
    ],
)
def test_rows_wait_for_renames_between_runs_and_outside_of_them(
    place: Place, old: str, new: str
) -> None:
    def begin(work: Path) -> None:
        put(work, "data/other", f"{EXTRA}/other", f"{TWO}/other")
        write(work, ONE, old)

    acts: list[Act] = [begin, lambda work: rename(work, ONE, old, new)]
    assert live(place, acts, at_rest=True) == set()
    assert rows(place.store, ONE) == {new}


def test_steady_renames_starve_no_database(place: Place) -> None:
    items = [f"{EXTRA}/item_{n}" for n in range(LOAD)]
    renamed: list[int] = []

    def load(work: Path) -> None:
        item = items[len(renamed)]
        put(work, f"{EXTRA}/other_{len(renamed)}")
        rename(work, ONE, item, f"{item}.renamed")
        renamed.append(len([name for name in rows(place.store, ONE) if name.endswith("renamed")]))

    begin: list[Act] = [lambda work: write(work, ONE, *items), *[nothing] * 4]
    assert live(place, begin + [load] * LOAD) == set()
    assert renamed[-1]


def taken(store: Path, name: str) -> None:
    (store / EXTRA / name).write_bytes(b"somebody else's")


def renamed_and_touched(work: Path, name: str) -> None:
    """Rename ``item`` so that no rename is recognised: it is sent anew, and removed."""
    (work / EXTRA / "item").rename(work / EXTRA / name)
    os.utime(work / EXTRA / name, (1, 1))


def other(work: Path) -> None:
    put(work, f"{EXTRA}/other")


def test_what_cannot_come_under_its_new_name_stays_under_the_old_one(place: Place) -> None:
    def turn(work: Path) -> None:
        taken(place.store, "taken")
        renamed_and_touched(work, "taken")

    live(place, [lambda work: put(work, f"{EXTRA}/item"), turn, other], at_rest=True)
    assert (place.store / EXTRA / "item").read_bytes() == b"data"


def test_the_old_name_goes_when_the_new_one_has_come(place: Place) -> None:
    def turn(work: Path) -> None:
        taken(place.store, "taken")
        renamed_and_touched(work, "taken")

    def make_way(work: Path) -> None:
        assert (place.store / EXTRA / "item").exists()
        (place.store / EXTRA / "taken").unlink()
        os.utime(work / EXTRA / "taken", (2, 2))

    begin: Act = lambda work: put(work, f"{EXTRA}/item")  # noqa: E731
    live(place, [begin, turn, other, make_way, nothing, nothing], at_rest=True)
    assert (place.store / EXTRA / "taken").read_bytes() == b"data"
    assert not (place.store / EXTRA / "item").exists()


def test_the_old_name_goes_when_the_new_one_is_renamed_once_more(place: Place) -> None:
    def turn(work: Path) -> None:
        taken(place.store, "taken")
        renamed_and_touched(work, "taken")

    def again(work: Path) -> None:
        (work / EXTRA / "taken").rename(work / EXTRA / "free")

    begin: Act = lambda work: put(work, f"{EXTRA}/item")  # noqa: E731
    live(place, [begin, turn, other, again, nothing, nothing], at_rest=True)
    assert sorted(os.listdir(place.store / EXTRA)) == ["free", "other", "taken"]


def test_a_large_file_is_renamed_though_renames_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_COPIED_AT_MOST", 3)
    sent: list[int] = []
    items = [f"{EXTRA}/item_{n}" for n in range(4)]

    def turn(work: Path) -> None:
        item = items[len(sent)]
        sent.append((place.store / item).stat().st_ino)
        rename(work, ONE, item, f"{item}.renamed")

    acts: list[Act] = [lambda work: write(work, ONE, *items), *[nothing] * 3, *[turn] * 4]
    assert live(place, acts) == set()
    assert sent == [(place.store / f"{item}.renamed").stat().st_ino for item in items]
