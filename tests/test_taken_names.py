"""A file whose new name somebody took in OneData, while something else took its old one's place.

OneData has it under its old name alone. So that stays, whatever stands there in the working copy,
until somebody frees the new one; and what is wrong is told for as long as it lasts, no longer.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from onesync.batch import Batches
from onesync.errors import Exit
from onesync.outcome import OCCUPIED
from tests.campaign.life import Life, Place
from tests.node import picture
from tests.test_steady_load import TWO, act_and_look, execute, put, without_files

RUN = "Runs/000001_Import"
FOLDER, TAKEN = f"{RUN}/extra/d", f"{RUN}/extra/e/x"
MARKER = f"{RUN}/extra/DONE/1"
OTHER = "Runs/000002_Align/extra/other"
ONLY, FOREIGN = b"the only one", b"of somebody else"
SETTLED = 30
"""More batches than anything takes here."""

Step = Callable[[Life], None]
OLDS = ["file", "link", "directory", "directory of what was moved"]


def write(life: Life, name: str, content: bytes = b"1") -> None:
    path = life.place.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def old_name(kind: str) -> str:
    return FOLDER if kind.startswith("directory") else f"{FOLDER}/x"


def turn_into(kind: str) -> Step:
    """Return what moves the only copy to a name that is taken, and puts a ``kind`` in its place."""

    def turn(life: Life) -> None:
        work = life.place.work
        (life.place.store / TAKEN).write_bytes(FOREIGN)
        (work / old_name(kind)).rename(work / TAKEN)
        os.utime(work / TAKEN, (1, 1))
        if not kind.startswith("directory"):
            (work / FOLDER).rmdir()
        if kind == "file":
            write(life, FOLDER)
        elif kind == "link":
            (work / FOLDER).symlink_to("e")
        else:
            write(life, f"{FOLDER}/new")
        if kind == "directory of what was moved":
            (work / OTHER).rename(work / FOLDER / "other")
            os.utime(work / FOLDER / "other", (2, 2))
        write(life, MARKER)

    return turn


def nothing(_: object) -> None: ...


def free(life: Life) -> None:
    (life.place.store / TAKEN).rename(life.place.home / "theirs")
    os.utime(life.place.work / TAKEN)


def rename(life: Life) -> None:
    (life.place.work / TAKEN).rename(life.place.work / f"{TAKEN}2")


class Lives:
    """One life in which that happens, and what is seen in it."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.place = place
        self.kind = kind
        self.told: list[list[tuple[str, str]]] = []
        self.batches = [0]
        self.lost: set[bytes] = set()
        self.turned = False
        batch = Batches.batch

        def counted(batches: Batches, *, everything: bool = False) -> bool:
            self.batches[-1] += 1
            return batch(batches, everything=everything)

        monkeypatch.setattr(Batches, "batch", counted)

    def begin(self, life: Life) -> None:
        write(life, old_name(self.kind), ONLY)
        write(life, f"{RUN}/extra/e/first")
        write(life, OTHER, b"other")

    def look(self) -> None:
        places = chain(self.place.store.rglob("*"), [self.place.home / "theirs"])
        files = [path for path in places if path.is_file()]
        there = {path.read_bytes() for path in files}
        if self.turned:
            self.lost |= {ONLY, FOREIGN, b"other"} - there

    def live(self, *steps: Step) -> None:
        def turn(life: Life) -> None:
            turn_into(self.kind)(life)
            self.turned = True

        def told(step: Step) -> Step:
            def tell(life: Life) -> None:
                problems = ((os.fsdecode(p.path), p.kind) for p in life.engine.problems())
                self.told.append(sorted(problems))
                self.batches.append(0)
                step(life)

            return tell

        life = Life(self.place, [self.begin, nothing, turn, *map(told, steps)])
        life.told_commit = self.look
        life.live()
        assert life.end is Exit.CLEAN, life.error
        assert self.lost == set()
        assert max(self.batches) < SETTLED


