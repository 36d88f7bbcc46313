"""A database that names another one that names a file: what goes, goes from the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync import snapshot
from onesync.replica.folder import FolderReplica
from onesync.snapshot import Taken
from tests.campaign.life import Place
from tests.test_databases_that_go import counted
from tests.test_named_databases import OLD, changing, looked_for, make_database
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

__all__ = ["copies", "counted"]
NAMED = f"{TWO}/set.sqlite"
"""Its row names OLD, and the row of another database names it."""
pytestmark = pytest.mark.usefixtures("small_portions")


@pytest.fixture
def wrong(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the rows that name nothing, found after whatever changes the folder."""
    found: list[str] = []

    def looks(operation: Callable[..., object]) -> Callable[..., object]:
        def looked(replica: FolderReplica, *arguments: object, **more: object) -> object:
            result = operation(replica, *arguments, **more)
            found.extend(without_files(place.store, TWO, THREE))
            return result

        return looked

    for name in ("rename", "remove", "unlink"):
        monkeypatch.setattr(FolderReplica, name, looks(getattr(FolderReplica, name)))
    return found


def begin(work: Path) -> None:
    put(work, OLD, f"{TWO}/a", f"{THREE}/a")
    execute(work, TWO, "INSERT INTO item VALUES (?)", OLD)
    execute(work, THREE, "INSERT INTO item VALUES (?)", NAMED)


def lose_file(work: Path) -> None:
    (work / OLD).unlink()
    put(work, f"{ONE}/x")


def lose_database(work: Path) -> None:
    execute(work, THREE, "DELETE FROM item WHERE path = ?", NAMED)
    (work / NAMED).unlink()


def both_go(work: Path) -> None:
    lose_database(work)
    lose_file(work)


def test_beside_a_busy_one(place: Place, copies: Copies, wrong: list[str]) -> None:
    def busy(work: Path) -> None:
        copies.busy, copies.patience = THREE, 6
        both_go(work)

    look, dangling, seen = looked_for(place, THREE)
    act_and_look(place, [begin, nothing, nothing, busy, *[nothing] * 6], look)
    assert NAMED in seen
    assert wrong == dangling == []
    assert not (place.store / NAMED).exists()
    assert not (place.store / OLD).exists()


@pytest.mark.parametrize("delay", range(4))
def test_beside_a_snapshot_that_waits(place: Place, wrong: list[str], delay: int) -> None:
    late = [name.replace(ONE, THREE) for name in MANY]

    def burst(work: Path) -> None:
        write(work, THREE, *late)

    acts = [begin, *[nothing] * 4, burst, *[nothing] * delay, both_go, *[nothing] * 8]
    act_and_look(place, acts, lambda: None)
    assert wrong == []
    assert not (place.store / NAMED).exists()
    assert not (place.store / OLD).exists()


def test_just_after_the_other_one_was_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    take, waits = snapshot._take_one, [False]

    def taken(source: bytes, target: bytes) -> Taken:
        found = take(source, target)
        if waits[0] and THREE in os.fsdecode(source):
            waits[0] = False
            both_go(place.work)
        return found

    monkeypatch.setattr(snapshot, "_take_one", taken)

    def write_more(work: Path) -> None:
        waits[0] = True
        write(work, THREE, f"{THREE}/b")

    act_and_look(place, [begin, nothing, nothing, write_more, *[nothing] * 6], lambda: None)
    assert not waits[0]
    assert wrong == []
    assert not (place.store / NAMED).exists()
    assert not (place.store / OLD).exists()


def test_one_that_is_renamed_is_not_waited_for(place: Place) -> None:
    """It stands in OneData under its old name, and who may name it goes on."""

    def start(work: Path) -> None:
        write(work, ONE, f"{ONE}/a")
        make_database(work, f"{ONE}/old.sqlite")

    def rename(work: Path) -> None:
        (work / f"{ONE}/old.sqlite").rename(work / f"{ONE}/new.sqlite")
        write(work, ONE, f"{ONE}/b")

    acts = [start, nothing, nothing, nothing, rename, *[nothing] * 4]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert (place.store / f"{ONE}/new.sqlite").exists()
    assert rows(place.store, ONE) == {f"{ONE}/a", f"{ONE}/b"}


@pytest.mark.parametrize("how", ["a file", "in a directory", "out of what goes"])
def test_one_that_only_gets_another_name_stands_all_the_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A file of the run that it goes to changes, so it cannot come there at once."""
    changing(monkeypatch, f"{THREE}/extra/missing")
    inner = {"a file": "set.sqlite", "in a directory": "dir/set.sqlite"}.get(how, "top/set.sqlite")
    names = [f"{TWO}/{inner}", f"{THREE}/set.sqlite", f"{THREE}/dir/set.sqlite"]
    stands: list[bool] = []

    def look(_: object = None) -> None:
        stands.append(any((place.store / name).exists() for name in names))

    def start(work: Path) -> None:
        put(work, OLD, f"{TWO}/a", f"{TWO}/b", f"{THREE}/a")
        execute(work, str(Path(names[0]).parent), "INSERT INTO item VALUES (?)", OLD)

    def lose(work: Path) -> None:
        lose_file(work)
        (work / TWO / "a").rename(work / TWO / "c")
        stands.clear()

    def rename(work: Path) -> None:
        put(work, f"{THREE}/extra/missing")
        moved = Path(names[0]).parent.name if how == "in a directory" else "set.sqlite"
        (work / names[0] if moved == "set.sqlite" else work / TWO / moved).rename(
            work / THREE / moved
        )
        if how == "out of what goes":
            shutil.rmtree(work / TWO / "top")

    acts = [start, *[nothing] * 3, lose, rename, *[look] * 6]
    act_and_look(place, acts, look)
    assert stands
    assert all(stands)
    assert any((place.store / name).exists() for name in names[1:])
