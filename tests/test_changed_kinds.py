"""What changes its kind stays while a database that does not come may still name what it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from onesync import planning
from onesync.batch import Batches
from onesync.errors import Exit
from tests import test_named_databases
from tests.campaign.life import Life, Place
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
ALWAYS = f"{THREE}/a"
"""A row that stays: a database without any is being rebuilt, and waits for half a minute."""
in_portions = pytest.mark.usefixtures("small_portions")


def looked_for(place: Place, run: str) -> tuple[Callable[[], None], list[str], list[str]]:
    """Return what looks at the rows of ``run``'s database, which names are no files, and all."""
    return test_named_databases.looked_for(place, run, Path.is_file)


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
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

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
        execute(work, THREE, "INSERT INTO item VALUES (?)", begin(work, "directory"), ALWAYS)
        make_database(work, "other.sqlite")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = THREE, 6
        forget(work, THREE, OLD)
        change(work, "directory")
        execute(work, run, "INSERT INTO item VALUES (?)", NEWER)

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 8], look)
    assert [wrong for _, wrong, _ in looks] == [[], []]
    assert NEWER in looks[1][2]


@in_portions
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_snapshot_that_waits_names_stays(place: Place, kind: str) -> None:
    """Data of many files hold the snapshots back; the newer database does not name the old file."""
    look, wrong, seen = looked_for(place, ONE)

    def first(work: Path) -> None:
        execute(work, ONE, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

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
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

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


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The planning's clock: a second goes by with each batch."""
    now = [1000.0]
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: now[0]))
    batch = Batches._batch

    def second(batches: Batches, everything: bool) -> bool:
        now[0] += 1
        return batch(batches, everything)

    monkeypatch.setattr(Batches, "_batch", second)
    return now


def test_what_is_named_for_long_is_waited_for_no_longer(
    place: Place, copies: Copies, seconds: list[float]
) -> None:
    """The database is locked for as long as anybody looks."""
    came: list[float] = []

    def first(work: Path) -> None:
        execute(work, TWO, "INSERT INTO item VALUES (?)", begin(work, "directory"), ALWAYS)

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


def first_held_back(work: Path) -> None:
    put(work, OLD, f"{ONE}/a", f"{THREE}/a")
    execute(work, ONE, "INSERT INTO item VALUES (?)", OLD, f"{ONE}/a")


def hold_back(work: Path) -> None:
    put(work, CHANGING)
    execute(work, ONE, "INSERT INTO item VALUES (?)", CHANGING)


def turn_and_name(work: Path) -> None:
    forget(work, ONE, OLD)
    change(work, "directory")
    execute(work, ONE, "INSERT INTO item VALUES (?)", NEWER)


