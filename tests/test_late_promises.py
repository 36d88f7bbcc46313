"""Promises beside a backlog: whatever is told of, renamed or in the way, their data come first."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from onesync import batch, push
from onesync.batch import Batches
from onesync.core.plan import Difference
from onesync.errors import Exit
from onesync.push import Push
from onesync.replica.folder import FolderReplica
from onesync.settings import BatchSettings, Settings
from tests.campaign.life import Life, Place
from tests.test_steady_load import (
    EXTRA,
    LOAD,
    MANY,
    ONE,
    act_and_look,
    execute,
    live,
    nothing,
    put,
    rows,
)

pytestmark = pytest.mark.usefixtures("small_portions")

ITEMS = [f"{EXTRA}/item_{n:02}" for n in range(30)]
MARKER = f"{ONE}/DONE/1"


class Quick(Place):
    """A node whose batches take what changed at once: of a steady load some is always due."""

    def settings(self) -> Settings:
        quick = BatchSettings(settle_seconds=0)
        return replace(super().settings(), batch=quick)


@pytest.mark.parametrize("is_overflow", [False, True], ids=["touched", "overflow"])
@pytest.mark.parametrize("has_rows", [False, True], ids=["a marker", "rows"])
def test_what_is_told_of_between_cut_and_push(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_overflow: bool, has_rows: bool
) -> None:
    """It was not looked at, and is in no backlog any more: it is late all the same."""
    wrong: list[str] = []
    happened: list[int] = []
    identify = Batches._identify

    def told(batches: Batches) -> None:
        identify(batches)
        backlog = batches.marks.backlog()
        if not backlog or happened:
            return
        happened.append(1)
        monkeypatch.setattr(push, "_PORTION_FILES", 1000)  # there is time for all that was taken
        if is_overflow:
            life.watcher.overflow()
        for path in () if is_overflow else backlog:
            os.utime(os.path.join(os.fsencode(place.work), path))
        life.watcher.tell()

    def begin(_: Life) -> None:
        put(place.work, *ITEMS)
        if has_rows:
            execute(place.work, ONE, "INSERT INTO item VALUES (?)", *ITEMS)
        else:
            put(place.work, MARKER)

    def look() -> None:
        is_marked = (place.store / MARKER).exists()
        promised = rows(place.store, ONE) | (set(ITEMS) if is_marked else set())
        wrong.extend(name for name in promised if not (place.store / name).exists())

    monkeypatch.setattr(Batches, "_identify", told)
    life = Life(place, [begin, lambda _: None])
    life.told_commit = look
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert happened
    assert wrong == []


@pytest.mark.parametrize("how", ["renamed", "copied", "with their directory"])
def test_a_marker_waits_for_its_data_under_whatever_name(place: Place, how: str) -> None:
    final = f"{ONE}/final"
    wrong: list[str] = []

    def turn(work: Path) -> None:
        if how == "with their directory":
            (work / EXTRA).rename(work / final)
            return
        (work / final).mkdir()
        for name in MANY:
            new = work / final / os.path.basename(name)
            shutil.copy(work / name, new) if how == "copied" else (work / name).rename(new)
            (work / name).unlink(missing_ok=True)

    def look() -> None:
        for name in MANY if (place.store / MARKER).exists() else ():
            both = (name, f"{final}/{os.path.basename(name)}")
            if not any((place.store / one).exists() for one in both):
                wrong.append(name)

    act_and_look(place, [lambda work: put(work, *MANY, MARKER), turn, nothing, nothing], look)
    assert wrong == []
    assert (place.store / MARKER).exists()


def test_a_row_that_names_a_directory_waits_for_what_is_late_in_it(place: Place) -> None:
    """The row is taken back, the directory renamed, and a row names the new one."""
    old, new = f"{EXTRA}/d", f"{EXTRA}/e"
    items = [f"{old}/part_{n:02}" for n in range(12)]
    wrong: list[str] = []

    def begin(work: Path) -> None:
        put(work, *items)
        execute(work, ONE, "INSERT INTO item VALUES (?)", old)

    def turn(work: Path) -> None:
        execute(work, ONE, "DELETE FROM item WHERE path = ?", old)
        (work / old).rename(work / new)
        execute(work, ONE, "INSERT INTO item VALUES (?)", new)

    def look() -> None:
        for name in rows(place.store, ONE):
            there = len(os.listdir(place.store / name)) if (place.store / name).exists() else 0
            if there < len(items):
                wrong.append(f"{name}: {there}")

    act_and_look(place, [begin, turn, nothing, nothing], look)
    assert wrong == []
    assert rows(place.store, ONE) == {new}


def test_names_that_are_still_to_be_unlinked_are_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else is to be done: the engine must not run in circles."""
    both = [f"{EXTRA}/first_{n}" for n in range(2)]
    released, meets = threading.Event(), threading.Event()
    unlink, pushed = FolderReplica.unlink, Batches._push
    pushes: list[int] = []

    def waits(replica: FolderReplica, path: bytes) -> None:
        if b"extra" in path:
            meets.set()
            assert released.wait(20)
        unlink(replica, path)

    def counted(batches: Batches, *arguments: object) -> bool:
        if meets.is_set():
            pushes.append(1)
            if len(pushes) > 30:
                released.set()
        return pushed(batches, *arguments)  # type: ignore[arg-type]

    def again(work: Path) -> None:
        assert meets.wait(20)
        put(work, *both)
        threading.Timer(1.0, released.set).start()

    def clear(work: Path) -> None:
        for name in both:
            (work / name).unlink()

    monkeypatch.setattr(FolderReplica, "unlink", waits)
    monkeypatch.setattr(Batches, "_push", counted)
    acts = [lambda work: put(work, *both), nothing, clear, nothing, again, nothing]
    live(place, acts, at_rest=True)
    assert len(pushes) <= 30
    assert all((place.store / name).exists() for name in both)


@pytest.mark.parametrize("load", [1, 2, 3, 4])
def test_steady_data_starve_no_replaced_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: int
) -> None:
    """Each file takes 0.1 s of a batch's 0.5, and only so many new ones come meanwhile."""

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    bring, whole = Push._bring, Batches.batch

    def takes_long(self: Push, difference: Difference) -> object:
        Clock.now += 0.1
        return bring(self, difference)

    def told(batches: Batches, *, everything: bool = False) -> bool:
        batches.cuts.drain()  # the kernel tells at once
        return whole(batches, everything=everything)

    monkeypatch.setattr(push, "_PORTION_FILES", 1000)
    monkeypatch.setattr(batch, "_LOOKED_AT_ONCE", 1000)
    monkeypatch.setattr(push, "time", Clock)
    monkeypatch.setattr(Push, "_bring", takes_long)
    monkeypatch.setattr(Batches, "batch", told)
    place = Quick.make(tmp_path)
    status = f"{EXTRA}/status"
    came: list[bytes] = []

    def fill(work: Path) -> None:
        put(work, *(f"{EXTRA}/item_{len(came)}_{n}" for n in range(load)))
        came.append((place.store / status).read_bytes())
        if len(came) == 2:
            (work / status).write_bytes(b"new")

    live(place, [lambda work: put(work, status), nothing, *[fill] * LOAD])
    assert came[-1] == b"new"