@pytest.mark.parametrize("kind", OLDS)
def test_it_stays_and_is_told(place: Place, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    lives = Lives(place, monkeypatch, kind)
    lives.live(nothing, nothing, nothing)
    assert lives.told[-1] == [(FOLDER, OCCUPIED), (TAKEN, OCCUPIED)]
    assert (place.store / old_name(kind)).read_bytes() == ONLY
    assert (place.store / TAKEN).read_bytes() == FOREIGN
    assert not (place.store / MARKER).exists()


@pytest.mark.parametrize("way", [free, rename])
@pytest.mark.parametrize("kind", OLDS)
def test_it_goes_when_the_new_name_is_free(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, way: Step
) -> None:
    lives = Lives(place, monkeypatch, kind)
    lives.live(nothing, way, nothing, nothing, nothing)
    assert lives.told[0] == [(FOLDER, OCCUPIED), (TAKEN, OCCUPIED)]
    assert lives.told[-1] == []
    assert (place.store / MARKER).exists()
    if way is rename:
        (place.store / TAKEN).unlink()
    status = place.store / ".deployment_status_do_not_delete"
    shutil.rmtree(status)
    expected, found = picture(place.work), picture(place.store)
    assert {k: v[:2] for k, v in found.items() if v[0] == "file"} == {
        k: v[:2] for k, v in expected.items() if v[0] == "file"
    }


@pytest.mark.parametrize("then", ["gone", "a directory again"])
def test_what_took_the_place_goes_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    def go(life: Life) -> None:
        (life.place.work / FOLDER).unlink()
        if then != "gone":
            write(life, f"{FOLDER}/y", b"y")

    lives = Lives(place, monkeypatch, "file")
    lives.live(nothing, go, nothing, nothing, nothing)
    assert lives.told[-1] == [(TAKEN, OCCUPIED)]
    assert (place.store / FOLDER / "x").read_bytes() == ONLY
    assert (place.store / FOLDER / "y").exists() == (then != "gone")


def test_what_changes_in_it_meanwhile_comes_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(life: Life) -> None:
        write(life, f"{FOLDER}/more/z", b"z")
        (life.place.work / OTHER).rename(life.place.work / FOLDER / "other")

    lives = Lives(place, monkeypatch, "directory")
    lives.live(nothing, change, nothing, nothing, free, nothing, nothing, nothing)
    assert lives.told[3] == [(FOLDER, OCCUPIED), (TAKEN, OCCUPIED)]
    assert lives.told[-1] == []
    assert (place.store / FOLDER / "more/z").read_bytes() == b"z"
    assert (place.store / FOLDER / "other").read_bytes() == b"other"
    assert not (place.store / OTHER).exists()


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_it_is_told_no_longer_than_it_lasts(place: Place, how: str) -> None:
    told: list[int] = []

    def begin(life: Life) -> None:
        write(life, f"{RUN}/extra/e/first")

    def take(life: Life) -> None:
        (life.place.store / TAKEN).write_bytes(FOREIGN)
        write(life, TAKEN)

    def end(life: Life) -> None:
        told.append(len(life.engine.problems()))
        if how == "renamed":
            rename(life)
        else:
            (life.place.work / TAKEN).unlink()

    def look(life: Life) -> None:
        told.append(len(life.engine.problems()))

    life = Life(place, [begin, nothing, take, nothing, end, nothing, nothing, look]).live()
    assert life.end is Exit.CLEAN, life.error
    assert told == [1, 0]
    assert (place.store / TAKEN).read_bytes() == FOREIGN


@pytest.mark.parametrize("way", [free, rename])
def test_what_takes_the_old_name_of_what_was_moved_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, way: Step
) -> None:
    def take(life: Life) -> None:
        write(life, OTHER, b"a newer one")

    lives = Lives(place, monkeypatch, "directory of what was moved")
    lives.live(nothing, take, nothing, nothing, way, *[nothing] * 4)
    assert {(FOLDER, OCCUPIED), (OTHER, OCCUPIED)} <= set(lives.told[3])
    assert lives.told[-1] == []
    assert (place.store / OTHER).read_bytes() == b"a newer one"
    assert (place.store / FOLDER / "other").read_bytes() == b"other"


class Chain:
    """An only copy waits for the name of another one, which waits for a taken one."""

    THIRD = f"{RUN}/extra/e/third"

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.lives = Lives(place, monkeypatch, "file")
        self.lost: set[bytes] = set()
        self.has_begun = False
        self.told: list[str] = []

    def turn(self, life: Life) -> None:
        work = self.place.work
        (self.place.store / self.THIRD).write_bytes(FOREIGN)
        (work / OTHER).rename(work / self.THIRD)
        (work / f"{FOLDER}/x").rename(work / OTHER)
        for number, path in enumerate((self.THIRD, OTHER), 1):
            os.utime(work / path, (number, number))
        (work / FOLDER).rmdir()
        write(life, FOLDER)
        self.has_begun = True

    def tell(self, life: Life) -> None:
        self.told = sorted(os.fsdecode(p.path) for p in life.engine.problems())

    def look(self) -> None:
        there = {p.read_bytes() for p in self.place.store.rglob("*") if p.is_file()}
        self.lost |= {ONLY, b"other"} - there if self.has_begun else set()

    def live(self, undo: Step) -> None:
        steps = [self.lives.begin, nothing, self.turn, nothing, nothing, self.tell]
        life = Life(self.place, [*steps, undo, *[nothing] * 4])
        life.told_commit = self.look
        life.live()
        assert life.end is Exit.CLEAN, life.error
        assert self.told == [FOLDER, self.THIRD, OTHER]
        assert self.lost == set()
        assert sum(self.lives.batches) < SETTLED
        assert life.engine.problems() == []