def test_a_database_and_what_it_names_do_not_wait_for_each_other(
    place: Place, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was held back once, names the old thing in OneData, and now what takes its place."""
    changing(monkeypatch, CHANGING)[0] = 1
    came: list[float] = []

    def changes(work: Path) -> None:
        turn_and_name(work)
        came.append(seconds[0])

    def load(work: Path) -> None:
        put(work, f"{THREE}/x{seconds[0]}")
        if NEWER in rows(place.store, ONE):
            came.append(seconds[0])

    acts = [first_held_back, nothing, nothing, hold_back, changes, *[load] * 10]
    act_and_look(place, acts, lambda: None)
    assert came[1] - came[0] < 5


def test_a_final_flush_needs_no_second_try(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(monkeypatch, CHANGING)[0] = 1

    def changes(work: Path) -> None:
        turn_and_name(work)
        life.engine.stop()

    acts = [first_held_back, nothing, nothing, hold_back, changes]

    def act(_: object = None) -> None:
        if acts:
            acts.pop(0)(place.work)

    life = Life(place, [act] * len(acts))
    life.told_commit = act
    life.live()
    assert not acts
    assert life.end is Exit.CLEAN, life.error
    assert NEWER in rows(place.store, ONE)
    assert life.failed_as == []
    assert "backing_off" not in life.phases


def test_kinds_that_change_all_the_time_starve_no_marker(
    place: Place, copies: Copies, seconds: list[float]
) -> None:
    """A database that names the last of them is locked for as long as anybody looks."""
    marker = f"{ONE}/DONE/1"
    times: list[float] = []
    left = list(range(60))

    def first(work: Path) -> None:
        put(work, *[f"{ONE}/extra/old{n}" for n in left], f"{THREE}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{ONE}/extra/old59")

    def lock(work: Path) -> None:
        copies.busy, copies.patience = TWO, 100_000
        execute(work, TWO, "INSERT INTO item VALUES (?)", "x")

    def load(work: Path) -> None:
        number = left.pop(0)
        (work / f"{ONE}/extra/old{number}").unlink()
        put(work, f"{ONE}/extra/old{number}/newer")
        (work / f"{THREE}/a").write_bytes(b"%d" % number)

    def mark(work: Path) -> None:
        put(work, marker)
        times.append(seconds[0])
        load(work)

    def free(_: Path) -> None:
        copies.busy = None

    def look() -> None:
        if times and (place.store / marker).exists():
            times.append(seconds[0])

    acts = [first, *[nothing] * 30, lock, *[load] * 4, mark, *[load] * 40, free]
    act_and_look(place, acts, look)
    assert 2 < times[1] - times[0] < 15


def test_a_link_beneath_comes_before_the_row_that_names_it(place: Place, copies: Copies) -> None:
    link = f"{OLD}/link"
    known: list[bool] = []

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", f"{ONE}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 4
        forget(work, TWO, OLD)
        (work / OLD).unlink()
        (work / OLD).mkdir()
        (work / link).symlink_to("../a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", link)

    acts: list[Callable[[Path], None]] = [first, nothing, nothing, changes, *[nothing] * 4]

    def act(_: object = None) -> None:
        if acts:
            acts.pop(0)(place.work)

    def committed() -> None:
        if link in rows(place.store, ONE):
            known.append(life.engine._index.known(link.encode()) is not None)
        act()

    life = Life(place, [act] * len(acts))
    life.told_commit = committed
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert known
    assert all(known)


def test_what_changes_its_kind_again_later_waits_again(
    place: Place, copies: Copies, seconds: list[float]
) -> None:
    look, wrong, seen = looked_for(place, TWO)

    def later(_: Path) -> None:
        seconds[0] += 60

    def again(work: Path) -> None:
        copies.busy, copies.patience = TWO, 4
        forget(work, TWO, NEWER)
        change(work, "file")
        put(work, f"{ONE}/x", f"{THREE}/x")

    acts: list[Callable[[Path], None]] = [
        lambda work: put(work, OLD, f"{ONE}/a", f"{THREE}/a"),
        nothing,
        lambda work: change(work, "directory"),
        *[nothing] * 2,
        lambda work: execute(work, TWO, "INSERT INTO item VALUES (?)", NEWER, f"{THREE}/a"),
        nothing,
        later,
        again,
        *[nothing] * 8,
    ]
    act_and_look(place, acts, look)
    assert NEWER in seen
    assert wrong == []


@in_portions
@pytest.mark.parametrize("many", [0, 12])
@pytest.mark.usefixtures("seconds")
def test_a_locked_database_is_waited_for_beside_snapshots_that_wait(
    place: Place, copies: Copies, many: int
) -> None:
    look, wrong, seen = looked_for(place, TWO)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", f"{ONE}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 6
        forget(work, TWO, OLD)
        change(work, "directory")
        put(work, *[f"{OLD}/many{n}" for n in range(many)])
        write(work, THREE, *[f"{THREE}/many{n}" for n in range(12)])
        execute(work, ONE, "INSERT INTO item VALUES (?)", NEWER)

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 12], look)
    assert OLD in seen
    assert wrong == []


@pytest.mark.usefixtures("seconds")
def test_a_locked_database_in_a_renamed_run_is_waited_for(place: Place, copies: Copies) -> None:
    new = f"{TWO}_b"
    looks = [looked_for(place, TWO), looked_for(place, new)]

    def look() -> None:
        for one, _, _ in looks:
            one()

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = "000002_Align", 6
        forget(work, TWO, OLD)
        (work / TWO).rename(work / new)
        change(work, "directory")
        put(work, f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 12], look)
    assert [wrong for _, wrong, _ in looks] == [[], []]


@pytest.mark.parametrize("how", ["renamed", "renamed and touched", "renamed directory"])
@pytest.mark.usefixtures("seconds")
def test_what_is_renamed_into_what_waits_stands_somewhere_meanwhile(
    place: Place, copies: Copies, how: str
) -> None:
    inner = "/y" if how == "renamed directory" else ""
    old, new = f"{ONE}/x", f"{OLD}/x"
    lost: list[int] = []
    begun: list[int] = []

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a")
        (work / old).parent.mkdir(exist_ok=True)
        put(work, old + inner)
        (work / (old + inner)).write_bytes(b"the only one")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 6
        forget(work, TWO, OLD)
        (work / OLD).unlink()
        (work / OLD).mkdir()
        (work / old).rename(work / new)
        if how == "renamed and touched":
            os.utime(work / new, (1, 1))
        put(work, f"{THREE}/x")
        begun.append(1)

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{len(begun)}")
        begun.append(1)

    acts = [first, nothing, nothing, changes, *[load] * 10]

    def act(_: object = None) -> None:
        if acts:
            acts.pop(0)(place.work)

    def committed() -> None:
        found = [place.store / (name + inner) for name in (old, new)]
        if begun and b"the only one" not in [p.read_bytes() for p in found if p.is_file()]:
            lost.append(len(begun))
        act()

    life = Life(place, [act] * len(acts))
    life.told_commit = committed
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert life.failed_as == []
    assert lost == []
    assert (place.store / new).exists()
    assert not (place.store / old).exists()


def held_back_first(work: Path, run: str, kind: str) -> None:
    """Let another kind of thing stand there, and rows name what holds their database back."""
    forget(work, run, named(kind))
    change(work, kind)
    execute(work, run, "INSERT INTO item VALUES (?)", CHANGING)
    put(work, CHANGING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [TWO, ONE, PROJECT])
def test_what_a_database_names_that_waits_from_now_on_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, run: str, kind: str
) -> None:
    look, wrong, seen = looked_for(place, run)
    left = changing(monkeypatch, CHANGING)

    def first(work: Path) -> None:
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

    def changes(work: Path) -> None:
        held_back_first(work, run, kind)

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 8], look)
    assert left == [0]
    assert CHANGING in seen
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_database_names_that_a_flush_holds_back_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    look, wrong, seen = looked_for(place, ONE)
    left = changing(monkeypatch, CHANGING)

    def first(work: Path) -> None:
        execute(work, ONE, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

    def changes(work: Path) -> None:
        held_back_first(work, ONE, kind)
        life.engine.stop()

    acts: list[Callable[[Path], None]] = [first, nothing, nothing, changes]

    def act(_: object = None) -> None:
        look()
        if acts:
            acts.pop(0)(place.work)

    life = Life(place, [act] * len(acts))
    life.told_commit = act
    life.live()
    look()
    assert life.end is Exit.CLEAN, life.error
    assert left == [0]
    assert CHANGING in seen
    assert wrong == []


@in_portions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [ONE, PROJECT])
def test_what_a_database_names_stays_that_waits_for_many_files(
    place: Place, run: str, kind: str
) -> None:
    """They are too many for one batch."""
    look, wrong, seen = looked_for(place, run)
    many = [f"{ONE}/extra/many_{number}" for number in range(110)]

    def first(work: Path) -> None:
        execute(work, run, "INSERT INTO item VALUES (?)", begin(work, kind), ALWAYS)

    def changes(work: Path) -> None:
        forget(work, run, named(kind))
        change(work, kind)
        put(work, *many)
        execute(work, run, "INSERT INTO item VALUES (?)", *many)

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 20], look)
    assert set(many) <= set(seen)
    assert wrong == []
