"""A program that keeps its promises: what a row names is there at any moment in the working copy.

So it must be in OneData with every checkpoint, whatever came late, in whichever run, and whatever
was done meanwhile; and what was there once stays while the working copy has it, under any name. The
program does one thing at a time, between any two steps of the cut and the push: a file comes before
the row that names it, and goes after it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from onesync.core.model import Kind, is_user_path
from onesync.errors import Exit
from tests.campaign.life import Life, Place, bring_in_portions
from tests.campaign.test_storm import STEPS, Storm, _disturbed

RUNS = ("Runs/000001_Import", "Runs/000002_Align", "Runs/000003_Extract")
FOLDERS = (*(f"{run}/extra" for run in RUNS), f"{RUNS[0]}/extra/sub", "Movies")
DATABASES = (*(f"{run}/set.sqlite" for run in RUNS), "project.sqlite")

Deed = Callable[[], None]


class Careful:
    """Writes files and rows, links and markers; never leaves a row or marker without its file."""

    def __init__(self, work: Path, chance: random.Random, mode: str) -> None:
        self._work = work
        self._chance = chance
        self._mode = mode
        self._count = 0
        self._next: deque[Deed] = deque()
        self._there: set[str] = set()
        self._links: dict[str, str] = {}

    def act(self) -> None:
        """Do the next thing."""
        while not self._next:
            self._next.extend(self._chance.choice(self._deeds())())
        self._next.popleft()()

    def _deeds(self) -> list[Callable[[], Iterator[Deed]]]:
        """Return what may be begun, the likelier the more often it is there."""
        return [
            *[self._make] * 4,
            *[self._remove, self._rename, self._link, self._replace],
            *[self._append, self._burst, self._rename_folder, self._pass_by],
        ]

    def close(self) -> None:
        """Leave nothing open; nothing is."""

    # -- deeds: each yields its steps --

    def _make(self, folder: str | None = None) -> Iterator[Deed]:
        self._count += 1
        name = f"{folder or self._chance.choice(FOLDERS)}/f{self._count}"
        yield lambda: self._write(name)
        yield lambda: self._insert(name)
        if self._chance.random() < 0.3 and name.startswith("Runs/"):
            yield lambda: self._mark(name)

    def _burst(self) -> Iterator[Deed]:
        folder = self._chance.choice(FOLDERS)
        for _ in range(6):
            yield from self._make(folder)

    def _remove(self) -> Iterator[Deed]:
        name = self._some()
        if name is not None:
            for one in [*self._links_to(name), name]:
                yield from self._take_back(one)
                yield partial(self._unlink, one)

    def _links_to(self, name: str) -> list[str]:
        """Return the links that lead to ``name``, those that lead to others of them first."""
        found: list[str] = []
        for link in [link for link, target in self._links.items() if target == name]:
            found += [*self._links_to(link), link]
        return found

    def _rename(self) -> Iterator[Deed]:
        old = self._some()
        if old is None or old in self._links.values():
            return
        self._count += 1
        new = f"{self._chance.choice(FOLDERS)}/r{self._count}"
        yield from self._take_back(old)
        yield lambda: self._move(old, new)
        if self._chance.random() < 0.5:  # so it is no rename any more, but a new file
            yield lambda: os.utime(self._work / new, (self._count, self._count))
        yield lambda: self._insert(new)

    def _rename_folder(self) -> Iterator[Deed]:
        old = f"{RUNS[0]}/extra/sub"
        inner = [name for name in self._there if name.startswith(old + "/")]
        linked = {*self._links, *self._links.values()}
        if not inner or any(name.startswith(old + "/") for name in linked):
            return
        self._count += 1
        new = f"{RUNS[0]}/extra/sub{self._count}"
        for name in inner:
            yield from self._take_back(name)
        yield lambda: self._move(old, new)
        for name in inner:
            yield partial(self._insert, name.replace(old, new))

    def _link(self) -> Iterator[Deed]:
        targets = sorted(self._there | self._links.keys())
        if not targets:
            return
        target = self._chance.choice(targets)
        self._count += 1
        name = f"{self._chance.choice(RUNS)}/extra/l{self._count}"
        yield lambda: self._symlink(name, target)
        yield lambda: self._insert(name)

    def _replace(self) -> Iterator[Deed]:
        name = self._some()
        if name is not None:
            yield lambda: self._write(name)

    def _append(self) -> Iterator[Deed]:
        name = self._some()
        if name is not None:
            yield lambda: self._grow(name)

    def _pass_by(self) -> Iterator[Deed]:
        self._count += 1
        path = self._work / self._chance.choice(FOLDERS) / f"passing{self._count}"
        yield partial(self._put, path, self._chance.randbytes(10))
        yield path.unlink

    def _take_back(self, name: str) -> Iterator[Deed]:
        for database in DATABASES:
            yield partial(self._delete, database, name)
        yield lambda: self._marker_of(name).unlink(missing_ok=True)

    # -- steps --

    def _some(self) -> str | None:
        return self._chance.choice(sorted(self._there)) if self._there else None

    def _write(self, name: str) -> None:
        draft = self._work / f"{name}.tmp"
        self._put(draft, self._chance.randbytes(self._chance.randrange(1, 9000)))
        draft.rename(self._work / name)
        self._there.add(name)

    def _put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _grow(self, name: str) -> None:
        if name in self._there:
            with (self._work / name).open("ab") as file:
                file.write(self._chance.randbytes(100))

    def _symlink(self, name: str, target: str) -> None:
        path = self._work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(self._work / target, path.parent))
        self._links[name] = target

    def _unlink(self, name: str) -> None:
        (self._work / name).unlink()
        self._there.discard(name)
        self._links.pop(name, None)

    def _move(self, old: str, new: str) -> None:
        (self._work / new).parent.mkdir(parents=True, exist_ok=True)
        (self._work / old).rename(self._work / new)
        moved = {name for name in self._there if f"{name}/".startswith(f"{old}/")}
        self._there = (self._there - moved) | {name.replace(old, new, 1) for name in moved}

    def _marker_of(self, name: str) -> Path:
        return self._work / os.path.dirname(name) / "DONE" / os.path.basename(name)

    def _mark(self, name: str) -> None:
        self._put(self._marker_of(name), b"")

    def _insert(self, name: str) -> None:
        if name in self._there or name in self._links:
            self._execute(self._chance.choice(DATABASES), "INSERT INTO item VALUES (?)", name)

    def _delete(self, database: str, name: str) -> None:
        if (self._work / database).exists():
            self._execute(database, "DELETE FROM item WHERE path = ?", name)

    def _execute(self, database: str, statement: str, name: str) -> None:
        path = self._work / database
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as opened:
            opened.execute(f"PRAGMA journal_mode={self._mode}")
            # One that has no rows at all keeps its last good version for half a minute.
            opened.executescript(
                "CREATE TABLE IF NOT EXISTS item (path TEXT);"
                "CREATE TABLE IF NOT EXISTS always (one);"
                "INSERT INTO always SELECT 1 WHERE NOT EXISTS (SELECT * FROM always);"
            )
            opened.execute(statement, (name,))


class Turning(Careful):
    """Also lets directories and links take the place of files, and files that of directories."""

    def _deeds(self) -> list[Callable[[], Iterator[Deed]]]:
        return [*super()._deeds(), self._turn_to_directory, self._turn_to_link, self._turn_back]

    def _turn_to_directory(self) -> Iterator[Deed]:
        name = self._some()
        if name is not None and not self._links_to(name):
            yield from self._remove_one(name)
            yield from self._make(name)

    def _turn_to_link(self) -> Iterator[Deed]:
        name, target = self._some(), self._some()
        if name is not None and target not in (None, name) and not self._links_to(name):
            yield from self._remove_one(name)
            yield partial(self._symlink, name, str(target))
            yield partial(self._insert, name)

    def _turn_back(self) -> Iterator[Deed]:
        """Let a file take the place of a directory that a file was turned to."""
        turned = {os.path.dirname(name) for name in self._there} - set(FOLDERS)
        turned = {top for top in turned if not os.path.basename(top).startswith("sub")}
        if not turned:
            return
        top = self._chance.choice(sorted(turned))
        inner = sorted(name for name in self._there if name.startswith(f"{top}/"))
        if any(self._links_to(name) for name in inner):
            return
        for name in inner:
            yield from self._remove_one(name)
        yield lambda: shutil.rmtree(self._work / top)
        yield lambda: self._write(top)
        yield lambda: self._insert(top)

    def _remove_one(self, name: str) -> Iterator[Deed]:
        yield from self._take_back(name)
        yield partial(self._unlink, name)


def broken(life: Life) -> list[str]:
    """Return a sentence for each promise in OneData that is not kept there."""
    store, index = life.place.store, life.engine._index

    def is_there(name: str) -> bool:
        known = index.known(os.fsencode(name))
        if known is None:
            return False
        if known.entry.kind is Kind.LINK:
            target = os.path.join(os.path.dirname(name), os.fsdecode(known.entry.target))
            return is_there(os.path.normpath(target))
        return (store / name).is_file()

    wrong = []
    for database in DATABASES:
        if (store / database).exists():
            with closing(
                sqlite3.connect(f"file:{store / database}?mode=ro&immutable=1", uri=True)
            ) as it:
                names = [name for (name,) in it.execute("SELECT path FROM item")]
            wrong += [f"{database} names {name}" for name in names if not is_there(name)]
    for marker in store.glob("Runs/*/extra/**/DONE/*"):
        name = str((marker.parent.parent / marker.name).relative_to(store))
        is_known = index.known(os.fsencode(marker.relative_to(store))) is not None
        if is_known and not is_there(name):
            wrong.append(f"the marker of {name}")
    return wrong


def contents(top: Path) -> set[bytes]:
    """Return what all users' files beneath ``top`` hold, but for databases."""
    found = set()
    for path in top.rglob("*"):
        name = os.fsencode(path.relative_to(top))
        is_theirs = is_user_path(name) and b"sqlite" not in name
        if is_theirs and path.is_file() and not path.is_symlink():
            found.add(path.read_bytes())
    return found - {b""}


