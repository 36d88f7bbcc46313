"""What databases name stays while they stand; and nothing waits for ever for those that go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync import planning
from onesync.core.plan import Plan
from onesync.mentions import Published
from onesync.push import Push
from onesync.replica.folder import FolderReplica
from tests.campaign.life import Place
from tests.test_named_databases import (
    OLD,
    PROJECT,
    changing,
    looked_for,
    make_database,
)
from tests.test_steady_load import (
    ONE,
    THREE,
    TWO,
    Act,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    without_files,
)

__all__ = ["copies"]
pytestmark = pytest.mark.usefixtures("small_portions")
BATCHES = 100
"""More than these tests need by far."""


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no engine run in circles."""
    carry_out, batches = Push._second_halves, [0]

    def counts(push: Push, plan: Plan) -> None:
        batches[0] += 1
        assert batches[0] < BATCHES, "batches without end"
        carry_out(push, plan)

    monkeypatch.setattr(Push, "_second_halves", counts)


@pytest.fixture(params=[True, False], ids=["remembered", "unknown"])
def mentions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be known what databases name, or nothing as after a restart."""
    if not request.param:
        monkeypatch.setattr(Published, "named", lambda _, __, runs: runs)


@pytest.mark.usefixtures("mentions")
def test_many_runs_that_name_each_other_are_deleted_in_portions(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_REMOVED_AT_ONCE", 2)
    runs = [f"Runs/00000{number}_R" for number in range(1, 7)]
    wrong: list[str] = []

    def begin(work: Path) -> None:
        for run, before in zip(runs, [runs[0], *runs], strict=False):
            put(work, f"{run}/extra/file")
            execute(work, run, "INSERT INTO item VALUES (?)", f"{before}/extra/file")

    def delete(work: Path) -> None:
        for run in runs:
            shutil.rmtree(work / run)

    def look() -> None:
        wrong.extend(without_files(place.store, *runs))

    act_and_look(place, [begin, nothing, delete, nothing], look, at_rest=True)
    assert wrong == []
    assert not any((place.store / run).exists() for run in runs)


@pytest.mark.usefixtures("mentions")
def test_many_databases_are_deleted_in_portions(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_REMOVED_AT_ONCE", 2)
    databases = [f"{run}/{number}.sqlite" for run in (ONE, TWO) for number in range(4)]

    def begin(work: Path) -> None:
        put(work, f"{ONE}/a", f"{TWO}/a")
        for name in databases:
            make_database(work, name)

    def delete(work: Path) -> None:
        for name in databases:
            (work / name).unlink()

    act_and_look(place, [begin, nothing, delete, nothing], lambda: None, at_rest=True)
    assert not any((place.store / name).exists() for name in databases)


def test_a_rename_waits_for_all_databases_that_go_and_name_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_REMOVED_AT_ONCE", 1)
    runs = [TWO, THREE, "Runs/000004_Pick"]
    wrong: list[str] = []

    def begin(work: Path) -> None:
        put(work, OLD, f"{ONE}/a")
        for run in runs:
            execute(work, run, "INSERT INTO item VALUES (?)", OLD, f"{ONE}/a")

    def change(work: Path) -> None:
        for run in runs:
            (work / run / "set.sqlite").unlink()
        (work / OLD).rename(work / ONE / "renamed")

    def look() -> None:
        wrong.extend(without_files(place.store, *runs))

    act_and_look(place, [begin, nothing, change, nothing], look, at_rest=True)
    assert wrong == []
    assert (place.store / ONE / "renamed").exists()
    assert not any((place.store / run / "set.sqlite").exists() for run in runs)


@pytest.mark.parametrize("old", ["Movies/old", f"{ONE}/extra/old"])
def test_databases_that_come_and_go_starve_no_removal(place: Place, old: str) -> None:
    stands: list[int] = []
    count = [0]

    def name_of(number: int) -> str:
        return f"{(TWO, THREE)[number % 2]}/{number}.sqlite"

    def load(work: Path) -> None:
        number = count[0]
        count[0] += 1
        make_database(work, name_of(number), f"{ONE}/other", f"{TWO}/a", f"{THREE}/a")
        if number >= 4:
            (work / name_of(number - 4)).unlink()
        of_old = [place.store / name_of(n) for n in range(number - 4)]
        stands.append(sum(path.exists() for path in of_old))

    def begin(work: Path) -> None:
        put(work, old, f"{ONE}/other", f"{TWO}/a", f"{THREE}/a")

    def goes(work: Path) -> None:
        load(work)
        (work / old).unlink()

    def is_gone(work: Path) -> None:
        load(work)
        assert not (place.store / old).exists()

    acts = [begin, nothing, *[load] * 8, goes, *[load] * 12, is_gone]
    act_and_look(place, acts, lambda: None)
    assert stands[-1] < 5


@pytest.mark.parametrize("delay", [0, 1])
def test_what_the_projects_database_named_goes_after_it(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, delay: int
) -> None:
    """It was busy, is deleted, and its removal waits for a file of another run."""
    missing = f"{THREE}/extra/missing"
    changing(monkeypatch, missing)
    look, wrong, seen = looked_for(place, PROJECT)

    def begin(work: Path) -> None:
        put(work, OLD)
        execute(work, PROJECT, "INSERT INTO item VALUES (?)", OLD)

    def loses(work: Path) -> None:
        copies.busy = "/set.sqlite"
        execute(work, PROJECT, "DELETE FROM item WHERE path = ?", OLD)
        (work / OLD).unlink()
        put(work, f"{ONE}/x")

    def goes(work: Path) -> None:
        copies.busy = None
        (work / "set.sqlite").unlink()

    def misses(work: Path) -> None:
        put(work, missing)

    def both(work: Path) -> None:
        misses(work)
        goes(work)

    more: list[Act] = [goes, misses] if delay else [both]
    another: Act = lambda work: put(work, f"{ONE}/y")  # noqa: E731
    act_and_look(place, [begin, nothing, nothing, loses, another, *more, *[nothing] * 8], look)
    assert OLD in seen
    assert wrong == []
    assert not (place.store / OLD).exists()


@pytest.mark.parametrize("how", ["file", "directory", "stale"])
def test_a_file_goes_after_a_database_whose_rename_waits(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its run lacks a file. ``stale``: it is deleted, and its directory is renamed."""
    missing, database = f"{TWO}/missing", f"{TWO}/dir/set.sqlite"
    changing(monkeypatch, missing)
    look, wrong, seen = looked_for(place, f"{TWO}/dir")

    def begin(work: Path) -> None:
        put(work, OLD)
        execute(work, f"{TWO}/dir", "INSERT INTO item VALUES (?)", OLD)

    def loses(work: Path) -> None:
        copies.busy = TWO
        execute(work, f"{TWO}/dir", "DELETE FROM item WHERE path = ?", OLD)
        (work / OLD).unlink()
        put(work, f"{ONE}/x")

    def goes(work: Path) -> None:
        copies.busy = None
        put(work, missing)
        if how == "file":
            (work / database).rename(work / TWO / "dir" / "renamed.sqlite")
            return
        if how == "stale":
            (work / database).unlink()
        (work / TWO / "dir").rename(work / TWO / "renamed")

    another: Act = lambda work: put(work, f"{ONE}/y")  # noqa: E731
    acts = [begin, nothing, nothing, loses, another, goes, *[nothing] * 8]
    act_and_look(place, acts, look)
    assert OLD in seen
    assert wrong == []
    assert not (place.store / OLD).exists()


@pytest.mark.parametrize("what", ["file", "directory", "rename"])
def test_as_browsed_a_database_goes_before_what_it_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    wrong: list[str] = []
    old = f"{ONE}/extra/sub/old"
    database = f"{TWO}/set.sqlite"

    def looks(operation: Callable[..., object]) -> Callable[..., object]:
        def looked(replica: FolderReplica, *arguments: object, **more: object) -> object:
            result = operation(replica, *arguments, **more)
            wrong.extend(without_files(place.store, TWO))
            return result

        return looked

    for name in ("rename", "remove", "unlink"):
        monkeypatch.setattr(FolderReplica, name, looks(getattr(FolderReplica, name)))

    def begin(work: Path) -> None:
        put(work, old)
        execute(work, TWO, "INSERT INTO item VALUES (?)", old)

    def goes(work: Path) -> None:
        (work / database).unlink()
        if what == "file":
            (work / old).unlink()
        elif what == "directory":
            shutil.rmtree((work / old).parent)
        else:
            (work / old).parent.rename(work / ONE / "extra" / "renamed")

    act_and_look(place, [begin, nothing, nothing, goes, *[nothing] * 4], lambda: None)
    assert wrong == []
    assert not (place.store / database).exists()
    assert not (place.store / old).exists()