def test_what_waits_for_another_one_that_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained = Chain(place, monkeypatch)

    def free_it(life: Life) -> None:
        (place.store / Chain.THIRD).unlink()
        os.utime(place.work / Chain.THIRD)

    chained.live(free_it)
    assert (place.store / FOLDER).is_file()
    assert (place.store / OTHER).read_bytes() == ONLY
    assert (place.store / Chain.THIRD).read_bytes() == b"other"


def test_what_is_moved_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    chained = Chain(place, monkeypatch)

    def move_back(_: Life) -> None:
        (place.work / FOLDER).unlink()
        (place.work / FOLDER).mkdir()
        (place.work / OTHER).rename(place.work / FOLDER / "x")
        (place.work / Chain.THIRD).rename(place.work / OTHER)

    chained.live(move_back)
    assert (place.store / FOLDER / "x").read_bytes() == ONLY
    assert (place.store / OTHER).read_bytes() == b"other"
    assert (place.store / Chain.THIRD).read_bytes() == FOREIGN


@pytest.mark.parametrize("theirs", ["a file", "a directory", "a directory with that in it"])
@pytest.mark.parametrize("what", ["a file", "a directory"])
def test_what_is_renamed_to_a_taken_name_without_a_touch(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str, theirs: str
) -> None:
    """No rename in OneData: it is a new thing there, and its old name stays until it has come."""
    count = 1 if what == "a file" else 60
    old, new = f"{RUN}/extra/old", f"{RUN}/extra/new"
    names = ["" if what == "a file" else f"/{number}" for number in range(count)]
    lost: list[str] = []
    told: list[tuple[int, list[str]]] = []
    batches: list[int] = []
    batch = Batches.batch

    def counted(self: Batches, *, everything: bool = False) -> bool:
        batches.append(1)
        return batch(self, everything=everything)

    def begin(life: Life) -> None:
        for name in names:
            write(life, f"{old}{name}", b"content of " + name.encode())

    def move(life: Life) -> None:
        taken = place.store / new
        if theirs == "a file":
            taken.write_bytes(FOREIGN)
        else:
            taken.mkdir()
        if theirs == "a directory with that in it":
            (taken / "0").write_bytes(FOREIGN)
        (place.work / old).rename(place.work / new)
        write(life, MARKER)
        batches.clear()

    def tell(life: Life) -> None:
        told.append((len(batches), [problem.text for problem in life.engine.problems()]))

    def look() -> None:
        there = {p.read_bytes() for p in place.store.rglob("*") if p.is_file()}
        lost.extend(
            name for name in names if batches and b"content of " + name.encode() not in there
        )

    monkeypatch.setattr(Batches, "batch", counted)
    life = Life(place, [begin, nothing, move, nothing, nothing, tell])
    life.told_commit = look
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert life.failed_as == ["EEXIST"]
    assert lost == []
    assert told[0][0] < SETTLED
    is_free = what == "a directory" and theirs == "a directory"
    assert ("did not put there" in "".join(told[0][1])) != is_free, told
    assert (place.store / MARKER).exists() == is_free


def test_what_a_database_names_stays_with_it_under_its_old_name(place: Place) -> None:
    moved = place.work / TWO / "moved.sqlite"
    wrong: set[str] = set()
    stood: list[bool] = []

    def begin(work: Path) -> None:
        put(work, OTHER, f"{RUN}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", OTHER, f"{RUN}/a")

    def take(work: Path) -> None:
        (place.store / TWO / moved.name).write_bytes(FOREIGN)
        (work / TWO / "set.sqlite").rename(moved)
        put(work, f"{RUN}/b")

    def lose(work: Path) -> None:
        with closing(sqlite3.connect(moved)) as database, database:
            database.execute("DELETE FROM item WHERE path = ?", (OTHER,))
        (work / OTHER).unlink()

    def change(work: Path) -> None:
        put(work, f"{RUN}/{len(list((work / RUN).iterdir()))}")

    def set_free(work: Path) -> None:
        stood.append((place.store / OTHER).is_file())
        (place.store / TWO / moved.name).rename(place.home / "theirs")
        os.utime(moved)

    def look() -> None:
        wrong.update(without_files(place.store, TWO, is_there=Path.is_file))

    acts = [begin, nothing, nothing, take, change, change, lose, *[change] * 4, set_free]
    act_and_look(place, [*acts, *[nothing] * 4], look)
    assert stood == [True]
    assert not wrong
    assert not (place.store / OTHER).exists()
    assert not (place.store / TWO / "set.sqlite").exists()
    assert (place.store / TWO / moved.name).read_bytes().startswith(b"SQLite")
