"""OneData has a file under its old name alone while its new one is taken, refused or written on.

Whatever takes the old name in the working copy meanwhile: what OneData has stays, markers wait for
their data, what waits is told, comes when it can, and batches end.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from onesync import beneath, scanner
from onesync.batch import Batches
from onesync.core.model import Kind, Stamp
from onesync.errors import Exit
from onesync.local import is_another
from onesync.outcome import OCCUPIED
from onesync.replica.door import NameRefused
from onesync.replica.names import EscapedNames
from onesync.scanner import Scanner
from tests.campaign.life import Life, Place

RUN = "Runs/000001_Import"
FOLDER, ITEM, TAKEN = f"{RUN}/extra/d", f"{RUN}/extra/d/x", f"{RUN}/extra/e/x"
MARKER = f"{RUN}/extra/DONE/1"
OTHER = "Runs/000002_Align/extra/other"
THIRD = f"{RUN}/extra/e/third"
DATABASE = f"{RUN}/particles.sqlite"
ONLY, FOREIGN = b"the only one", b"of somebody else"
MOST = 30
"""More batches than anything takes here."""
ENDLESS = 300

Step = Callable[[Life], None]
BOTH = [(FOLDER, OCCUPIED), (TAKEN, OCCUPIED)]


def nothing(_: Life) -> None: ...


class Watched:
    """Lives in which something may be lost, in whose batches somebody may go on writing."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.kept: set[bytes] = {ONLY}
        self.lost: list[bytes] = []
        self.has_begun = False
        self.batches = 0
        self.told: list[list[tuple[str, str]]] = []
        self.early = 0
        self.data: str | None = None
        self.written_on = ""
        self.writes = 0
        self.life: Life | None = None
        batch = Batches.batch

        def counted(batches: Batches, *, everything: bool = False) -> bool:
            self._before_batch()
            return batch(batches, everything=everything)

        monkeypatch.setattr(Batches, "batch", counted)

    def _before_batch(self) -> None:
        self.batches += 1
        assert self.life is not None
        if self.batches > ENDLESS:
            self.life.engine.stop()
        if self.writes and (path := self.place.work / self.written_on).exists():
            self.writes -= 1
            with path.open("ab") as file:
                file.write(b".")
            self.write(f"Runs/000009_Else/{self.writes}")  # others work meanwhile
            self.life.watcher.tell()

    def write(self, name: str, content: bytes = b"1") -> None:
        path = self.place.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def move(self, old: str, new: str, *, touched: bool = True) -> None:
        work = self.place.work
        (work / new).parent.mkdir(parents=True, exist_ok=True)
        (work / old).rename(work / new)
        if touched:
            os.utime(work / new, (1, 1))

    def take(self, name: str) -> None:
        path = self.place.store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FOREIGN)

    def free(self, name: str) -> None:
        """Let somebody take his own away from OneData."""
        (self.place.store / name).rename(self.place.home / "theirs")
        os.utime(self.place.work / name)

    def fill(self, kind: str) -> None:
        """Let something take the place of what was moved away from FOLDER."""
        if kind == "a file":
            (self.place.work / FOLDER).rmdir()
            self.write(FOLDER, b"a new thing")
        elif kind == "a file of that name":
            assert self.life is not None
            self.life.watcher.tell()
            self.write(ITEM, b"a new thing")

    def begin(self, _: Life) -> None:
        self.write(ITEM, ONLY)
        self.write(f"{RUN}/extra/e/first")
        self.write(OTHER, b"other")

    def tell(self, life: Life) -> None:
        self.told.append(sorted((os.fsdecode(p.path), p.kind) for p in life.engine.problems()))

    def _look(self) -> None:
        store = self.place.store
        if self.data and (store / MARKER).exists() and not (store / self.data).is_file():
            self.early += 1
        if not self.has_begun:
            return
        paths = chain(store.rglob("*"), self.place.home.glob("theirs"))
        own = (path for path in paths if ".onesync" not in str(path) and path.is_file())
        there = [path.read_bytes() for path in own]
        self.lost += [one for one in self.kept if not any(each.startswith(one) for each in there)]

    def live(self, steps: Sequence[Step], place: Place | None = None, **more: Any) -> Life:
        """Let ``steps`` happen at rest; the first one that is ``act``'s begins it."""
        life = self.life = Life(place or self.place, list(steps), **more)
        life.told_commit = self._look
        self.batches = 0
        life.live()
        assert self.lost == []
        assert self.early == 0
        if not more:
            assert life.end is Exit.CLEAN, life.error
        return life

    def act(self, deed: Callable[[], None]) -> Step:
        """Return a step from which on nothing may be lost."""

        def step(_: Life) -> None:
            self.has_begun = True
            self.batches = 0
            deed()

        return step


