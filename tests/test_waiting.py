"""Databases whose data come in several batches: their snapshots wait, and are never wrong."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from onesync import holds, local, planning, push, transfer
from onesync.batch import Batches
from onesync.core.dirty import Due
from onesync.core.model import Entry, Kind, Known, Stamp
from onesync.core.plan import Difference, Plan
from onesync.cut import Cut
from onesync.errors import Exit
from onesync.push import Push
from onesync.unverified import Unverified
from tests.campaign.calls import Fault
from tests.campaign.life import PORTION, Life, Place, copied
from tests.campaign.trial import unlock

RUN = "Runs/000001_Import"
EXTRA = f"{RUN}/extra"
DATABASE = f"{RUN}/set.sqlite"

pytestmark = pytest.mark.usefixtures("small_portions")


@pytest.fixture
def _rows_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rows be those of the project's database, which names files of its runs."""
    monkeypatch.setitem(globals(), "DATABASE", "project.sqlite")


def execute(work: Path, statement: str, *rows: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(work / DATABASE)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS item (path TEXT PRIMARY KEY, version INT)")
        database.executemany(statement, rows)


def rows(folder: Path) -> dict[str, int]:
    """Return what the database in ``folder`` names; nothing where it is not there."""
    if not (folder / DATABASE).exists():
        return {}
    with closing(
        sqlite3.connect(f"file:{folder / DATABASE}?mode=ro&immutable=1", uri=True)
    ) as database:
        found = database.execute("SELECT path, version FROM item").fetchall()
        return {path.removeprefix(f"{EXTRA}/"): version for path, version in found}


def path_of(name: str) -> str:
    """Return how a row names a file: from the project on, with its run's directory."""
    return f"{EXTRA}/{name}"


def write(work: Path, *names: str, version: int = 1) -> None:
    """Write files, then the rows that name them."""
    (work / EXTRA).mkdir(parents=True, exist_ok=True)
    for name in names:
        (work / EXTRA / name).write_bytes(b"%d " % version + b"x" * (version * 700 % 3000))
    execute(
        work, "INSERT OR REPLACE INTO item VALUES (?, ?)", *((path_of(n), version) for n in names)
    )


def remove(work: Path, *names: str) -> None:
    """Remove rows, then the files that they named."""
    execute(work, "DELETE FROM item WHERE path = ?", *((path_of(name),) for name in names))
    for name in names:
        (work / EXTRA / name).unlink()


def lacks(store: Path) -> list[str]:
    """Return the rows in OneData without their files, or with older ones."""
    named = rows(store).items()
    return [name for name, version in named if _version(store / EXTRA / name) < version]


def _version(path: Path) -> int:
    return int(path.read_bytes().split()[0]) if path.exists() else 0


def live(place: Place, acts: list[Callable[[Path], object]], *, idle: bool = False) -> list[str]:
    """Let one act happen at each checkpoint (``idle``: at rest); returns the rows without files."""
    wrong: list[str] = []
    left = list(acts)

    def act(_: object = None) -> None:
        wrong.extend(lacks(place.store))
        if left:
            left.pop(0)(place.work)

    life = Life(place, [act] * len(acts) if idle else [act])
    if not idle:
        life.told_commit = act
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert not left
    wrong += lacks(place.store)
    return wrong


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / RUN).rglob("*") if path.is_file()}


def test_a_database_comes_with_the_data_of_its_own_cut(place: Place) -> None:
    seen: list[tuple[int, int]] = []

    def look(work: Path) -> None:
        arrived = len(list((place.store / EXTRA).glob("*")))
        seen.append((arrived, len(rows(place.store))))
        number = len(seen)
        if number <= 12:
            write(work, *(f"later_{number}_{n}" for n in range(PORTION)))

    first = [f"first_{n}" for n in range(6)]
    wrong = live(place, [lambda work: write(work, *first), *[look] * 14])
    assert not wrong
    # Each checkpoint brings as many data as came meanwhile: a cut that began anew would never end.
    behind = [count for arrived, count in seen if 0 < count < arrived]
    assert behind, seen
    assert behind[0] >= len(first), seen


def test_a_file_that_goes_while_its_database_waits_is_named_by_no_row(place: Place) -> None:
    names = [f"item_{n}" for n in range(8)]
    acts: list[Callable[[Path], object]] = [
        lambda work: write(work, *names),
        lambda work: remove(work, *names[4:]),
        lambda work: write(work, "after"),
    ]
    assert live(place, acts) == []
    assert rows(place.store).keys() == {*names[:4], "after"}


def test_a_removal_waits_for_the_database_that_does_not_name_it(place: Place) -> None:
    old = [f"old_{n}" for n in range(4)]
    new = [f"new_{n}" for n in range(6)]

    def changes(work: Path) -> None:
        remove(work, *old[:2])
        write(work, *new)

    acts: list[Callable[[Path], object]] = [
        lambda work: write(work, *old),
        *[lambda _: None] * 3,
        changes,
        lambda work: remove(work, *old[2:]),
    ]
    assert live(place, acts) == []
    assert sorted(os.listdir(place.store / EXTRA)) == sorted(new)


