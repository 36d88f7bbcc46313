"""What lies outside of the runs any row may name, at once or through a link: it comes before it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from onesync import holds, planning
from tests.campaign.life import Place
from tests.test_project_database import tell
from tests.test_renamed_directories import Stubborn
from tests.test_steady_load import ONE, THREE, TWO, Act, act_and_look, execute, nothing, put, write

pytestmark = pytest.mark.usefixtures("small_portions")

MOVIES = [f"Movies/{n}" for n in range(12)]
OWN = f"{TWO}/extra/own"
LINK = "extra/link"
ADD, REMOVE = "INSERT INTO item VALUES (?)", "DELETE FROM item WHERE path = ?"


def lacking(place: Place) -> set[tuple[str, str]]:
    """Return databases in OneData, with what they name, through links, and it has not."""
    found: set[tuple[str, str]] = set()
    for database in place.store.rglob("*.sqlite"):
        if ".onesync~" in str(database):
            continue
        with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as opened:
            named = [path for (path,) in opened.execute("SELECT path FROM item") if "/" in path]
        for path in named:
            real = Path(os.path.realpath(place.work / path)).relative_to(place.work.resolve())
            if not (place.store / real).exists():
                found.add((str(database.relative_to(place.store)), path))
    return found


def play(
    place: Place, acts: Sequence[Act], is_wrong: Callable[[], bool] = lambda: False
) -> list[set[tuple[str, str]]]:
    """Return what was lacking at each checkpoint at which something was."""
    wrong: list[set[tuple[str, str]]] = []

    def look() -> None:
        missing = lacking(place)
        if missing or is_wrong():
            wrong.append(missing)

    act_and_look(place, acts, look)
    return wrong


def link_to(work: Path, run: str, target: str, kind: str) -> None:
    link = work / run / LINK
    link.parent.mkdir(parents=True, exist_ok=True)
    there = {"absolute": str(work), "relative": "../../..", "around": f"../../../../{work.name}"}
    link.symlink_to(f"{there[kind]}/{target}")


@pytest.mark.parametrize("kind", ["absolute", "relative", "around"])
@pytest.mark.parametrize("run", [ONE, TWO])
def test_a_row_that_names_a_link_to_late_data(place: Place, run: str, kind: str) -> None:
    def begin(work: Path) -> None:
        put(work, *MOVIES)
        write(work, TWO, OWN)
        link_to(work, run, MOVIES[9], kind)
        execute(work, TWO, ADD, f"{run}/{LINK}")

    assert play(place, [begin, nothing]) == []


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_row_that_names_a_link_to_what_does_not_come(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    Stubborn(monkeypatch, "stubborn", 3)

    def begin(work: Path) -> None:
        write(work, TWO, OWN)
        put(work, "Movies/stubborn")
        link_to(work, ONE, "Movies/stubborn", kind)
        execute(work, TWO, ADD, f"{ONE}/{LINK}")

    assert play(place, [begin, nothing]) == []


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_row_that_names_a_link_to_a_new_name(place: Place, kind: str) -> None:
    def begin(work: Path) -> None:
        write(work, TWO, OWN)
        put(work, "Movies/a/1")

    def turn(work: Path) -> None:
        (work / "Movies/a").rename(work / "Movies/b")
        link_to(work, ONE, "Movies/b/1", kind)
        execute(work, TWO, ADD, f"{ONE}/{LINK}")

    assert play(place, [begin, nothing, nothing, turn, nothing, nothing]) == []


@pytest.mark.parametrize("other", ["Movies", "."])
def test_a_row_that_names_a_new_database_that_waits(place: Place, other: str) -> None:
    def begin(work: Path) -> None:
        put(work, *MOVIES)
        write(work, TWO, OWN)
        execute(work, other, ADD, MOVIES[9])
        execute(work, TWO, ADD, f"{other}/set.sqlite")

    assert play(place, [begin, nothing]) == []


def test_a_row_that_names_a_new_database_that_is_held(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stubborn(monkeypatch, "stubborn", 3)

    def begin(work: Path) -> None:
        write(work, TWO, OWN)
        put(work, "Movies/stubborn")
        execute(work, "Movies", ADD, "Movies/stubborn")
        execute(work, TWO, ADD, "Movies/set.sqlite")

    assert play(place, [begin, nothing]) == []


@pytest.mark.parametrize("target", ["Movies/b", f"{TWO}/b"])
def test_new_data_in_a_renamed_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    Stubborn(monkeypatch, "stubborn", 3)
    marker = f"{TWO}/DONE/1"

    def begin(work: Path) -> None:
        put(work, "Movies/a/1")
        write(work, TWO, OWN)

    def turn(work: Path) -> None:
        (work / "Movies/a").rename(work / target)
        put(work, f"{target}/stubborn", marker)
        execute(work, TWO, ADD, f"{target}/stubborn")

    def is_wrong() -> bool:
        is_promised = target.startswith(TWO) and (place.store / marker).exists()
        return is_promised and not (place.store / target / "stubborn").exists()

    acts = [begin, nothing, nothing, turn, *[nothing] * 3]
    assert play(place, acts, is_wrong) == []


def test_the_project_waits_for_a_new_name_however_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds.ProjectWait, "is_over", lambda *_: True)

    def begin(work: Path) -> None:
        put(work, "Movies/a/1")
        tell(work, ADD, "first")

    def turn(work: Path) -> None:
        (work / "Movies/a/1").rename(work / "Movies/a/2")
        put(work, *MOVIES)
        tell(work, ADD, MOVIES[9], "Movies/a/2")

    assert play(place, [begin, nothing, nothing, turn, *[nothing] * 3]) == []


def test_the_project_waits_for_a_runs_new_name_however_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds.ProjectWait, "is_over", lambda *_: True)
    new = "Runs/000009_New"

    def begin(work: Path) -> None:
        write(work, TWO, OWN)
        tell(work, ADD, OWN)

    def turn(work: Path) -> None:
        execute(work, TWO, REMOVE, OWN)
        tell(work, REMOVE, OWN)
        (work / TWO).rename(work / new)
        tell(work, ADD, f"{new}/extra/own")
        put(work, "first")

    assert play(place, [begin, nothing, nothing, turn, *[nothing] * 3]) == []


def test_another_database_does_not_use_up_the_projects_patience(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "_PATIENCE_SECONDS", 0.0)
    Stubborn(monkeypatch, "stubborn", 3)
    many = [f"Movies/{n:02d}" for n in range(40)]

    def begin(work: Path) -> None:
        write(work, TWO, OWN)
        tell(work, ADD, "first")

    def burst(work: Path) -> None:
        put(work, *many)
        execute(work, "Movies", ADD, many[-1])

    def turn(work: Path) -> None:
        put(work, f"{TWO}/extra/stubborn")
        tell(work, ADD, f"{TWO}/extra/stubborn")

    acts = [begin, nothing, nothing, burst, *[nothing] * 7, turn, *[nothing] * 3]
    assert play(place, acts) == []


@pytest.mark.parametrize("top", ["Movies", f"{ONE}/extra"])
@pytest.mark.parametrize("is_project", [False, True])
def test_a_rename_that_is_put_off_again_while_snapshots_wait(
    place: Place, monkeypatch: pytest.MonkeyPatch, top: str, is_project: bool
) -> None:
    """It is too dear to be copied; who names the new name was to be pushed before it."""
    monkeypatch.setattr(planning, "_COPIED_AT_MOST", 3)

    def begin(work: Path) -> None:
        put(work, f"{top}/a/1", f"{top}/c/1", f"{TWO}/p/1")
        write(work, TWO, OWN)
        write(work, THREE, f"{THREE}/extra/own")
        if is_project:
            tell(work, ADD, "first")

    def first(work: Path) -> None:
        (work / top / "c/1").rename(work / top / "c/2")
        put(work, "first")

    def second(work: Path) -> None:
        put(work, *MOVIES)
        if is_project:
            (work / TWO / "p/1").rename(work / TWO / "p/2")
            tell(work, ADD, "second")
        else:
            (work / top / "a/1").rename(work / top / "a/2")
            execute(work, THREE, ADD, f"{top}/a/2")
        execute(work, "Runs/000005_E", ADD, MOVIES[9], f"{top}/c/2")

    assert play(place, [begin, *[nothing] * 5, first, second, *[nothing] * 3]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Movies", "Films"),
        ("Movies/a", "Movies/b"),
        (ONE, "Runs/000007_X"),
        (f"{ONE}/a", "Movies/b"),
        ("Movies/a", f"{ONE}/b"),
    ],
)
def test_a_directory_with_a_database_is_renamed(place: Place, old: str, new: str) -> None:
    def begin(work: Path) -> None:
        put(work, f"{old}/d/1", "Movies/keep", f"{ONE}/keep")
        write(work, TWO, OWN)
        execute(work, f"{old}/d", ADD, "first")
        execute(work, TWO, ADD, f"{old}/d/1")
        tell(work, ADD, f"{old}/d/1", "first")

    def turn(work: Path) -> None:
        execute(work, TWO, REMOVE, f"{old}/d/1")
        tell(work, REMOVE, f"{old}/d/1")
        (work / old).rename(work / new)
        put(work, f"{new}/d/2")
        execute(work, f"{new}/d", ADD, f"{new}/d/2")
        execute(work, TWO, ADD, f"{new}/d/1")
        tell(work, ADD, f"{new}/d/1", f"{new}/d/2")
        execute(work, THREE, ADD, f"{new}/d/2")

    assert play(place, [begin, *[nothing] * 4, turn, *[nothing] * 3]) == []
