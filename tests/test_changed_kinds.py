"""What changes its kind stays while a database that does not come may still name what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from onesync import planning
from onesync.batch import Batches
from tests.campaign.life import Place
from tests.test_named_databases import CHANGING, OLD, PROJECT, changing, make_database
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
    write,
)

__all__ = ["copies"]
NEWER = f"{OLD}/newer"
pytestmark = pytest.mark.usefixtures("small_portions")


def looked_for(place: Place, run: str) -> tuple[Callable[[], None], list[str], list[str]]:
    """Return what looks at the rows of ``run``'s database, which names are no files, and all."""
    wrong: list[str] = []
    seen: list[str] = []

    def look() -> None:
        found = rows(place.store, run)
        seen.extend(found)
        wrong.extend(name for name in found if not (place.store / name).is_file())

    return look, wrong, seen


def change(work: Path, kind: str) -> None:
    """Let another kind of thing take the place of what ``begin`` put there."""
    if (work / OLD).is_dir():
        (work / NEWER).unlink()
        (work / OLD).rmdir()
        put(work, OLD)
        return
    (work / OLD).unlink()
    if kind == "directory":
        put(work, NEWER)
    else:
        (work / OLD).symlink_to("nowhere")


def begin(work: Path, kind: str) -> str:
    """Put what is to be another ``kind``; returns what of it rows name."""
    put(work, named(kind), f"{ONE}/a", f"{THREE}/a")
    return named(kind)


def named(kind: str) -> str:
    """Return what rows name before it is another ``kind``."""
    return NEWER if kind == "file" else OLD


def forget(work: Path, run: str, name: str) -> None:
    execute(work, run, "DELETE FROM item WHERE path = ?", name)


KINDS = ["directory", "link", "file"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [TWO, ONE, PROJECT])
def test_what_a_locked_database_names_stays(
    place: Place, copies: Copies, run: str, kind: str
) -> None:
    look, wrong, seen = looked_for(place, run)

    def first(work: Path) -> None:
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind))

    def changes(work: Path) -> None:
        copies.busy, copies.patience = "project.sqlite" if run == PROJECT else run, 6
        forget(work, run, named(kind))
        change(work, kind)
        put(work, f"{ONE}/x", f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 8], look)
    assert seen
    assert wrong == []
    assert ((place.store / OLD).is_dir(), (place.store / OLD).is_file()) == (
        kind == "directory",
        kind == "file",
    )


@pytest.mark.parametrize("run", [TWO, ONE, PROJECT])
def test_rows_that_name_what_took_the_place_wait_with_it(
    place: Place, copies: Copies, run: str
) -> None:
    """The database of the third run names the old file, is locked, and another one the new."""
    looks = [looked_for(place, THREE), looked_for(place, run)]

    def look() -> None:
        for one, _, _ in looks:
            one()

    def first(work: Path) -> None:
        execute(work, THREE, "INSERT INTO item VALUES (?)", begin(work, "directory"))
        make_database(work, "other.sqlite")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = THREE, 6
        forget(work, THREE, OLD)
        change(work, "directory")
        execute(work, run, "INSERT INTO item VALUES (?)", NEWER)

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 8], look)
    assert [wrong for _, wrong, _ in looks] == [[], []]
    assert NEWER in looks[1][2]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_snapshot_that_waits_names_stays(place: Place, kind: str) -> None:
    """Data of many files hold the snapshots back; the newer database does not name the old file."""
    look, wrong, seen = looked_for(place, ONE)

    def first(work: Path) -> None:
        execute(work, ONE, "INSERT INTO item VALUES (?)", begin(work, kind))

    def late(work: Path) -> None:
        write(work, ONE, *MANY)

    def changes(work: Path) -> None:
        forget(work, ONE, named(kind))
        change(work, kind)

    act_and_look(place, [first, nothing, nothing, late, changes, *[nothing] * 8], look)
    assert seen
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [TWO, PROJECT])
def test_what_a_database_names_that_waited_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, run: str, kind: str
) -> None:
    """A new file that changes whenever it is copied holds the databases back."""
    look, wrong, seen = looked_for(place, run)
    left = changing(monkeypatch, CHANGING)

    def first(work: Path) -> None:
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind))

    def names(work: Path) -> None:
        put(work, CHANGING)
        execute(work, run, "INSERT INTO item VALUES (?)", CHANGING)

    def changes(work: Path) -> None:
        forget(work, run, named(kind))
        change(work, kind)
        put(work, f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, names, changes, *[nothing] * 8], look)
    assert left == [0]
    assert seen
    assert wrong == []


def test_what_is_named_for_long_is_waited_for_no_longer(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second goes by with each batch; the database is locked for as long as anybody looks."""
    seconds = [1000.0]
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    batch = Batches._batch
    came: list[float] = []

    def second(batches: Batches, everything: bool) -> bool:
        seconds[0] += 1
        return batch(batches, everything)

    monkeypatch.setattr(Batches, "_batch", second)

    def first(work: Path) -> None:
        execute(work, TWO, "INSERT INTO item VALUES (?)", begin(work, "directory"))

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 1000
        forget(work, TWO, OLD)
        change(work, "directory")
        execute(work, ONE, "INSERT INTO item VALUES (?)", NEWER)
        came.append(seconds[0])

    def load(work: Path) -> None:
        put(work, f"{THREE}/{seconds[0]}")
        if (place.store / NEWER).exists() and NEWER in rows(place.store, ONE):
            came.append(seconds[0])

    def free(_: Path) -> None:
        copies.busy = None

    acts: list[Callable[[Path], None]] = [first, nothing, nothing, changes, *[load] * 30, free]
    act_and_look(place, acts, lambda: None)
    assert 10 <= came[1] - came[0] < 16