def test_a_database_that_changes_while_it_waits_comes_as_it_is_at_last(place: Place) -> None:
    def again(work: Path) -> None:
        execute(work, "INSERT OR REPLACE INTO item VALUES (?, ?)", (path_of("item_0"), 0))

    names = [f"item_{n}" for n in range(6)]
    assert live(place, [lambda work: write(work, *names), again, again]) == []
    assert (place.store / DATABASE).read_bytes() == (place.work / DATABASE).read_bytes()


class Happenings:
    """What a program does to its project, at random: always rows after files, or before they go."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._count = 0

    def act(self, work: Path) -> None:
        """Do something."""
        deeds = [self._write, self._write, self._remove, self._rewrite, self._rename, self._turn]
        if not rows(work):
            self._write(work)
        else:
            self._chance.choice(deeds)(work)

    def _new_name(self) -> str:
        self._count += 1
        return f"item_{self._count}"

    def _some(self, work: Path) -> str:
        return self._chance.choice(sorted(rows(work)))

    def _write(self, work: Path) -> None:
        write(work, *(self._new_name() for _ in range(self._chance.randint(1, 7))))

    def _remove(self, work: Path) -> None:
        there = sorted(rows(work))
        remove(work, *self._chance.sample(there, self._chance.randint(1, len(there))))

    def _rewrite(self, work: Path) -> None:
        name = self._some(work)
        write(work, name, version=rows(work)[name] + 1)

    def _rename(self, work: Path) -> None:
        old, new = self._some(work), self._new_name()
        execute(work, "UPDATE item SET path = ? WHERE path = ?", (path_of(new), path_of(old)))
        (work / EXTRA / old).rename(work / EXTRA / new)

    def _turn(self, work: Path) -> None:
        (work / EXTRA).rename(work / RUN / "aside")
        (work / RUN / "aside").rename(work / EXTRA)


@pytest.mark.parametrize("number", [*range(28), 34, 306])
def test_whatever_happens_meanwhile_rows_name_what_is_there(place: Place, number: int) -> None:
    chance = random.Random(number)
    happenings = Happenings(chance)
    assert live(place, [happenings.act] * 12, idle=chance.random() < 0.3) == []
    assert contents(place.store) == contents(place.work)


@pytest.mark.usefixtures("_rows_of_the_project")
@pytest.mark.parametrize("number", range(60))
def test_whatever_happens_in_a_run_rows_of_the_project_name_what_is_there(
    place: Place, number: int
) -> None:
    chance = random.Random(number)
    happenings = Happenings(chance)
    assert live(place, [happenings.act] * 12, idle=chance.random() < 0.3) == []
    assert contents(place.store) == contents(place.work)


@pytest.mark.usefixtures("_rows_of_the_project")
@pytest.mark.parametrize("number", range(20))
def test_rows_of_the_project_wait_for_new_files_that_change_while_they_are_copied(
    place: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(number)
    happenings = Happenings(chance)
    bring = transfer.transfer

    def bring_at_times(replica: object, difference: Difference, *more: Any) -> object:
        known, seen = difference.known, difference.seen
        was = known.stamp if known is not None else None
        is_new = was is None or seen is None or was.inode != seen.inode
        if is_new and b"item_" in difference.path and chance.random() < 0.3:
            return None
        return bring(replica, difference, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(push, "transfer", bring_at_times)
    assert live(place, [happenings.act] * 12) == []
    assert contents(place.store) == contents(place.work)


@pytest.mark.usefixtures("_rows_of_the_project")
@pytest.mark.parametrize("keeps_birth", [True, False])
def test_a_file_made_anew_comes_though_a_marker_has_its_old_inode(
    place: Place, keeps_birth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system gives the number of what was removed to what is made next."""

    known_birth = local._birth_of

    def born(fd: int) -> int | None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return known_birth(fd)
        return status.st_ctime_ns if keeps_birth else None

    def anew(work: Path) -> None:
        item, marker = work / EXTRA / "item", work / EXTRA / "DONE" / "item.TXT"
        marker.parent.mkdir()
        execute(work, "DELETE FROM item")
        item.rename(marker)  # the number, surely; other bytes, and born now
        marker.write_bytes(b"")
        write(work, "item", version=2)

    let_wait = holds.Holds.let_wait
    waited: list[bytes] = []

    def told_let_wait(self: holds.Holds, path: bytes) -> None:
        waited.append(path)
        let_wait(self, path)

    monkeypatch.setattr(local, "_birth_of", born)
    monkeypatch.setattr(holds.Holds, "let_wait", told_let_wait)
    seen: list[tuple[dict[str, int], int]] = []

    def look(_: Path) -> None:
        seen.append((rows(place.store), _version(place.store / EXTRA / "item")))

    acts: list[Callable[[Path], object]] = [lambda work: write(work, "item"), anew, look]
    assert live(place, acts, idle=True) == []
    assert seen == [({"item": 2}, 2)]
    assert bool(waited) is not keeps_birth, "born later, it is another one"


