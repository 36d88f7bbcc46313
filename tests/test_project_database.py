"""The project's database names files of all runs: what waits for what, and nothing for ever."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync import batch, holds, local, planning, push, snapshot, transfer
from onesync.core.plan import Difference
from onesync.errors import Exit
from onesync.push import Push
from onesync.snapshot import Taken
from tests.campaign.life import PORTION, Life, Place
from tests.test_steady_load import (
    EXTRA,
    ONE,
    TWO,
    Act,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    rename,
    rows,
    write,
)

__all__ = ["copies"]

pytestmark = pytest.mark.usefixtures("small_portions")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ten seconds always be over."""
    monkeypatch.setattr(holds, "_PATIENCE_SECONDS", 0.0)


def tell(work: Path, statement: str, *names: str) -> None:
    """Change rows of the project's database."""
    with closing(sqlite3.connect(work / "project.sqlite")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS item (path TEXT PRIMARY KEY)")
        database.executemany(statement, [(name,) for name in names])


def named(folder: Path) -> set[str]:
    """Return what the rows of the project's database name."""
    found = folder / "project.sqlite"
    if not found.exists():
        return set()
    with closing(sqlite3.connect(f"file:{found}?mode=ro&immutable=1", uri=True)) as opened:
        return {path for (path,) in opened.execute("SELECT path FROM item")}


class Restless:
    """A file that changes whenever it is copied, while ``on``, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int = 10**9) -> None:
        self.on = True
        self.copied = 0
        self.each: Callable[[], None] = lambda: None
        bring, path = transfer.transfer, os.fsencode(name)

        def never(replica: Any, difference: Difference, *more: Any) -> object:
            if self.on and difference.path == path and self.copied < times:
                self.each()
                self.copied += 1
                return None
            return bring(replica, difference, *more)

        monkeypatch.setattr(push, "transfer", never)


def lacking(store: Path, wrong: list[set[str]]) -> Callable[[], None]:
    """Return a look that adds what rows name and OneData does not hold."""

    def look() -> None:
        if gone := {name for name in named(store) if not (store / name).exists()}:
            wrong.append(gone)

    return look


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("how", ["removal", "rename"])
def test_what_the_held_database_names_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A new file beside the runs holds it back: for as long removals and renames wait."""
    restless = Restless(monkeypatch, "log")
    item = f"{EXTRA}/item"
    wrong: list[set[str]] = []

    def begin(work: Path) -> None:
        put(work, item, f"{EXTRA}/other")
        tell(work, "INSERT INTO item VALUES (?)", item)

    def turn(work: Path) -> None:
        put(work, "log")
        tell(work, "DELETE FROM item WHERE path = ?", item)
        if how == "removal":
            (work / item).unlink()
        else:
            (work / item).rename(work / f"{item}.new")

    def still(work: Path) -> None:
        put(work, f"{EXTRA}/more_{restless.copied}")
        tell(work, "INSERT OR REPLACE INTO item VALUES (?)", f"{EXTRA}/other")

    def end(_: Path) -> None:
        restless.on = False

    acts: list[Act] = [begin, nothing, nothing, turn, *[still] * 4, end]
    act_and_look(place, acts, lacking(place.store, wrong))
    assert wrong == []


@pytest.mark.usefixtures("patience")
def test_while_it_is_busy_a_run_that_renames_goes_on(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, renamed, later, marker = (
        [f"{TWO}/extra/item_{n}" for n in range(2)],
        f"{TWO}/extra/renamed",
        f"{TWO}/extra/later",
        f"{TWO}/DONE/1",
    )
    seen: list[tuple[bool, ...]] = []

    def begin(work: Path) -> None:
        write(work, TWO, *items)
        tell(work, "INSERT INTO item VALUES (?)", items[0])

    def lock(work: Path) -> None:
        tell(work, "INSERT INTO item VALUES (?)", "x")
        copies.busy, copies.patience = "project.sqlite", 200
        rename(work, TWO, items[0], renamed)

    def take(source: bytes, target: bytes) -> Taken:
        if copies.busy:
            there = rows(place.store, TWO)
            seen.append((renamed in there, later in there, (place.store / marker).exists()))
            if copies.patience == 150 and not (place.work / later).exists():
                write(place.work, TWO, later)
                put(place.work, marker)
        return copies.take(source, target)

    monkeypatch.setattr(snapshot, "_take_one", take)
    act_and_look(place, [begin, nothing, nothing, lock], lambda: None, at_rest=True)
    assert seen[-1] == (True, True, True)


def test_a_file_that_changes_in_one_run_holds_back_no_other_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = f"{ONE}/extra/log"
    restless = Restless(monkeypatch, log)
    restless.on = False
    items, new = [f"{TWO}/extra/item_{n}" for n in range(2)], f"{TWO}/extra/renamed"
    seen: list[tuple[bool, bool]] = []

    def begin(work: Path) -> None:
        put(work, log, f"{ONE}/extra/other")
        write(work, TWO, *items)
        tell(work, "INSERT INTO item VALUES (?)", items[0])

    def turn(work: Path) -> None:
        restless.on = True
        (work / log).write_bytes(b"more")
        put(work, f"{ONE}/extra/more")
        tell(work, "INSERT INTO item VALUES (?)", "x")
        rename(work, TWO, items[0], new)
        put(work, f"{TWO}/DONE/1")

    def still(work: Path) -> None:
        put(work, f"{ONE}/extra/more_{len(seen)}")
        tell(work, "INSERT INTO item VALUES (?)", f"x{len(seen)}")
        there = new in rows(place.store, TWO), (place.store / TWO / "DONE/1").exists()
        seen.append(there)

    def end(_: Path) -> None:
        restless.on = False

    acts: list[Act] = [begin, *[nothing] * 3, turn, *[still] * 10, end]
    act_and_look(place, acts, lambda: None)
    assert seen[5] == (True, True)


@pytest.mark.parametrize("why", ["taken", "held"])
def test_what_became_a_marker_stays_until_that_has_come(
    place: Place, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """OneData has it whole only under the name that something new took here."""
    Restless(monkeypatch, f"{EXTRA}/restless", times=8)
    item, marker = f"{EXTRA}/item", f"{ONE}/DONE/item"
    carry_out = Push.carry_out
    lost: list[int] = []
    batches: list[int] = []

    def begin(work: Path) -> None:
        put(work, f"{ONE}/DONE/first", f"{EXTRA}/other")
        (work / item).write_bytes(b"precious")

    def turn(work: Path) -> None:
        (work / item).rename(work / marker)
        (work / item).write_bytes(b"anew")
        if why == "taken":
            (place.store / marker).write_bytes(b"somebody else's")
        else:
            put(work, f"{EXTRA}/restless")
        batches.append(0)

    def carried_out(self: Push, *arguments: Any) -> object:
        if batches:
            look()
            batches.append(len(batches))
            if len(batches) == 6 and why == "taken":
                (place.store / marker).unlink()
                os.utime(place.work / marker, (2, 2))
        return carry_out(self, *arguments)

    def look() -> None:
        found = (path for path in place.store.rglob("*") if path.is_file())
        if batches and not any(path.read_bytes() == b"precious" for path in found):
            lost.append(len(batches))

    monkeypatch.setattr(Push, "carry_out", carried_out)
    act_and_look(place, [begin, nothing, nothing, turn], look)
    assert len(batches) > 6
    assert lost == []
    assert (place.store / marker).read_bytes() == b"precious"
    assert (place.store / item).read_bytes() == b"anew"


@pytest.mark.usefixtures("patience")
def test_dear_renames_in_one_run_under_load_starve_no_other(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_COPIED_AT_MOST", 3)
    many = 60
    items = [f"{TWO}/extra/item_{n}" for n in range(many)]
    known: list[tuple[int, int]] = []

    def begin(work: Path) -> None:
        put(work, *items)
        tell(work, "INSERT INTO item VALUES (?)", "begin")

    def load(work: Path) -> None:
        number = len(known)
        write(work, ONE, *(f"{EXTRA}/load_{number}_{n}" for n in range(2)))
        (work / items[number]).rename(work / f"{items[number]}.renamed")
        tell(work, "INSERT INTO item VALUES (?)", f"{number}")
        known.append((len(rows(place.store, ONE)), len(named(place.store))))

    acts: list[Act] = [begin, *[nothing] * (many // PORTION + 3), *[load] * many]
    act_and_look(place, acts, lambda: None)
    middle, last = known[many // 2], known[-1]
    assert last[0] > middle[0], known
    assert last[1] > middle[1], known


@pytest.mark.usefixtures("patience")
def test_what_did_not_change_holds_no_removal(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a journal that stays it is copied again and again, and is not pushed."""
    restless = Restless(monkeypatch, f"{EXTRA}/stack")
    old = f"{TWO}/extra/old"
    kept: list[sqlite3.Connection] = []
    stood: list[bool] = []

    def each() -> None:
        os.utime(place.work / "project.sqlite-journal")
        stood.append((place.store / old).exists())
        restless.on = len(stood) < 60

    restless.each = each

    def begin(work: Path) -> None:
        put(work, old, f"{TWO}/extra/other")
        database = sqlite3.connect(work / "project.sqlite", isolation_level=None)
        database.execute("PRAGMA journal_mode=PERSIST")
        database.execute("CREATE TABLE item (path TEXT PRIMARY KEY)")
        database.execute("INSERT INTO item VALUES ('x')")
        kept.append(database)

    def turn(work: Path) -> None:
        put(work, f"{EXTRA}/stack")
        (work / old).unlink()

    act_and_look(place, [begin, nothing, nothing, turn], lambda: None, at_rest=True)
    kept.pop().close()
    assert len(stood) == 60
    assert not stood[-1]


@pytest.mark.parametrize("seconds", [1.0, 11.0])
def test_slow_batches_do_not_use_up_the_patience(
    place: Place, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    Restless(monkeypatch, f"{EXTRA}/new", times=3)
    now = [1000.0]
    carry_out = Push.carry_out
    wrong: list[set[str]] = []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    def carried_out(self: Push, *arguments: Any) -> object:
        now[0] += seconds
        return carry_out(self, *arguments)

    def turn(work: Path) -> None:
        put(work, f"{EXTRA}/new")
        tell(work, "INSERT INTO item VALUES (?)", f"{EXTRA}/new")

    def more(work: Path) -> None:
        put(work, f"{EXTRA}/b{now[0]}")

    for module in (holds, batch, planning):
        monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(Push, "carry_out", carried_out)
    acts: list[Act] = [lambda work: put(work, f"{EXTRA}/a"), nothing, turn, *[more] * 3]
    act_and_look(place, acts, lacking(place.store, wrong))
    assert wrong == []
    assert f"{EXTRA}/new" in named(place.store)


def test_a_clock_of_births_that_is_ahead_takes_no_only_copy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    born, carry_out = local._birth_of, Push.carry_out
    item, kept = f"{EXTRA}/item", f"{EXTRA}/kept"
    batches: list[int] = []
    lost: list[int] = []

    def ahead(fd: int) -> int | None:
        known = born(fd)
        return None if known is None else known + 500_000_000

    def begin(work: Path) -> None:
        put(work, f"{EXTRA}/other")
        (work / item).write_bytes(b"precious")

    def turn(work: Path) -> None:
        time.sleep(0.6)  # or the change that a rename is would be before the birth
        (place.store / kept).write_bytes(b"somebody else's")
        (work / item).rename(work / kept)
        (work / item).write_bytes(b"anew")
        batches.append(0)

    def carried_out(self: Push, *arguments: Any) -> object:
        if batches:
            found = [path.read_bytes() for path in place.store.rglob("*") if path.is_file()]
            lost.extend([len(batches)] if b"precious" not in found else [])
            batches.append(len(batches))
        return carry_out(self, *arguments)

    def free(work: Path) -> None:
        (place.store / kept).unlink()
        (work / kept).chmod(0o600)

    monkeypatch.setattr(local, "_birth_of", ahead)
    monkeypatch.setattr(Push, "carry_out", carried_out)
    acts = [begin, turn, nothing, free, nothing]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert len(batches) > 3
    assert lost == []
    assert (place.store / kept).read_bytes() == b"precious"


@pytest.mark.parametrize("run", [ONE, TWO])
def test_the_intent_of_a_postponed_removal_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(push, "_PORTION_FILES", 1000)
    restless = Restless(monkeypatch, f"{ONE}/extra/new", times=10)
    old = f"{run}/extra/old"

    def each() -> None:
        tell(place.work, "INSERT INTO item VALUES (?)", f"{restless.copied}")

    restless.each = each

    def begin(_: object) -> None:
        put(place.work, old, f"{TWO}/extra/x", f"{ONE}/extra/x")
        tell(place.work, "INSERT INTO item VALUES (?)", old)
        execute(place.work, ONE, "INSERT INTO item VALUES (?)", old)

    def turn(_: object) -> None:
        put(place.work, f"{ONE}/extra/new")
        tell(place.work, "DELETE FROM item WHERE path = ?", old)
        execute(place.work, ONE, "DELETE FROM item WHERE path = ?", old)
        (place.work / old).unlink()

    life = Life(place, [begin, turn]).live()
    assert life.failed_as == []
    assert life.end is Exit.CLEAN, life.error
    assert not list(place.store.rglob("*~gone*"))
