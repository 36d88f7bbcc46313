"""What turned stays for rows that name it, and nothing is lost, starves or circles meanwhile."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onesync.core.model import RelPath
from onesync.errors import Exit
from onesync.leftovers import Leftovers
from onesync.outcome import Outcome
from onesync.push import Push
from onesync.settings import PushSettings, Settings
from tests.campaign.life import Life, Place
from tests.test_changed_kinds import (
    ALWAYS,
    NEWER,
    change,
    forget,
    held_back_first,
    in_portions,
    looked_for,
    seconds,
    turn_and_name,
)
from tests.test_named_databases import CHANGING, OLD, changing, make_database
from tests.test_steady_load import (
    EXTRA,
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

__all__ = ["copies", "seconds"]
ONLY = b"the only one"


def stands(place: Place) -> bool:
    """Whether the only copy stands anywhere in OneData."""
    return any(p.read_bytes() == ONLY for p in place.store.rglob("*") if p.is_file())


@in_portions
@pytest.mark.parametrize("how", ["locked", "late", "changing"])
@pytest.mark.usefixtures("seconds")
def test_a_database_that_waited_and_does_not_come_then(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    look, wrong, seen = looked_for(place, ONE)
    changing(monkeypatch, CHANGING)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", OLD, ALWAYS)

    def changes(work: Path) -> None:
        turn_and_name(work)
        put(work, f"{THREE}/x")

    def hold(work: Path) -> None:
        put(work, f"{THREE}/y")
        if how == "locked":
            copies.busy, copies.patience = ONE, 4
        else:
            write(work, ONE, *(MANY if how == "late" else [CHANGING]))

    act_and_look(place, [first, nothing, nothing, changes, hold, *[nothing] * 12], look)
    assert OLD in seen
    assert NEWER in seen
    assert wrong == []


def test_a_rename_into_what_waits_and_its_database_do_not_wait_for_each_other(
    place: Place, copies: Copies, seconds: list[float]
) -> None:
    old, new = f"{ONE}/extra/x", f"{OLD}/x"
    came: list[float] = []
    tries: list[int] = []

    def first(work: Path) -> None:
        put(work, OLD, old, f"{ONE}/a", f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", OLD, f"{ONE}/a")

    def changes(work: Path) -> None:
        forget(work, ONE, OLD)
        (work / OLD).unlink()
        (work / OLD).mkdir()
        (work / old).rename(work / new)
        execute(work, ONE, "INSERT INTO item VALUES (?)", new)
        put(work, f"{THREE}/x")
        came.append(seconds[0])
        tries.append(copies.tries)

    def load(work: Path) -> None:
        put(work, f"{THREE}/x{seconds[0]}")

    def look() -> None:
        if new in rows(place.store, ONE):
            came.append(seconds[0])
            tries.append(copies.tries)

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 14], look)
    assert came[1] - came[0] < 5, (came[1] - came[0], tries[1] - tries[0])


def lost_while(
    place: Place, first: Callable[[Path], None], changes: Callable[[Path], None]
) -> list[float]:
    lost: list[float] = []
    begun: list[int] = []

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{len(begun)}")
        begun.append(1)

    def change_it(work: Path) -> None:
        changes(work)
        begun.append(1)

    def look() -> None:
        if begun and not stands(place):
            lost.append(len(begun))

    act_and_look(place, [first, nothing, nothing, change_it, *[load] * 10], look)
    assert stands(place)
    return lost


def begin_locked(work: Path) -> None:
    put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a")
    execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{TWO}/a")


def lock_and_turn(work: Path, copies: Copies) -> None:
    copies.busy, copies.patience = TWO, 6
    forget(work, TWO, OLD)
    (work / OLD).unlink()
    (work / OLD).mkdir()


@pytest.mark.usefixtures("seconds")
def test_from_a_directory_that_turned_into_what_waits(place: Place, copies: Copies) -> None:
    folder = f"{THREE}/extra/d"

    def first(work: Path) -> None:
        begin_locked(work)
        put(work, f"{folder}/x")
        (work / folder / "x").write_bytes(ONLY)

    def changes(work: Path) -> None:
        lock_and_turn(work, copies)
        (work / folder / "x").rename(work / OLD / "x")
        os.utime(work / OLD / "x", (1, 1))
        (work / folder).rmdir()
        put(work, folder)

    assert lost_while(place, first, changes) == []


@pytest.mark.usefixtures("seconds")
def test_what_has_its_name_now_does_not_replace_it(place: Place, copies: Copies) -> None:
    old = f"{ONE}/extra/x"

    def first(work: Path) -> None:
        begin_locked(work)
        put(work, old)
        (work / old).write_bytes(ONLY)

    def changes(work: Path) -> None:
        lock_and_turn(work, copies)
        (work / old).rename(work / OLD / "x")
        (work / old).write_bytes(b"another one")

    assert lost_while(place, first, changes) == []


@pytest.mark.usefixtures("seconds")
def test_a_database_that_moved_into_what_waits_is_not_revoked(place: Place, copies: Copies) -> None:
    lost: list[int] = []
    begun: list[int] = []
    old, new = f"{ONE}/other.sqlite", f"{OLD}/other.sqlite"

    def first(work: Path) -> None:
        begin_locked(work)
        put(work, f"{ONE}/data")
        make_database(work, old, "x")

    def changes(work: Path) -> None:
        lock_and_turn(work, copies)
        (work / old).rename(work / new)
        with closing(sqlite3.connect(work / new)) as database, database:
            database.execute("INSERT INTO item VALUES ('y')")
        (work / ONE / "data").write_bytes(b"other data")
        begun.append(1)

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{len(begun)}")
        begun.append(1)

    def look() -> None:
        if begun and not ((place.store / old).exists() or (place.store / new).exists()):
            lost.append(len(begun))

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 10], look)
    assert (place.store / new).exists()
    assert lost == []


def test_what_is_moved_out_all_the_time_starves_no_marker(
    place: Place, seconds: list[float]
) -> None:
    marker = f"{ONE}/DONE/1"
    times: list[float] = []
    left = list(range(60))

    def first(work: Path) -> None:
        put(work, *[f"{EXTRA}/d{n}/x" for n in left], f"{EXTRA}/e/first", f"{THREE}/a")

    def load(work: Path) -> None:
        number = left.pop(0)
        (work / EXTRA / f"d{number}/x").rename(work / EXTRA / f"e/x{number}")
        (work / EXTRA / f"d{number}").rmdir()
        (work / EXTRA / f"d{number}").symlink_to("e")
        (work / THREE / "a").write_bytes(b"%d" % number)

    def mark(work: Path) -> None:
        put(work, marker)
        times.append(seconds[0])
        load(work)

    def look() -> None:
        if times and (place.store / marker).exists():
            times.append(seconds[0])

    acts = [first, *[nothing] * 30, *[load] * 4, mark, *[load] * 40]
    act_and_look(place, acts, look)
    assert times[1] - times[0] < 15, (times[1] - times[0], left)


@pytest.mark.usefixtures("seconds")
def test_a_link_leads_to_what_turned(place: Place, copies: Copies) -> None:
    link = f"{TWO}/extra/l"
    wrong: list[str] = []

    def look() -> None:
        if link in without_files(
            place.store, TWO, is_there=lambda _: (place.store / OLD).is_file()
        ):
            wrong.append(link)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a", f"{TWO}/extra/b")
        (work / link).symlink_to("../../000001_Import/extra/old")
        execute(work, TWO, "INSERT INTO item VALUES (?)", link, f"{TWO}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 6
        forget(work, TWO, link)
        (work / link).unlink()
        change(work, "directory")
        put(work, f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 10], look)
    assert wrong == []


@pytest.mark.parametrize("what", ["run", "database", "slow database"])
def test_what_a_database_that_is_deleted_names_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    look, wrong, seen = looked_for(place, TWO)
    unlink = Leftovers._unlink

    def slowly(leftovers: Leftovers, paths: list[RelPath]) -> None:
        time.sleep(0.5)
        unlink(leftovers, paths)

    if what == "slow database":
        monkeypatch.setattr(Leftovers, "_unlink", slowly)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")

    def changes(work: Path) -> None:
        if what == "run":
            shutil.rmtree(work / TWO)
        else:
            (work / TWO / "set.sqlite").unlink()
        change(work, "directory")
        put(work, f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 6], look)
    assert seen
    assert wrong == []


def test_what_waits_for_a_renamed_run_goes_when_that_came(
    place: Place, copies: Copies, seconds: list[float]
) -> None:
    new = f"{TWO}_b"
    came: list[float] = []

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{THREE}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = "000002_Align", 4
        forget(work, TWO, OLD)
        (work / TWO).rename(work / new)
        change(work, "directory")
        put(work, f"{THREE}/x")

    def load(work: Path) -> None:
        put(work, f"{THREE}/x{seconds[0]}")

    def look() -> None:
        found = rows(place.store, new)
        if not came and found and OLD not in found:
            came.append(seconds[0])
        if len(came) == 1 and (place.store / NEWER).exists():
            came.append(seconds[0])

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 20], look)
    assert came[1] - came[0] < 3, came


@pytest.mark.parametrize("what", ["beneath", "itself"])
@pytest.mark.usefixtures("seconds")
def test_what_a_database_names_that_has_to_stay_stays(
    place: Place, copies: Copies, what: str
) -> None:
    folder = f"{EXTRA}/p"
    look, wrong, seen = looked_for(place, folder)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{THREE}/y", f"{TWO}/a", f"{folder}/b")
        execute(work, folder, "INSERT INTO item VALUES (?)", f"{THREE}/y")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{TWO}/a")

    def changes(work: Path) -> None:
        copies.busy, copies.patience = TWO, 6
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{ONE}/a")
        if what == "beneath":
            shutil.rmtree(work / folder)
            put(work, folder)
        else:
            (work / folder / "set.sqlite").unlink()
            (work / folder / "set.sqlite").symlink_to("nowhere")
        (work / THREE / "y").unlink()
        put(work, f"{THREE}/x")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 10], look)
    assert seen
    assert wrong == []


@in_portions
@pytest.mark.usefixtures("seconds")
def test_snapshots_that_wait_longer_than_ten_seconds(place: Place) -> None:
    look, wrong, seen = looked_for(place, ONE)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", OLD, ALWAYS)

    def late(work: Path) -> None:
        write(work, ONE, *[f"{EXTRA}/m{n}" for n in range(80)])

    def changes(work: Path) -> None:
        forget(work, ONE, OLD)
        change(work, "directory")

    act_and_look(place, [first, nothing, nothing, late, changes, *[nothing] * 40], look)
    assert seen
    assert wrong == []


def moves_out(work: Path, kind: str) -> None:
    forget(work, ONE, f"{EXTRA}/d/x")
    (work / EXTRA / "d/x").rename(work / EXTRA / "e/x")
    (work / EXTRA / "d").rmdir()
    if kind == "link":
        (work / EXTRA / "d").symlink_to("e")
    else:
        put(work, f"{EXTRA}/d")
    execute(work, ONE, "INSERT INTO item VALUES (?)", f"{EXTRA}/e/x")


def before_moving_out(work: Path) -> None:
    put(work, f"{EXTRA}/d/x", f"{EXTRA}/e/first", f"{ONE}/a", f"{THREE}/a")
    execute(work, ONE, "INSERT INTO item VALUES (?)", f"{EXTRA}/d/x", f"{ONE}/a")


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_rename_out_of_what_turned_and_its_database_do_not_wait_for_each_other(
    place: Place, copies: Copies, seconds: list[float], kind: str
) -> None:
    look_at, wrong, _seen = looked_for(place, ONE)
    came: list[float] = []
    tries: list[int] = []

    def changes(work: Path) -> None:
        moves_out(work, kind)
        put(work, f"{THREE}/x")
        came.append(seconds[0])
        tries.append(copies.tries)

    def load(work: Path) -> None:
        put(work, f"{THREE}/x{seconds[0]}")

    def look() -> None:
        look_at()
        if f"{EXTRA}/e/x" in rows(place.store, ONE):
            came.append(seconds[0])
            tries.append(copies.tries)

    acts = [before_moving_out, nothing, nothing, changes, *[load] * 16]
    act_and_look(place, acts, look)
    assert wrong == []
    assert came[1] - came[0] < 5, (came[1] - came[0], tries[1] - tries[0])


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_final_flush_needs_no_second_try(place: Place, kind: str) -> None:
    def changes(work: Path) -> None:
        moves_out(work, kind)
        life.engine.stop()

    acts = [before_moving_out, nothing, nothing, changes]

    def act(_: object = None) -> None:
        if acts:
            acts.pop(0)(place.work)

    life = Life(place, [act] * len(acts))
    life.told_commit = act
    life.live()
    assert not acts
    assert life.end is Exit.CLEAN, life.error
    assert f"{EXTRA}/e/x" in rows(place.store, ONE)
    assert life.failed_as == []
    assert "backing_off" not in life.phases


class Slow(Place):
    """A node whose large files travel in the smallest of steps."""

    def settings(self) -> Settings:
        return replace(super().settings(), push=PushSettings(round_seconds=1e-9))


@pytest.mark.parametrize("left", ["link", "nothing"])
def test_a_large_file_that_was_moved_away_holds_back_no_marker(
    tmp_path: Path, seconds: list[float], left: str
) -> None:
    place = Slow.make(tmp_path)
    marker = f"{ONE}/DONE/1"
    begun: list[float] = []
    came: list[float] = []
    size = 200 * 2048

    def first(work: Path) -> None:
        put(work, f"{EXTRA}/d/x", f"{ONE}/a", f"{THREE}/a")
        (work / EXTRA / "d/x").write_bytes(os.urandom(size))

    def changes(work: Path) -> None:
        (work / EXTRA / "d").rename(work / EXTRA / "e")
        os.utime(work / EXTRA / "e/x", (1, 1))
        if left == "link":
            (work / EXTRA / "d").symlink_to("e")
        put(work, marker)
        begun.append(seconds[0])

    def look() -> None:
        if begun:
            begun.append(seconds[0])
            if (place.store / marker).exists():
                came.append(seconds[0] - begun[0])

    act_and_look(place, [first, nothing, nothing, changes, nothing, nothing], look, at_rest=True)
    assert (place.store / EXTRA / "e/x").stat().st_size == size
    assert came[0] < 16


def test_scratch_that_turns_holds_back_nobody(place: Place, seconds: list[float]) -> None:
    marker = f"{ONE}/DONE/1"
    times: list[float] = []
    left = list(range(60))

    def first(work: Path) -> None:
        put(work, *[f"{ONE}/tmp/o{n}" for n in left], f"{ONE}/a", f"{THREE}/a")
        execute(work, ONE, "INSERT INTO item VALUES (?)", f"{ONE}/a")

    def load(work: Path) -> None:
        number = left.pop(0)
        (work / ONE / f"tmp/o{number}").unlink()
        (work / ONE / f"tmp/o{number}").symlink_to("nowhere")
        put(work, f"{ONE}/b{number}")
        execute(work, ONE, "INSERT INTO item VALUES (?)", f"{ONE}/b{number}")

    def mark(work: Path) -> None:
        put(work, marker)
        times.append(seconds[0])
        load(work)

    def look() -> None:
        if times and (place.store / marker).exists():
            times.append(seconds[0])

    acts = [first, *[nothing] * 30, *[load] * 6, mark, *[load] * 40]
    act_and_look(place, acts, look)
    assert times[1] - times[0] < 5, times[1] - times[0]


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("how", ["touched", "renamed"])
def test_what_was_moved_into_what_stays_for_a_file_that_changes(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    left = changing(monkeypatch, CHANGING)
    old, new = f"{THREE}/extra/x", f"{OLD}/x"
    failed: list[Exception] = []
    carry_out = Push.carry_out

    def watched(push: Push, *arguments: Any) -> Outcome:
        try:
            return carry_out(push, *arguments)
        except Exception as error:
            failed.append(error)
            raise

    monkeypatch.setattr(Push, "carry_out", watched)

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", old)
        (work / old).write_bytes(ONLY)
        execute(work, ONE, "INSERT INTO item VALUES (?)", OLD, f"{ONE}/a")

    def changes(work: Path) -> None:
        held_back_first(work, ONE, "directory")
        (work / old).rename(work / new)
        if how == "touched":
            os.utime(work / new, (1, 1))

    assert lost_while(place, first, changes) == []
    assert failed == []
    assert left == [0]
    assert (place.store / new).read_bytes() == ONLY
    assert not (place.store / old).exists()
