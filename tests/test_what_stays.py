"""What stays keeps others with it: only copies, what its rows name, and what names those."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync import planning
from onesync.core.plan import Difference
from onesync.push import Push
from onesync.replica.folder import FolderReplica
from onesync.transfer import Source
from tests.campaign.life import Place
from tests.test_changed_kinds import forget, looked_for, seconds
from tests.test_named_databases import OLD, changing, make_database
from tests.test_steady_load import (
    EXTRA,
    ONE,
    THREE,
    TWO,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    without_files,
    write,
)

__all__ = ["copies", "seconds"]
FOUR = "Runs/000004_Pick"
ONLY = b"the only one"
LATE = f"{TWO}/changing"


def begin(work: Path) -> None:
    """Let the database of the second run name what turns in the first."""
    put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a", f"{FOUR}/a")
    execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, f"{TWO}/a")


def turn_and_hold(work: Path) -> None:
    """OLD is a directory; the database that named it is held back by a file that changes."""
    forget(work, TWO, OLD)
    (work / OLD).unlink()
    (work / OLD).mkdir()
    put(work, LATE)
    execute(work, TWO, "INSERT INTO item VALUES (?)", LATE)


def lost_while(place: Place, *acts: Callable[[Path], None], load: bool = True) -> list[int]:
    lost: list[int] = []
    begun: list[int] = []

    def more(work: Path) -> None:
        if load:
            put(work, f"{THREE}/z{len(begun)}")
        begun.append(1)

    def look() -> None:
        files = [p for p in place.store.rglob("*") if p.is_file()]
        if begun and ONLY not in [p.read_bytes() for p in files]:
            lost.append(len(begun))

    def last(work: Path) -> None:
        acts[-1](work)
        begun.append(1)

    act_and_look(place, [acts[0], nothing, nothing, *acts[1:-1], last, *[more] * 10], look)
    assert ONLY in [p.read_bytes() for p in place.store.rglob("*") if p.is_file()]
    return lost


def test_the_only_copy_of_what_is_to_come_there_may_lie_beneath_what_turned(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d -> file, its x renamed and touched into OLD, which stays as found out by the push."""
    changing(monkeypatch, LATE)
    folder = f"{THREE}/extra/d"

    def first(work: Path) -> None:
        begin(work)
        put(work, f"{folder}/x")
        (work / folder / "x").write_bytes(ONLY)

    def changes(work: Path) -> None:
        turn_and_hold(work)
        (work / folder / "x").rename(work / OLD / "x")
        os.utime(work / OLD / "x", (1, 1))
        (work / folder).rmdir()
        put(work, folder)

    assert lost_while(place, first, changes) == []


def test_the_only_copy_is_not_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(monkeypatch, LATE)
    old = f"{THREE}/extra/x"

    def first(work: Path) -> None:
        begin(work)
        put(work, old)
        (work / old).write_bytes(ONLY)

    def changes(work: Path) -> None:
        turn_and_hold(work)
        (work / old).rename(work / OLD / "x")
        (work / old).write_bytes(b"another one")

    assert lost_while(place, first, changes) == []