def live(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    mode: str,
    program: type[Careful] = Careful,
) -> None:
    storm = Storm(place, seed, mode)
    storm.program = program(place.work, storm.chance, mode)  # type: ignore[assignment]
    wrong: list[str] = []
    committed: list[int] = []

    seen: set[bytes] = set()

    def look() -> None:
        committed.append(1)
        stored = contents(place.store)
        lost = (seen & contents(place.work)) - stored
        wrong.extend(f"at checkpoint {len(committed)} {len(one)} bytes are lost" for one in lost)
        seen.update(stored)
        wrong.extend(f"at checkpoint {len(committed)}: {text}" for text in broken(storm.life))

    storm.life.told_commit = look
    bring_in_portions(monkeypatch)
    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, _disturbed(storm, getattr(owner, name)))
    life = storm.life.live()
    assert not wrong, "\n".join(wrong)
    assert storm.differences == {}
    assert life.end is Exit.CLEAN, life.error
    assert len(committed) > 10


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", [*range(8), 19, 24])
def test_promises_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    live(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", [*range(4), 1030, 1035])
def test_promises_are_kept_where_things_change_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    live(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode, Turning)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", range(1000, 1050))
def test_many_promises_are_kept_where_things_change_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    live(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode, Turning)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_many_promises_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mode: str
) -> None:
    (tmp_path / "store").mkdir()
    live(Place(tmp_path / "node", tmp_path / "store"), monkeypatch, seed, mode)
