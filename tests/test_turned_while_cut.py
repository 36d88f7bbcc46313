"""New files whose place something of another kind takes while the batch's databases are copied.

As they were they cannot be pushed beside that, and a marker or a row of that moment promises them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onesync.cut import Cuts
from tests.campaign.life import Place
from tests.test_steady_load import (
    ONE,
    TWO,
    act_and_look,
    execute,
    nothing,
    put,
    rows,
    without_files,
)

THREE = "Runs/000003_Extract"
FOLDER = f"{ONE}/extra/sub"
NEW, NEWER, MARKER = f"{FOLDER}/new", f"{FOLDER}/new/newer", f"{FOLDER}/DONE/new"
ALWAYS = f"{THREE}/a"


def to_directory(work: Path) -> str:
    put(work, NEWER)
    return NEWER


def to_link(work: Path) -> str:
    (work / NEW).symlink_to(f"../../../../{ALWAYS}")
    return NEW


def to_file_above(work: Path) -> str:
    shutil.rmtree(work / FOLDER)
    put(work, FOLDER)
    return FOLDER


class Turned:
    """A new file that something takes the place of beside one copying of the databases."""

    def __init__(self, place: Place, turn: Callable[[Path], str], *, is_known: bool) -> None:
        self.place = place
        self.turn = turn
        self.is_known = is_known
        self.is_due = False
        self.named = ""
        self.wrong: list[str] = []

    def first(self, work: Path) -> None:
        for run in (TWO, THREE):
            execute(work, run, "INSERT INTO item VALUES (?)", ALWAYS)
        put(work, ALWAYS, *([f"{FOLDER}/old"] if self.is_known else []))

    def begin(self, work: Path) -> None:
        put(work, NEW, MARKER)
        execute(work, TWO, "INSERT INTO item VALUES (?)", NEW)
        self.is_due = True

    def happen(self) -> None:
        """Take the promises back, then what they promise, and promise what comes."""
        work = self.place.work
        self.is_due = False
        execute(work, TWO, "DELETE FROM item WHERE path = ?", NEW)
        (work / MARKER).unlink()
        (work / NEW).unlink()
        self.named = self.turn(work)
        execute(work, THREE, "INSERT INTO item VALUES (?)", self.named)

    def look(self) -> None:
        store = self.place.store
        # What is a link there is not seen in OneData.
        runs = (TWO,) if self.turn is to_link else (TWO, THREE)
        self.wrong += without_files(store, *runs, is_there=Path.is_file)
        if (store / MARKER).exists() and not (store / NEW).is_file():
            self.wrong.append(MARKER)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("turn", [to_directory, to_link, to_file_above])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_promises_what_went(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    turn: Callable[[Path], str],
    is_known: bool,
) -> None:
    turned = Turned(place, turn, is_known=is_known)
    freeze = Cuts._freeze

    def frozen(cuts: Cuts, *arguments: Any) -> Any:
        if turned.is_due and moment == "before":
            turned.happen()
        found = freeze(cuts, *arguments)
        if turned.is_due:
            turned.happen()
        return found

    monkeypatch.setattr(Cuts, "_freeze", frozen)
    acts = [turned.first, nothing, nothing, turned.begin, *[nothing] * 4]
    act_and_look(place, acts, turned.look)
    assert turned.named
    assert turned.wrong == []
    assert turned.named in rows(place.store, THREE)
    assert not (place.store / MARKER).exists()