@pytest.mark.usefixtures("_rows_of_the_project")
@pytest.mark.parametrize("is_dear", [False, True])
def test_renames_in_every_batch_hold_the_rows_of_the_project_for_a_while_only(
    place: Place, is_dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "_PATIENCE_SECONDS", 0.0 if is_dear else 1000.0)
    monkeypatch.setattr(planning, "_COPIED_AT_MOST", 3 if is_dear else 1000)
    seen: list[int] = []

    def rename(work: Path) -> None:
        number = len(seen)
        if not number:
            write(work, "other")
            (work / EXTRA / "item_0").write_bytes(b"content")
        else:
            (work / EXTRA / f"item_{number - 1}").rename(work / EXTRA / f"item_{number}")
            execute(work, "INSERT OR REPLACE INTO item VALUES (?, ?)", ("other", -number))
        seen.append(-rows(place.store).get("other", 0))

    live(place, [rename] * 12)
    assert max(seen[:-1]) >= 6, seen


def test_new_data_go_on_while_onedata_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    going_on, arrive = Push._going_on, Unverified.arrive

    @contextmanager
    def told_going_on(push: Push, plan: Plan) -> Iterator[None]:
        with going_on(push, plan):
            yield
            happened.append("ends")

    def told_arrive(unverified: Unverified, *arguments: Any, **options: Any) -> bool:
        happened.append("arrives")
        return arrive(unverified, *arguments, **options)

    monkeypatch.setattr(Push, "_going_on", told_going_on)
    monkeypatch.setattr(Unverified, "arrive", told_arrive)
    live(place, [lambda work: write(work, "item"), lambda work: write(work, "item", version=2)])
    assert happened[:3] == ["ends", "arrives", "ends"]


def _live_and_die(place: Place, elsewhere: Path, number: int) -> None:
    """Die at a call, and let another node restore what is there then."""
    chance = random.Random(number)
    happenings = Happenings(chance)
    left = [happenings.act] * 12

    def act(_: object = None) -> None:
        if left:
            left.pop()(place.work)

    life = Life(place, [act] * 12, Fault(chance.randint(40, 600), "crash"))
    life.told_commit = act
    life.live()
    if life.died:
        lost = Place(elsewhere / "lost", copied(place.store, elsewhere / "as it was"))
        unlock(Place(elsewhere / "elsewhere", lost.store))
        assert Life(lost).live().end is Exit.CLEAN
        assert lacks(lost.work) == []
        assert Life(place).live().end is Exit.CLEAN
    assert lacks(place.store) == []
    assert contents(place.store) == contents(place.work)


@pytest.mark.parametrize("number", range(30))
def test_a_death_meanwhile_leaves_rows_that_name_what_is_there(
    place: Place, tmp_path: Path, number: int
) -> None:
    _live_and_die(place, tmp_path, number)


@pytest.mark.usefixtures("_rows_of_the_project")
@pytest.mark.parametrize("number", range(30))
def test_a_death_meanwhile_leaves_rows_of_the_project_that_name_what_is_there(
    place: Place, tmp_path: Path, number: int
) -> None:
    _live_and_die(place, tmp_path, number)


def test_cuts_in_vain_make_a_batch_longer_until_one_takes_all() -> None:
    cut = Cut({}, Due(frozenset(), frozenset(), (), ()))
    batches = object.__new__(Batches)
    seconds = []
    for number in (0, 2, 3, 4, 11, 12):
        batches._in_vain = number
        seconds.append(batches._portion_seconds(Plan(), cut))
    assert seconds == [0.5, 0.5, 1.0, 2.0, 256.0, None]


def test_a_batch_of_few_files_in_which_something_turned_leaves_nothing() -> None:
    """It would wait for databases that wait for what is left, and others for that."""
    cut = Cut({}, Due(frozenset(), frozenset(), (), ()))
    batches = object.__new__(Batches)
    batches._in_vain = 0
    was = Known(Entry(Kind.FILE), Stamp(Kind.FILE, 1, 0, 0, 0, 0o644))
    turned = Difference(b"f", was, Stamp(Kind.DIRECTORY, 2, 0, 0, 0, 0o755))
    few, many = ([Difference(b"%d" % n, None, was.stamp) for n in range(m)] for m in (100, 101))
    assert batches._portion_seconds(Plan(directories=[turned], files=few), cut) is None
    assert batches._portion_seconds(Plan(directories=[turned], files=many), cut) == 0.5
