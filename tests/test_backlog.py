"""A backlog of new data: what batches look at, and that nothing which waits for it is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from onesync.batch import Batches
from onesync.core.model import RelPath
from onesync.core.plan import Difference
from onesync.push import Push
from onesync.scanner import Scanner
from onesync.waiting import Waiting
from tests.campaign.life import PORTION, Place
from tests.test_late_data import come
from tests.test_steady_load import (
    EXTRA,
    MANY,
    ONE,
    TWO,
    Act,
    act_and_look,
    execute,
    nothing,
    put,
    rows,
    without_files,
    write,
)

pytestmark = pytest.mark.usefixtures("small_portions")


@pytest.fixture
def let_go(monkeypatch: pytest.MonkeyPatch) -> list[set[RelPath]]:
    """Return which snapshots were let go while data were waited for."""
    found: list[set[RelPath]] = []
    real = Waiting.let_go

    def told(self: Waiting) -> None:
        found.append(set(self.frozen))
        real(self)

    monkeypatch.setattr(Waiting, "let_go", told)
    return found


def test_a_batch_looks_at_few_of_a_backlog(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = Scanner.scan

    def scan(
        self: Scanner, paths: Iterable[RelPath], trees: Iterable[RelPath], **options: bool
    ) -> object:
        paths = set(paths)
        looked.append(sum(b"many_" in path for path in paths))
        return real(self, paths, trees, **options)

    monkeypatch.setattr(Scanner, "scan", scan)
    act_and_look(place, [lambda work: put(work, *MANY), nothing, nothing], lambda: None)
    assert come(place) == len(MANY)
    # The first one comes upon all of them in a new directory; the last one brings all that is left.
    assert sorted(looked)[-2] <= 2 * (PORTION + 1)


def test_what_no_row_names_may_go_while_a_database_waits(
    place: Place, let_go: list[set[RelPath]]
) -> None:
    """A temporary outside of the runs, which rows of all databases might name, and a marker."""
    temporary, marker = "temp_000001", f"{ONE}/extra/DONE/many_0"
    seen: list[int] = []

    def begin(work: Path) -> None:
        put(work, *MANY, marker, *(f"{temporary}.{n}" for n in range(9)))
        execute(work, ONE, "INSERT INTO item VALUES (?)", MANY[-1])

    def goes(work: Path) -> None:
        (work / marker).unlink()
        for path in work.glob(f"{temporary}.*"):
            path.unlink()

    def look() -> None:
        seen.append(come(place))
        assert not rows(place.store, ONE) or seen[-1] == len(MANY)

    act_and_look(place, [begin, goes, nothing, nothing], look)
    assert any(0 < number < len(MANY) for number in seen)
    assert rows(place.store, ONE) == {MANY[-1]}
    assert let_go == []


def test_what_a_row_names_may_not(place: Place, let_go: list[set[RelPath]]) -> None:
    named: list[set[str]] = []

    def goes(work: Path) -> None:
        execute(work, ONE, "DELETE FROM item WHERE path = ?", MANY[-1])
        (work / MANY[-1]).unlink()

    def look() -> None:
        named.append(without_files(place.store, ONE))

    act_and_look(place, [lambda work: write(work, ONE, *MANY), goes, nothing, nothing], look)
    assert named == [set()] * len(named)
    assert let_go
    assert rows(place.store, ONE) == set(MANY[:-1])


def test_a_marker_waits_for_data_that_were_renamed_meanwhile(place: Place) -> None:
    """No row names them, so the snapshots stay; but the marker promises what has another name."""
    old, new = MANY[-1], f"{EXTRA}/zzz"
    marker = f"{EXTRA}/DONE/many_11"
    wrong: list[str] = []

    def begin(work: Path) -> None:
        put(work, *MANY, marker)
        execute(work, ONE, "INSERT INTO item VALUES (?)", MANY[0])

    def look() -> None:
        is_there = any((place.store / name).exists() for name in (old, new))
        if (place.store / marker).exists() and not is_there:
            wrong.append(f"the marker before its data at {come(place)}")

    def renames(work: Path) -> None:
        (work / old).rename(work / new)
        put(work, *(f"{EXTRA}/other_{n:02d}" for n in range(30)))  # each comes before it

    act_and_look(place, [begin, renames, nothing, nothing], look)
    assert wrong == []
    assert (place.store / marker).exists()
    assert (place.store / new).exists()
    assert not (place.store / old).exists()


def test_an_old_name_stays_until_what_nobody_looks_at_has_come(place: Place) -> None:
    """Renamed and touched files are late, and then their directory is renamed."""
    one, two, three = f"{TWO}/extra/one", f"{TWO}/extra/two", f"{TWO}/extra/three"
    names = [f"item_{n}" for n in range(4)]
    lost: list[str] = []
    is_there: list[bool] = []

    def turn(work: Path) -> None:
        is_there.append(True)
        put(work, *MANY)
        (work / two).mkdir()
        for name in names:
            (work / one / name).rename(work / two / name)
            (work / two / name).touch()

    def renames(work: Path) -> None:
        (work / two).rename(work / three)

    def look() -> None:
        for name in names if is_there else ():
            if not any((place.store / at / name).exists() for at in (one, two, three)):
                lost.append(name)

    begin: list[Act] = [lambda work: put(work, *(f"{one}/{n}" for n in names)), *[nothing] * 4]
    act_and_look(place, [*begin, turn, renames, *[nothing] * 4], look)
    assert lost == []
    assert sorted(path.name for path in (place.store / three).iterdir()) == names
    assert not (place.store / two).exists()


def test_what_a_removal_waits_for_may_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file was renamed, and goes while it is copied: nothing is left that would come."""
    old, new = f"{EXTRA}/old", f"{EXTRA}/new"
    bring, batch = Push._bring, Batches.batch
    batches: list[int] = []

    def goes(push: Push, difference: Difference) -> object:
        if difference.path != new.encode():
            return bring(push, difference)
        push.outcome.retry.add(difference.path)  # as what changed while it was copied
        push._holds.leave_behind(difference.path, is_missing=True)
        (place.work / new).unlink()
        return None

    def renames(work: Path) -> None:
        (work / old).rename(work / new)
        os.utime(work / new, (1, 1))  # so that no rename is recognised

    def counted(self: Batches, *, everything: bool = False) -> bool:
        batches.append(1)
        assert len(batches) < 50, "it never rests"
        return batch(self, everything=everything)

    monkeypatch.setattr(Push, "_bring", goes)
    monkeypatch.setattr(Batches, "batch", counted)
    acts: list[Act] = [lambda work: put(work, old), nothing, nothing, renames, nothing]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert not (place.store / old).exists()