@pytest.fixture
def watched(place: Place, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(place, monkeypatch)


KINDS = ["a file", "a file of that name", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_moved_and_written_on(watched: Watched, kind: str) -> None:
    """As a log that is rotated: it has not settled when what took its name has."""

    def turn() -> None:
        watched.move(ITEM, TAKEN)
        watched.fill(kind)
        watched.written_on, watched.writes = TAKEN, 8

    watched.live([watched.begin, nothing, watched.act(turn), *[nothing] * 4])
    assert watched.batches < MOST
    assert (watched.place.store / TAKEN).read_bytes().startswith(ONLY)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_is_written_on_when_its_name_is_free(watched: Watched, kind: str) -> None:
    watched.kept |= {b"other"}

    def turn() -> None:
        watched.take(THIRD)
        watched.move(OTHER, THIRD)
        watched.move(ITEM, OTHER)
        watched.fill(kind)

    def free() -> None:
        watched.free(THIRD)
        watched.written_on, watched.writes = OTHER, 60

    steps = [watched.begin, nothing, watched.act(turn), nothing, nothing, watched.act(free)]
    watched.live([*steps, *[nothing] * 4, watched.tell])
    assert watched.told == [[]]


@pytest.mark.parametrize("is_taken_too", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_renamed_once_more_and_written_on(
    watched: Watched, kind: str, is_taken_too: bool
) -> None:
    again = f"{TAKEN}2"

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(ITEM, TAKEN)
        watched.fill(kind)

    def rename() -> None:
        if is_taken_too:
            watched.take(again)
        watched.move(TAKEN, again, touched=False)
        watched.written_on, watched.writes = again, 8

    steps = [watched.begin, nothing, watched.act(turn), nothing, nothing, watched.act(rename)]
    watched.live([*steps, *[nothing] * 4, watched.tell])
    assert bool(watched.told[0]) == is_taken_too


def make_database(watched: Watched, name: str, rows: int = 1) -> None:
    path = watched.place.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE item (name TEXT)")
        database.executemany("INSERT INTO item VALUES (?)", [(f"row {n}",) for n in range(rows)])


def test_a_database_that_is_moved_to_a_taken_name(watched: Watched) -> None:
    old: list[bytes] = []

    def begin(life: Life) -> None:
        watched.begin(life)
        make_database(watched, DATABASE)
        old.append((watched.place.work / DATABASE).read_bytes())
        watched.kept = {old[0]}

    def turn() -> None:
        watched.take(f"{RUN}/old.sqlite")
        watched.move(DATABASE, f"{RUN}/old.sqlite")
        make_database(watched, DATABASE, 3)
        watched.write(MARKER)

    def remove(life: Life) -> None:
        """Nor does a deletion wait for what may wait for days: no flush would end."""
        watched.tell(life)
        (watched.place.work / RUN / "extra/e/first").unlink()

    def free() -> None:
        watched.free(f"{RUN}/old.sqlite")

    tell = watched.tell
    steps = [begin, nothing, watched.act(turn), remove, tell, nothing, watched.act(free)]
    watched.live([*steps, nothing, tell])
    assert watched.batches < MOST
    assert not (watched.place.store / RUN / "extra/e/first").exists()
    assert watched.told[1] == [(f"{RUN}/old.sqlite", OCCUPIED), (DATABASE, OCCUPIED)]
    assert watched.told[2] == []
    assert (watched.place.store / f"{RUN}/old.sqlite").read_bytes() == old[0]
    assert (watched.place.store / DATABASE).read_bytes() != old[0]


@pytest.mark.parametrize("where", ["at", "beneath"])
def test_a_database_that_takes_the_place(watched: Watched, where: str) -> None:
    old = ITEM if where == "at" else FOLDER
    watched.data = FOLDER if where == "at" else f"{FOLDER}/new.sqlite"

    def begin(_: Life) -> None:
        watched.write(old, ONLY)
        watched.write(f"{RUN}/extra/e/first")
        make_database(watched, DATABASE)

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(old, TAKEN)
        if where == "at":
            (watched.place.work / FOLDER).rmdir()
        assert watched.data
        make_database(watched, watched.data)
        watched.write(MARKER)
        with closing(sqlite3.connect(watched.place.work / DATABASE)) as database, database:
            database.execute("INSERT INTO item VALUES ('new')")

    same: list[bool] = []

    def look(_: Life) -> None:
        places = (watched.place.store, watched.place.work)
        one, two = ((top / DATABASE).read_bytes() for top in places)
        same.append(one == two)

    watched.live([begin, nothing, watched.act(turn), watched.tell, look, look])
    assert watched.batches < MOST
    assert same == [True, True], "others need not wait for it"


def turn_into_file(watched: Watched) -> None:
    watched.take(TAKEN)
    watched.move(ITEM, TAKEN)
    watched.fill("a file")
    watched.write(MARKER)
    watched.data = FOLDER


@pytest.mark.parametrize("is_undone", [False, True])
def test_a_restart(watched: Watched, is_undone: bool) -> None:
    turn = watched.act(lambda: turn_into_file(watched))
    watched.live([watched.begin, nothing, turn, nothing, nothing], stops=False)
    if is_undone:
        (watched.place.work / FOLDER).unlink()
        watched.move(TAKEN, ITEM, touched=False)
        (watched.place.work / MARKER).unlink()
    watched.live([nothing, nothing, watched.tell])
    assert watched.told == [[] if is_undone else BOTH]
    assert watched.batches < MOST


def test_another_node(watched: Watched) -> None:
    turn = watched.act(lambda: turn_into_file(watched))
    watched.live([watched.begin, nothing, turn, nothing, nothing])
    place = watched.place
    second = Place(place.home.parent / "second", place.store, "second")
    watched.live([nothing, nothing, watched.tell], second)
    assert (FOLDER, OCCUPIED) not in watched.told[0]
    assert (second.work / ITEM).read_bytes() == ONLY
    assert (place.work / FOLDER).read_bytes() == b"a new thing", "what waited is kept"


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("is_busy", [False, True])
def test_what_is_moved_into_a_directory_that_is_refused(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, kind: str, is_busy: bool
) -> None:
    make = EscapedNames.make_directory

    def refusing(replica: EscapedNames, path: bytes) -> None:
        if os.path.basename(path) == b"BAD":
            raise NameRefused("refused")
        make(replica, path)

    monkeypatch.setattr(EscapedNames, "make_directory", refusing)

    def turn() -> None:
        watched.move(ITEM, f"{RUN}/extra/BAD/x")

    def replace() -> None:
        shutil.rmtree(watched.place.work / FOLDER)
        if kind == "a file":
            watched.write(FOLDER)
        else:
            watched.write(ITEM, b"new")

    between: list[Step] = [lambda _: watched.write(f"{RUN}/extra/more"), nothing]
    steps = [watched.begin, nothing, watched.act(turn), nothing, *(between if is_busy else [])]
    watched.live([*steps, watched.act(replace), nothing, nothing, watched.tell])
    assert len(watched.told[0]) == 2


def test_a_directory_that_cannot_be_listed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = beneath.open_beneath

    def refusing(fd: int, path: bytes, flags: int) -> int:
        if os.path.basename(path) == b"closed" and flags == scanner._DIRECTORY:
            raise PermissionError(13, "Permission denied")
        return opened(fd, path, flags)

    monkeypatch.setattr(scanner, "open_beneath", refusing)

    def turn() -> None:
        watched.move(FOLDER, f"{RUN}/extra/closed", touched=False)
        watched.write(FOLDER)

    watched.live([watched.begin, nothing, watched.act(turn), watched.tell, nothing, watched.tell])
    assert [path for path, _ in watched.told[1]] == [f"{RUN}/extra/closed", FOLDER]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_moved_without_a_touch(watched: Watched, kind: str) -> None:
    def turn() -> None:
        watched.take(TAKEN)
        watched.move(ITEM, TAKEN, touched=False)
        watched.fill(kind)

    watched.live([watched.begin, nothing, watched.act(turn), nothing, nothing, watched.tell])
    assert watched.batches < MOST
    assert (TAKEN, OCCUPIED) in watched.told[0]


def test_what_waits_costs_other_batches_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bytes] = []
    look = Scanner.look
    many = 500

    def counted(self: Scanner, path: bytes) -> Any:
        looks.append(path)
        return look(self, path)

    monkeypatch.setattr(Scanner, "look", counted)

    def begin(_: Life) -> None:
        watched.write(FOLDER, ONLY)
        watched.write(f"{RUN}/extra/e/first")

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(FOLDER, TAKEN)
        for number in range(many):
            watched.write(f"{FOLDER}/{number}")

    def work_elsewhere(_: Life) -> None:
        watched.write(f"{RUN}/extra/more")
        looks.clear()

    counts: list[int] = []
    steps = [begin, nothing, watched.act(turn), nothing, work_elsewhere]
    watched.live([*steps, lambda _: counts.append(len(looks))])
    assert counts[0] < many / 10


def test_a_hard_link_is_another_copy(watched: Watched) -> None:
    def begin(life: Life) -> None:
        watched.begin(life)
        os.link(watched.place.work / ITEM, watched.place.work / f"{RUN}/extra/e/also")

    turn = watched.act(lambda: turn_into_file(watched))
    watched.live([begin, nothing, turn, nothing, watched.tell])
    assert watched.told == [[(TAKEN, OCCUPIED)]]


@pytest.mark.parametrize("when", ["never taken", "stays taken", "freed"])
def test_a_marker_waits_where_another_run_is_in_the_way(watched: Watched, when: str) -> None:
    taken = "Runs/000002_Align/extra/x"
    watched.data = f"{FOLDER}/new"

    def begin(_: Life) -> None:
        watched.write(FOLDER, ONLY)
        watched.write(OTHER, b"other")

    def turn() -> None:
        if when != "never taken":
            watched.take(taken)
        watched.move(FOLDER, taken)
        watched.write(f"{FOLDER}/new", b"promised")
        watched.write(MARKER)

    def free(_: Life) -> None:
        if when == "freed":
            watched.free(taken)

    watched.live([begin, nothing, watched.act(turn), nothing, nothing, free, nothing, nothing])
    assert (watched.place.store / MARKER).exists() == (when != "stays taken")


@pytest.mark.parametrize("is_undone", [False, True])
def test_lost_events_and_a_flush(watched: Watched, is_undone: bool) -> None:
    answers: list[Any] = []

    def turn(life: Life) -> None:
        watched.act(lambda: turn_into_file(watched))(life)
        life.watcher.overflow()

    def back(life: Life) -> None:
        watched.tell(life)
        if is_undone:
            watched.data = None
            (watched.place.work / FOLDER).unlink()
            watched.move(TAKEN, ITEM, touched=False)
        life.watcher.overflow()

    def flush(life: Life) -> None:
        answers.append(life.engine.ask_flush())

    watched.live(
        [watched.begin, nothing, turn, nothing, flush, nothing, back, nothing, watched.tell]
    )
    assert watched.batches < 2 * MOST
    assert any(FOLDER in text for text in answers[0].result(0).problems)
    assert watched.told == [BOTH, [] if is_undone else BOTH]


@pytest.mark.parametrize("kind", [*KINDS[:2], "a directory"])
@pytest.mark.parametrize("is_told", [False, True])
def test_the_directory_above_is_renamed(watched: Watched, kind: str, is_told: bool) -> None:
    old = FOLDER if kind == "a directory" else ITEM

    def begin(_: Life) -> None:
        watched.write(old, ONLY)
        watched.write(f"{RUN}/extra/e/first")

    def turn() -> None:
        watched.take(TAKEN)
        watched.move(old, TAKEN)
        watched.fill(kind)
        if kind == "a directory":
            watched.write(f"{FOLDER}/new")

    def rename(life: Life) -> None:
        watched.move(f"{RUN}/extra", f"{RUN}/extra2", touched=False)
        if not is_told:
            life.watcher.overflow()
        watched.batches = 0

    steps = [begin, nothing, watched.act(turn), nothing, rename, nothing, nothing, watched.tell]
    watched.live(steps)
    assert watched.batches < MOST
    assert watched.told[0]


@pytest.mark.parametrize("what", ["link", "directory", "nothing"])
def test_what_has_a_number_of_a_file_and_is_none_is_another_thing(
    tmp_path: Path, what: str
) -> None:
    """File systems give the number of a file that is gone to the next thing at once."""
    new = tmp_path / "new"
    if what == "link":
        new.symlink_to("nowhere")
    elif what == "directory":
        new.mkdir()
    inode = os.lstat(new).st_ino if what != "nothing" else 1
    old = Stamp(Kind.FILE, inode, 0, 0, 0, 0o644)
    assert is_another(os.fsencode(new), old) == (what != "nothing")
