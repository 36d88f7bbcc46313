"""A cut takes all marks: what it did not bring in its newest state is marked again."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onesync import snapshot
from onesync.batch import Batches
from onesync.engine import Engine
from onesync.errors import Exit
from onesync.snapshot import Taken
from tests.campaign.life import Life, Place
from tests.node import SOON, Node
from tests.test_steady_load import (
    EXTRA,
    ONE,
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

__all__ = ["copies"]

INSERT = "INSERT INTO item VALUES (?)"
DELETE = "DELETE FROM item WHERE path = ?"
FIRST, SECOND, LATE = (f"{EXTRA}/{name}" for name in ("first", "second", "late"))
JOURNALS = pytest.mark.parametrize("mode", ["WAL", "DELETE"])


class Program:
    """Keeps its database open, as Scipion does; in WAL mode the file itself does not change."""

    def __init__(self) -> None:
        self._opened: list[sqlite3.Connection] = []

    def begin(self, work: Path, mode: str) -> None:
        (work / ONE).mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(work / ONE / "set.sqlite", isolation_level=None)
        self._opened.append(opened)
        opened.execute(f"PRAGMA journal_mode={mode}")
        opened.execute("CREATE TABLE item (path TEXT PRIMARY KEY)")

    def do(self, statement: str, *names: str) -> None:
        for name in names:
            self._opened[0].execute(statement, (name,))

    def empty_log(self) -> None:
        self._opened[0].execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    yield program
    program.close()


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[Life]:
    """Every life that is lived."""
    found: list[Life] = []
    live = Life.live

    def lived(self: Life) -> Life:
        found.append(self)
        return live(self)

    monkeypatch.setattr(Life, "live", lived)
    return found


def after_snapshots(monkeypatch: pytest.MonkeyPatch, act: Callable[[bytes], None]) -> None:
    """Call ``act`` with each database just after it was copied."""
    take = snapshot._take_one

    def taken(source: bytes, target: bytes) -> Taken:
        copied = take(source, target)
        act(source)
        return copied

    monkeypatch.setattr(snapshot, "_take_one", taken)


@JOURNALS
def test_what_was_locked_once_is_tried_again(
    place: Place, copies: Copies, program: Program, mode: str
) -> None:
    seen: list[set[str]] = []

    def begin(work: Path) -> None:
        program.begin(work, mode)
        put(work, FIRST)
        program.do(INSERT, FIRST)

    def busy(work: Path) -> None:
        copies.busy, copies.patience = "set.sqlite", 1
        put(work, SECOND)
        program.do(INSERT, SECOND)

    def look(_: Path) -> None:
        seen.append(rows(place.store, ONE))

    act_and_look(place, [begin, nothing, busy, nothing, nothing, look], lambda: None, at_rest=True)
    assert copies.busy is None, "it was locked"
    assert seen == [{FIRST, SECOND}]


@JOURNALS
def test_what_is_locked_holds_the_removals_of_what_it_named(
    place: Place, copies: Copies, program: Program, mode: str
) -> None:
    wrong: set[str] = set()

    def begin(work: Path) -> None:
        program.begin(work, mode)
        put(work, FIRST, SECOND)
        program.do(INSERT, FIRST, SECOND)

    def busy(work: Path) -> None:
        copies.busy, copies.patience = "set.sqlite", 3
        program.do(DELETE, SECOND)
        (work / SECOND).unlink()

    def look() -> None:
        wrong.update(without_files(place.store, ONE, is_there=Path.is_file))

    act_and_look(place, [begin, nothing, busy, nothing], look, at_rest=True)
    assert not wrong
    assert rows(place.store, ONE) == {FIRST}


@JOURNALS
def test_nothing_is_undeployed_while_a_database_is_locked(
    place: Place, copies: Copies, program: Program, mode: str
) -> None:
    def begin(_: Life) -> None:
        program.begin(place.work, mode)
        put(place.work, FIRST)
        program.do(INSERT, FIRST)

    def last(_: Life) -> None:
        copies.busy, copies.patience = "set.sqlite", 500
        put(place.work, SECOND)
        program.do(INSERT, SECOND)

    life = Life(place, [begin, lambda _: None, last]).live()
    assert life.end is not Exit.CLEAN or rows(place.store, ONE) == {FIRST, SECOND}


@pytest.mark.parametrize("mode", ["WAL", "PERSIST"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_commit_beside_the_last_look_is_in_the_last_checkpoint(
    place: Place, monkeypatch: pytest.MonkeyPatch, program: Program, mode: str, call: int
) -> None:
    brings_more = Engine._brings_more
    left: list[str] = []
    calls: list[int] = []

    def told(self: Engine, batches: Batches) -> bool:
        calls.append(1)
        if len(calls) == call:  # somebody only opens it
            self.marks.changed(os.fsencode(f"{ONE}/set.sqlite"))
            left.append(FIRST)
        return brings_more(self, batches)

    def commit(_: bytes) -> None:
        if left:
            program.do(INSERT, left.pop())

    def begin(_: Life) -> None:
        program.begin(place.work, mode)
        put(place.work, FIRST, SECOND)
        program.do(INSERT, SECOND)
        program.empty_log()  # or it would be known that nothing changed

    monkeypatch.setattr(Engine, "_brings_more", told)
    after_snapshots(monkeypatch, commit)
    life = Life(place, [begin, lambda _: None]).live()
    assert len(calls) >= call
    assert not left
    assert life.end is Exit.CLEAN, life.error
    assert rows(place.store, ONE) == {FIRST, SECOND}


@JOURNALS
@pytest.mark.parametrize("how", ["path", "tree", "overflow"])
def test_a_commit_after_the_snapshot_comes_however_it_is_told(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    program: Program,
    lives: list[Life],
    mode: str,
    how: str,
) -> None:
    left: list[str] = []
    seen: list[set[str]] = []

    def commit(_: bytes) -> None:
        if not left:
            return
        program.do(INSERT, left.pop())
        watcher = lives[0].watcher
        if how == "overflow":
            watcher.overflow()
        elif how == "tree":
            watcher.start()
            lives[0].engine.marks.tree_changed(os.fsencode(ONE))

    def begin(work: Path) -> None:
        program.begin(work, mode)
        put(work, FIRST, LATE)
        program.do(INSERT, FIRST)

    def turn(work: Path) -> None:
        left.append(LATE)
        put(work, SECOND)
        program.do(INSERT, SECOND)

    def look(_: Path) -> None:
        seen.append(rows(place.store, ONE))

    after_snapshots(monkeypatch, commit)
    act_and_look(place, [begin, nothing, turn, nothing, look], lambda: None, at_rest=True)
    assert not left
    assert seen == [{FIRST, SECOND, LATE}]


@pytest.mark.parametrize("how", ["path", "overflow"])
def test_a_database_that_goes_after_its_snapshot_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch, lives: list[Life], how: str
) -> None:
    left: list[bool] = []
    stored = place.store / TWO / "set.sqlite"

    def go(source: bytes) -> None:
        if left and os.fsencode(TWO) in source:
            left.pop()
            os.unlink(source)
            if how == "overflow":
                lives[0].watcher.overflow()

    def turn(work: Path) -> None:
        left.append(True)
        execute(work, TWO, INSERT, "x")

    def look(_: Path) -> None:
        deadline = time.monotonic() + SOON  # it goes beside the batches
        while stored.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    after_snapshots(monkeypatch, go)
    acts = [lambda work: write(work, ONE, FIRST), turn, nothing, look]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert not left


def test_a_mode_that_is_given_after_the_snapshot_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, lives: list[Life]
) -> None:
    left: list[int] = []
    seen: list[int] = []

    def change(source: bytes) -> None:
        if left:
            os.chmod(source, left.pop())

    def turn(work: Path) -> None:
        left.append(0o600)
        write(work, ONE, SECOND)

    def look(_: Path) -> None:
        known = lives[0].engine._index.known(os.fsencode(f"{ONE}/set.sqlite"))
        assert known is not None
        seen.append(known.entry.mode)

    after_snapshots(monkeypatch, change)
    acts = [lambda work: write(work, ONE, FIRST), nothing, turn, nothing, look]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert not left
    assert seen == [0o600]


def test_a_file_that_became_a_directory_in_a_renamed_one_does_not_hold_it_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    batch = Batches.batch
    inner = f"{EXTRA}/new/first/deep/inner"

    def counted(self: Batches, *, everything: bool = False) -> bool:
        batches.append(1)
        assert len(batches) < 200, "it never ends"
        return batch(self, everything=everything)

    def begin(work: Path) -> None:
        write(work, ONE, f"{EXTRA}/sub/first", f"{EXTRA}/sub/second")

    def turn(work: Path) -> None:
        (work / EXTRA / "sub").rename(work / EXTRA / "new")
        (work / EXTRA / "new" / "first").unlink()
        put(work, inner)
        execute(work, ONE, INSERT, inner)

    monkeypatch.setattr(Batches, "batch", counted)
    act_and_look(place, [begin, nothing, turn, nothing], lambda: None, at_rest=True)
    assert (place.store / inner).is_file()


@pytest.mark.parametrize("is_pushed", [True, False])
def test_a_directory_that_takes_the_name_of_a_removed_one_brings_its_content(
    nodes: list[Node], is_pushed: bool
) -> None:
    """One that is new has, mostly, the number of the removed one."""
    one, _ = nodes
    one.configure(batch__settle_seconds=0.2)
    one.deploy()
    extra = one.work / EXTRA
    put(one.work, f"{EXTRA}/out/old", *([f"{EXTRA}/out.tmp/new"] if is_pushed else []))
    assert one.flush() == 0, one.log()
    shutil.rmtree(extra / "out")
    if not is_pushed:
        put(one.work, f"{EXTRA}/out.tmp/new")
    (extra / "out.tmp").rename(extra / "out")
    deadline = time.monotonic() + SOON
    while _files(one.store / EXTRA) != ["out/new"]:
        assert time.monotonic() < deadline, (_files(one.store / EXTRA), one.log())
        time.sleep(0.05)
    one.end(signal.SIGKILL)


def _files(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())
