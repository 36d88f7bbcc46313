"""What a cut does not hold yet: each of these is to be mended, or admitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.campaign.life import Place
from tests.test_steady_load import (
    EXTRA,
    LOAD,
    ONE,
    Act,
    execute,
    live,
    nothing,
    put,
    rename,
    rows,
    write,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    store = tmp_path / "store"
    store.mkdir()
    return Place(tmp_path / "node", store)


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


def test_what_cannot_come_under_its_new_name_stays_under_the_old_one(
    place: Place,
) -> None:
    def begin(work: Path) -> None:
        put(work, f"{EXTRA}/item")

    def turn(work: Path) -> None:
        (place.store / EXTRA / "taken").write_bytes(b"somebody else's")
        (work / EXTRA / "item").rename(work / EXTRA / "taken")
        os.utime(work / EXTRA / "taken", (1, 1))

    live(place, [begin, turn, lambda work: put(work, f"{EXTRA}/other")], at_rest=True)
    assert (place.store / EXTRA / "item").read_bytes() == b"data"