@pytest.mark.parametrize("what", ["file", "directory"])
def test_the_only_copy_stays_whose_removal_is_due(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is moved out of the working directory, its removal seen, and moved back into OLD."""
    changing(monkeypatch, LATE)
    old = f"{THREE}/extra/d/x"
    out = place.home / "out"

    def first(work: Path) -> None:
        begin(work)
        put(work, old)
        (work / old).write_bytes(ONLY)

    def leave(work: Path) -> None:
        (work / old).rename(out)
        if what == "directory":
            (work / old).parent.rmdir()
        put(work, f"{THREE}/x")

    def changes(work: Path) -> None:
        turn_and_hold(work)
        out.rename(work / OLD / "x")

    assert lost_while(place, first, leave, changes) == []


@pytest.mark.parametrize("what", ["beneath", "itself"])
def test_what_a_database_names_that_stays_is_not_removed(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    changing(monkeypatch, LATE)
    folder = f"{EXTRA}/p"
    look, wrong, seen = looked_for(place, folder)

    def first(work: Path) -> None:
        begin(work)
        put(work, f"{THREE}/y", f"{folder}/b")
        execute(work, folder, "INSERT INTO item VALUES (?)", f"{THREE}/y")

    def delete(work: Path) -> None:
        (work / THREE / "y").unlink()
        put(work, f"{FOUR}/x")

    def changes(work: Path) -> None:
        turn_and_hold(work)
        if what == "beneath":
            shutil.rmtree(work / folder)
            put(work, folder)
        else:
            (work / folder / "set.sqlite").unlink()
            (work / folder / "set.sqlite").symlink_to("nowhere")

    act_and_look(place, [first, nothing, nothing, delete, changes, *[nothing] * 10], look)
    assert seen
    assert wrong == []


@pytest.mark.parametrize("how", ["locked", "held"])
@pytest.mark.parametrize("what", ["beneath", "itself"])
@pytest.mark.usefixtures("seconds")
def test_what_turned_stays_for_a_database_that_turned_and_stays(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    if how == "held":
        changing(monkeypatch, LATE)
    folder, other = f"{EXTRA}/p", f"{THREE}/extra/old"
    look, wrong, seen = looked_for(place, folder)

    def first(work: Path) -> None:
        begin(work)
        put(work, other, f"{folder}/b")
        execute(work, folder, "INSERT INTO item VALUES (?)", other)

    def changes(work: Path) -> None:
        if how == "held":
            turn_and_hold(work)
        else:
            copies.busy, copies.patience = TWO, 6
            execute(work, TWO, "INSERT INTO item VALUES (?)", f"{ONE}/a")
        if what == "beneath":
            shutil.rmtree(work / folder)
            put(work, folder)
        else:
            (work / folder / "set.sqlite").unlink()
            (work / folder / "set.sqlite").symlink_to("nowhere")
        (work / other).unlink()
        put(work, f"{other}/n")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 10], look)
    assert seen
    assert wrong == []


def test_what_turned_stays_for_a_database_that_waits_for_an_only_copy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """THREE/x is all that OneData has of TWO/changing; what has its name now waits for that."""
    changing(monkeypatch, LATE)
    other = f"{THREE}/extra/old"
    look, wrong, seen = looked_for(place, THREE)

    def first(work: Path) -> None:
        begin(work)
        put(work, other, f"{THREE}/x")
        execute(work, THREE, "INSERT INTO item VALUES (?)", other, f"{THREE}/a")

    def changes(work: Path) -> None:
        (work / THREE / "x").rename(work / LATE)
        (work / THREE / "x").write_bytes(b"another")
        forget(work, THREE, other)
        (work / other).unlink()
        put(work, f"{other}/n")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 10], look)
    assert other in seen
    assert wrong == []


def test_a_marker_is_revoked_though_a_database_is_kept(place: Place) -> None:
    """TWO's database moved to a taken name; it names the first run, which is made anew."""
    moved = place.work / TWO / "moved.sqlite"
    marker, data = f"{ONE}/DONE/1", f"{ONE}/data"
    wrong: list[bytes] = []

    def first(work: Path) -> None:
        put(work, OLD, data, marker)
        execute(work, TWO, "INSERT INTO item VALUES (?)", OLD, data)

    def take(work: Path) -> None:
        (place.store / TWO / moved.name).write_bytes(b"theirs")
        (work / TWO / "set.sqlite").rename(moved)
        put(work, f"{ONE}/b")

    def more(work: Path) -> None:
        put(work, f"{ONE}/{len(list((work / ONE).iterdir()))}")

    def anew(work: Path) -> None:
        (work / marker).unlink()
        (work / data).write_bytes(b"half of the new d")

    def look() -> None:
        found = (place.store / data).read_bytes() if (place.store / data).exists() else b"data"
        if found != b"data" and (place.store / marker).exists():
            wrong.append(found)

    acts = [first, nothing, nothing, take, more, more, anew, *[more] * 3]
    act_and_look(place, acts, look)
    assert wrong == []
    assert not (place.store / marker).exists()


def test_no_marker_is_left_behind_its_data_by_a_portion(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_REMOVED_AT_ONCE", 1)
    marker, folder = f"{ONE}/DONE/1", f"{ONE}/extra"
    wrong: list[int] = []

    def first(work: Path) -> None:
        put(work, f"{folder}/data", marker, f"{ONE}/a")
        make_database(work, f"{folder}/x.sqlite", f"{folder}/data")

    def delete(work: Path) -> None:
        (work / marker).unlink()
        shutil.rmtree(work / folder)

    def look() -> None:
        if (place.store / marker).exists() and not (place.store / folder / "data").exists():
            wrong.append(1)

    seen: list[int] = []

    def looked() -> None:
        if seen:
            look()

    def deleted(work: Path) -> None:
        delete(work)
        seen.append(1)

    act_and_look(place, [first, nothing, nothing, deleted, *[nothing] * 6], looked)
    assert wrong == []
    assert not (place.store / marker).exists()


def test_what_turned_stays_for_a_database_that_waits_for_a_rename_into_what_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(monkeypatch, LATE)
    other, source = f"{THREE}/extra/old", f"{FOUR}/x"
    look, wrong, seen = looked_for(place, ONE)
    into = f"{OLD}/x"

    def first(work: Path) -> None:
        begin(work)
        put(work, other, source)
        execute(work, ONE, "INSERT INTO item VALUES (?)", other, f"{ONE}/a")

    def changes(work: Path) -> None:
        turn_and_hold(work)
        (work / source).rename(work / into)

    def again(work: Path) -> None:
        forget(work, ONE, other)
        (work / other).unlink()
        put(work, f"{other}/n")

    act_and_look(place, [first, nothing, nothing, changes, again, *[nothing] * 10], look)
    assert other in seen
    assert wrong == []


@pytest.mark.parametrize("name", ["a.sqlite", "zz.sqlite"])
def test_as_browsed_a_database_that_turned_goes_before_what_it_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rows of TWO name OLD; both turn in one batch."""
    wrong: list[str] = []

    def looks(operation: Callable[..., object]) -> Callable[..., object]:
        def looked(replica: FolderReplica, *arguments: object, **more: object) -> object:
            result = operation(replica, *arguments, **more)
            wrong.extend(without_files(place.store, TWO, is_there=Path.is_file))
            return result

        return looked

    for operation in ("rename", "remove", "unlink"):
        monkeypatch.setattr(FolderReplica, operation, looks(getattr(FolderReplica, operation)))

    def changes(work: Path) -> None:
        (work / TWO / "set.sqlite").unlink()
        (work / TWO / "set.sqlite").symlink_to("nowhere")
        (work / OLD).unlink()
        put(work, f"{OLD}/n")

    act_and_look(place, [begin, nothing, nothing, changes, *[nothing] * 4], lambda: None)
    assert wrong == []


def test_the_only_copy_stays_in_a_burst(place: Place, small_portions: None) -> None:
    """Nothing but many new files hold the database back."""
    folder = f"{THREE}/extra/d"
    many = [f"{TWO}/extra/m{n}" for n in range(30)]

    def first(work: Path) -> None:
        begin(work)
        put(work, f"{folder}/x")
        (work / folder / "x").write_bytes(ONLY)

    def changes(work: Path) -> None:
        forget(work, TWO, OLD)
        (work / OLD).unlink()
        (work / OLD).mkdir()
        put(work, *many)
        execute(work, TWO, "INSERT INTO item VALUES (?)", *many)
        (work / folder / "x").rename(work / OLD / "x")
        os.utime(work / OLD / "x", (1, 1))
        (work / folder).rmdir()
        put(work, folder)

    assert lost_while(place, first, *[nothing] * 6, changes, load=False) == []


def test_a_file_of_one_run_starves_no_marker_of_another(
    place: Place, monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    """A new small file of TWO changes for ever."""
    changing(monkeypatch, LATE)[0] = 10_000
    marker = f"{ONE}/DONE/1"
    times: list[float] = []

    def changes(work: Path) -> None:
        turn_and_hold(work)
        put(work, f"{OLD}/n", marker)
        times.append(seconds[0])

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{seconds[0]}")
        if (place.store / marker).exists():
            times.append(seconds[0])

    def end(work: Path) -> None:
        (work / LATE).unlink()
        forget(work, TWO, LATE)

    acts = [begin, nothing, nothing, changes, *[load] * 60, end, *[nothing] * 4]
    act_and_look(place, acts, lambda: None)
    assert times[1:]
    assert times[1] - times[0] < 20


def test_a_directory_with_a_database_becomes_a_file_at_once(
    place: Place, seconds: list[float]
) -> None:
    """Its own database is gone with it: it does not wait for that."""
    folder = f"{EXTRA}/p"
    times: list[float] = []

    def first(work: Path) -> None:
        put(work, f"{folder}/b", f"{ONE}/a", f"{THREE}/a")
        make_database(work, f"{folder}/x.sqlite", f"{folder}/b")

    def changes(work: Path) -> None:
        shutil.rmtree(work / folder)
        put(work, folder, f"{THREE}/x")
        times.append(seconds[0])

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{seconds[0]}")

    def look() -> None:
        if times and (place.store / folder).is_file():
            times.append(seconds[0])

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 16], look)
    assert times[1] - times[0] < 8, "it waited for a database"


def test_no_marker_is_left_behind_its_data_by_a_real_portion(place: Place) -> None:
    markers = [f"{ONE}/DONE/{n:04}" for n in range(2010)]
    folder = f"{ONE}/extra"
    wrong: list[int] = []

    def first(work: Path) -> None:
        put(work, f"{folder}/data", *markers, f"{ONE}/a")
        make_database(work, f"{folder}/x.sqlite", f"{folder}/data")

    def delete(work: Path) -> None:
        for marker in markers:
            (work / marker).unlink()
        shutil.rmtree(work / folder)

    def look() -> None:
        left = [m for m in markers if (place.store / m).exists()]
        if left and not (place.store / folder / "data").exists():
            wrong.append(len(left))

    def wait(work: Path) -> None:
        wrong.clear()

    act_and_look(place, [first, *[nothing] * 6, wait, delete, *[nothing] * 6], look)
    assert wrong == []


def test_the_clock_of_what_stays_runs_on_though_rows_name_what_is_beneath(
    place: Place, monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    """A new small file of TWO changes for ever, and rows of TWO name what is beneath, too."""
    changing(monkeypatch, LATE)[0] = 10_000
    marker = f"{ONE}/DONE/1"
    times: list[float] = []

    def changes(work: Path) -> None:
        turn_and_hold(work)
        put(work, f"{OLD}/n", marker)
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{OLD}/n")
        times.append(seconds[0])

    def load(work: Path) -> None:
        put(work, f"{THREE}/z{seconds[0]}")
        if (place.store / marker).exists():
            times.append(seconds[0])

    def end(work: Path) -> None:
        (work / LATE).unlink()
        forget(work, TWO, LATE)

    acts = [begin, nothing, nothing, changes, *[load] * 60, end, *[nothing] * 4]
    act_and_look(place, acts, lambda: None)
    assert times[1:], seconds
    assert times[1] - times[0] < 20


def test_an_only_copy_stays_though_its_new_place_turned_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is a file now, and its x in OLD, which turned too, changes while it travels."""
    changing(monkeypatch, f"{OLD}/x")
    folder = f"{THREE}/extra/d"

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{folder}/x")
        (work / folder / "x").write_bytes(ONLY)

    def changes(work: Path) -> None:
        (work / OLD).unlink()
        (work / OLD).mkdir()
        (work / folder / "x").rename(work / OLD / "x")
        os.utime(work / OLD / "x", (1, 1))
        (work / folder).rmdir()
        put(work, folder)

    assert lost_while(place, first, changes) == []


def test_what_turned_stays_for_a_database_held_for_the_only_copy_of_what_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """THREE/x is all of OLD/x, which stays; so the new THREE/x waits, and THREE's database."""
    changing(monkeypatch, LATE)
    other = f"{FOUR}/extra/old"
    look, wrong, seen = looked_for(place, THREE)

    def first(work: Path) -> None:
        begin(work)
        put(work, other, f"{THREE}/x")
        (work / THREE / "x").write_bytes(ONLY)
        execute(work, THREE, "INSERT INTO item VALUES (?)", other, f"{THREE}/a")

    def changes(work: Path) -> None:
        turn_and_hold(work)
        (work / THREE / "x").rename(work / OLD / "x")
        (work / THREE / "x").write_bytes(b"another")
        forget(work, THREE, other)
        (work / other).unlink()
        put(work, f"{other}/n")

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 10], look)
    assert other in seen
    assert wrong == []


