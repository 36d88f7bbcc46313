"""A program that never pauses: it acts within the cut and the push, between any two of their steps.

Whatever it did, once it rests OneData must hold what the working copy holds, without a rescan or a
flush: every mark that a cut took was pushed in its newest state, or marked again.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync import snapshot
from onesync.batch import Batches
from onesync.core.model import STATUS_FOLDER
from onesync.core.ordering import SIDECARS
from onesync.cut import Cuts
from onesync.errors import Exit
from onesync.pins import Pins
from onesync.push import Push
from tests.campaign.life import Life, Place, bring_in_portions

RUNS = ("Runs/000001_Import", "Runs/000002_Align")
STEPS: tuple[tuple[object, str], ...] = (
    (Cuts, "_look"),
    (Cuts, "_freeze"),
    (Cuts, "_keep_what_went"),
    (Cuts, "_sort_out"),
    (Pins, "add"),
    (snapshot, "_take_one"),
    (Push, "_transfer"),
    (Push, "_bring"),
    (Push, "_publish_all"),
    (Push, "_second_halves"),
)
"""Before and after each of these the program may act."""
ROUNDS = 12
ACTS_IN_A_BATCH = 8
MOST_BATCHES = 500


class Program:
    """Does what it does at random; a deed that cannot be done is none."""

    def __init__(self, place: Place, chance: random.Random, mode: str) -> None:
        self._work = place.work
        self._chance = chance
        self._mode = mode
        self._opened: dict[str, tuple[sqlite3.Connection, int]] = {}
        self._count = 0

    def act(self) -> None:
        """Do something."""
        deeds: list[Callable[[], None]] = [
            self._new,
            self._new,
            self._rewrite,
            self._append,
            self._delete,
            self._rename,
            self._link,
            self._insert,
            self._insert,
            self._insert,
            self._drop,
            self._mark,
            self._make_directory,
            self._remove_tree,
            self._rename_directory,
            self._close,
            self._remove_database,
        ]
        self._count += 1
        try:
            self._chance.choice(deeds)()
        except (OSError, sqlite3.Error, IndexError):
            return

    def close(self) -> None:
        for opened, _ in self._opened.values():
            opened.close()

    def _number(self, most: int) -> int:
        return self._chance.randrange(most)

    def _run(self) -> Path:
        return self._work / self._chance.choice(RUNS)

    def _some(self) -> Path:
        files = (path for path in (self._work / "Runs").rglob("*") if path.is_file())
        return self._chance.choice(sorted(path for path in files if "sqlite" not in path.name))

    def _some_directory(self) -> Path:
        return self._run() / "extra" / self._chance.choice(["sub", "d0", "d1", "d2"])

    def _new(self) -> None:
        path = self._run() / self._chance.choice(["extra", "tmp", "extra/sub"])
        path.mkdir(parents=True, exist_ok=True)
        (path / f"f{self._number(6)}").write_bytes(b"x" * self._number(9000))

    def _rewrite(self) -> None:
        self._some().write_bytes(self._chance.randbytes(self._number(9000)))

    def _append(self) -> None:
        with self._some().open("ab") as file:
            file.write(self._chance.randbytes(100))

    def _delete(self) -> None:
        self._some().unlink()

    def _rename(self) -> None:
        path = self._some()
        path.rename(path.with_name(f"f{self._number(6)}"))

    def _link(self) -> None:
        path = self._some()
        name = path.with_name(f"h{self._number(3)}")
        name.unlink(missing_ok=True)
        os.link(path, name)

    def _mark(self) -> None:
        path = self._run() / "extra" / "DONE" / f"m{self._number(4)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def _make_directory(self) -> None:
        self._some_directory().mkdir(parents=True, exist_ok=True)

    def _remove_tree(self) -> None:
        shutil.rmtree(self._some_directory(), ignore_errors=True)

    def _rename_directory(self) -> None:
        path = self._some_directory()
        path.rename(path.with_name(f"d{self._number(3)}"))

    def _database(self) -> str:
        names = [f"{run}/set{number}.sqlite" for run in RUNS for number in range(2)]
        return self._chance.choice([*names, "project.sqlite"])

    def _insert(self) -> None:
        self._open(self._database()).execute("INSERT INTO item VALUES (?)", (str(self._count),))

    def _drop(self) -> None:
        oldest = "SELECT rowid FROM item LIMIT 2"
        self._open(self._database()).execute(f"DELETE FROM item WHERE rowid IN ({oldest})")

    def _close(self) -> None:
        self._opened.pop(self._chance.choice(sorted(self._opened)))[0].close()

    def _remove_database(self) -> None:
        name = self._chance.choice(sorted(self._opened))
        self._opened.pop(name)[0].close()
        (self._work / name).unlink()

    def _open(self, name: str) -> sqlite3.Connection:
        path = self._work / name
        if name in self._opened:
            opened, inode = self._opened[name]
            if path.exists() and path.stat().st_ino == inode:
                return opened
            opened.close()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for suffix in SIDECARS:  # or SQLite would take them for those of the new one
                Path(os.fsdecode(os.fsencode(path) + suffix)).unlink(missing_ok=True)
        opened = sqlite3.connect(path, isolation_level=None)
        opened.execute(f"PRAGMA journal_mode={self._mode}")
        # One that has no rows at all keeps its last good version for half a minute.
        opened.executescript(
            "CREATE TABLE IF NOT EXISTS item (path TEXT);"
            "CREATE TABLE IF NOT EXISTS always (one);"
            "INSERT INTO always SELECT 1 WHERE NOT EXISTS (SELECT * FROM always);"
        )
        self._opened[name] = opened, path.stat().st_ino
        return opened


class Storm:
    """One life beside such a program."""

    def __init__(self, place: Place, seed: int, mode: str) -> None:
        self.place = place
        self.chance = random.Random(seed)
        self.program = Program(place, self.chance, mode)
        self.differences: dict[str, tuple[object, object]] = {}
        self.life = Life(place, [self._rest] * ROUNDS)
        self._left = 0
        self._is_acting = False

    def _rest(self, life: Life) -> None:
        """Compare, and begin again."""
        life.watcher.tell()
        if len(life.engine.marks):
            return
        batches = life.engine._batches
        for task in batches.tidying.going if batches is not None else ():
            task.result()
        self.differences = differ(self.place)
        if self.differences:
            life.engine.stop()
            return
        for _ in range(self.chance.randint(1, 4)):
            self._act(life)
        self._left = ACTS_IN_A_BATCH

    def _act(self, life: Life) -> None:
        self.program.act()
        life.watcher.tell()  # the kernel tells each deed by itself

    def disturb(self) -> None:
        """Act perhaps, where the daemon is now."""
        if self._is_acting or self._left <= 0 or self.chance.random() > 0.35:
            return
        self._is_acting = True
        for _ in range(self.chance.randint(1, 2)):
            self._left -= 1
            self._act(self.life)
        self._is_acting = False


def differ(place: Place) -> dict[str, tuple[object, object]]:
    """Return where OneData differs from the working copy, databases by their rows."""
    one, two = dict(_contents(place.work, "mode=ro")), dict(_contents(place.store, "immutable=1"))
    paths = sorted(one.keys() | two.keys())
    return {
        path: (one.get(path), two.get(path)) for path in paths if one.get(path) != two.get(path)
    }


def _contents(top: Path, how: str) -> Iterator[tuple[str, object]]:
    sidecars = tuple(map(os.fsdecode, SIDECARS))
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        is_ours = name.startswith(os.fsdecode(STATUS_FOLDER))
        if is_ours or name.endswith(sidecars) or path.is_symlink():
            continue
        if path.is_dir():
            yield name, "a directory"
        elif name.endswith(".sqlite"):
            with closing(sqlite3.connect(f"file:{path}?{how}", uri=True)) as database:
                yield name, sorted(database.execute("SELECT path FROM item").fetchall())
        else:
            yield name, path.read_bytes()


def _disturbed(storm: Storm, step: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        storm.disturb()
        answer = step(*arguments, **options)
        storm.disturb()
        return answer

    return call


RENAMED_MARKERS = 1391
"""Markers change their names in turn beside a directory that is renamed: none may wait for ever."""


def weather(place: Place, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str) -> None:
    """Live through one storm."""
    storm = Storm(place, seed, mode)
    batches: list[int] = []
    batch = Batches.batch

    def counted(self: Batches, *, everything: bool = False) -> bool:
        batches.append(1)
        assert len(batches) < MOST_BATCHES, "it never rests"
        return batch(self, everything=everything)

    bring_in_portions(monkeypatch)
    monkeypatch.setattr(Batches, "batch", counted)
    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, _disturbed(storm, getattr(owner, name)))
    try:
        life = storm.life.live()
    finally:
        storm.program.close()
    assert storm.differences == {}
    assert life.end is Exit.CLEAN, life.error


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", [*range(20), RENAMED_MARKERS])
def test_after_some_storms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    weather(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_after_many_storms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    weather(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode)