def test_what_stays_goes_under_a_steady_load(place: Place, seconds: list[float]) -> None:
    """Rows of TWO name OLD/n, and ever new data: more than come with a batch."""
    times: list[float] = []
    count = [0]

    def more(work: Path) -> None:
        count[0] += 1
        write(work, TWO, *[f"{TWO}/extra/m{count[0]}-{n}" for n in range(4)])
        write(work, FOUR, *[f"{FOUR}/extra/m{count[0]}-{n}" for n in range(4)])
        if (place.store / OLD / "n").exists():
            times.append(count[0])

    def changes(work: Path) -> None:
        forget(work, TWO, OLD)
        (work / OLD).unlink()
        put(work, f"{OLD}/n")
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{OLD}/n")
        more(work)

    act_and_look(place, [begin, nothing, nothing, more, more, changes, *[more] * 60], lambda: None)
    assert times
    assert times[0] < 40, times[0]


def test_an_only_copy_stays_though_the_name_beneath_what_turned_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one above, but OneData refuses OLD/x for good."""
    bring = Push._try_to_bring

    def refuses(push: Push, difference: Difference, source: Source) -> object:
        if os.fsdecode(difference.path) == f"{OLD}/x":
            push._refuse(difference.path)
            return None
        return bring(push, difference, source)

    monkeypatch.setattr(Push, "_try_to_bring", refuses)
    folder = f"{THREE}/extra/d"
    there: list[bool] = []

    def first(work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{folder}/x")
        (work / folder / "x").write_bytes(ONLY)

    def changes(work: Path) -> None:
        (work / OLD).unlink()
        (work / OLD).mkdir()
        (work / folder / "x").rename(work / OLD / "x")
        os.utime(work / OLD / "x", (1, 1))
        (work / folder).rmdir()
        put(work, folder)

    def look() -> None:
        there.append(any(p.read_bytes() == ONLY for p in place.store.rglob("*") if p.is_file()))

    act_and_look(place, [first, nothing, nothing, changes, *[nothing] * 4], look)
    assert there[-1]


@pytest.mark.parametrize("others", [False, True])
def test_removals_with_a_kept_database_are_released_though_others_are_kept(
    place: Place, others: bool
) -> None:
    moved, taken = f"{TWO}/moved.sqlite", f"{THREE}/taken"

    def first(work: Path) -> None:
        put(work, f"{ONE}/y", f"{ONE}/a", f"{THREE}/q", f"{FOUR}/a")
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{ONE}/y")

    def take(work: Path) -> None:
        for name in (moved, taken):
            (place.store / name).parent.mkdir(parents=True, exist_ok=True)
            (place.store / name).write_bytes(b"theirs")
        (work / TWO / "set.sqlite").rename(work / moved)
        if others:
            (work / THREE / "q").rename(work / taken)
            os.utime(work / taken, (1, 1))

    def more(work: Path) -> None:
        put(work, f"{FOUR}/{len(list((work / FOUR).iterdir()))}")

    def delete(work: Path) -> None:
        (work / ONE / "y").unlink()
        more(work)

    def free(work: Path) -> None:
        assert (place.store / ONE / "y").exists(), "not kept"
        (place.store / moved).unlink()
        os.utime(work / moved)

    left: list[bool] = []

    def last(work: Path) -> None:
        left.append((place.store / ONE / "y").exists())
        left.append((place.store / moved).read_bytes()[:6] != b"SQLite")

    acts = [first, nothing, nothing, take, more, more, delete, more, more, free, *[more] * 12]
    act_and_look(place, [*acts, last], lambda: None)
    assert left == [False, False]
    assert (place.store / moved).read_bytes()[:6] == b"SQLite"
    assert not (place.store / ONE / "y").exists()


def test_many_removals_go_without_any_database(place: Place) -> None:
    names = [f"{FOUR}/m{n}" for n in range(2001)]

    def first(work: Path) -> None:
        put(work, *names, f"{FOUR}/a")

    def delete(work: Path) -> None:
        for name in names:
            (work / name).unlink()

    act_and_look(
        place, [first, nothing, nothing, delete, *[nothing] * 4], lambda: None, at_rest=True
    )
    assert not (place.store / names[0]).exists()


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("was", ["link", "file"])
def test_a_directory_that_changes_places_with_what_leads_to_it(place: Place, was: str) -> None:
    """The database in it may name the link, which waits for the database: for ten seconds."""
    old, new = f"{EXTRA}/a", f"{EXTRA}/b"
    count = [0]

    def first(work: Path) -> None:
        put(work, f"{old}/f", f"{ONE}/a", f"{THREE}/a")
        make_database(work, f"{old}/set.sqlite", f"{old}/f")
        if was == "link":
            (work / new).symlink_to("a")
        else:
            put(work, new)

    def changes(work: Path) -> None:
        (work / new).unlink()
        (work / old).rename(work / new)
        (work / old).symlink_to("b")
        put(work, f"{new}/new")

    def load(work: Path) -> None:
        count[0] += 1
        put(work, f"{THREE}/z{count[0]}")

    def came(work: Path) -> None:
        assert (place.store / new / "f").exists()
        assert (place.store / new / "new").exists()
        assert not (place.store / old).exists()

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 20, came], lambda: None)
    came(place.work)


def test_things_that_change_places_by_renames_all_come(place: Place) -> None:
    """A directory's file goes to what was a file, and that file to what was the directory."""
    one, other, between = f"{EXTRA}/a", f"{EXTRA}/b", f"{EXTRA}/between"
    count = [0]

    def first(work: Path) -> None:
        put(work, f"{one}/f", other, f"{THREE}/a")
        (work / other).write_bytes(ONLY)

    def changes(work: Path) -> None:
        (work / one / "f").rename(work / between)
        (work / one).rmdir()
        (work / other).rename(work / one)
        (work / other).mkdir()
        (work / between).rename(work / other / "f")

    def load(work: Path) -> None:
        count[0] += 1
        put(work, f"{THREE}/z{count[0]}")

    def came(work: Path) -> None:
        assert (place.store / one).read_bytes() == ONLY
        assert (place.store / other / "f").read_bytes() == b"data"

    act_and_look(place, [first, nothing, nothing, changes, *[load] * 12, came], lambda: None)
    came(place.work)
