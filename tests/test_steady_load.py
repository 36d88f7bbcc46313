"""Runs whose data come in several batches: what waits there, and that nothing waits for ever."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onesync import batch, push, snapshot
from onesync.core.dirty import Due
from onesync.core.model import RelPath
from onesync.cut import Cut, Cuts, Frozen
from onesync.errors import Exit
from onesync.marks import Marks
from onesync.pins import Pins
from onesync.push import Push
from onesync.replica.folder import FolderReplica
from onesync.replica.pour import Pour
from onesync.settings import PushSettings, Settings
from onesync.snapshot import Taken
from tests.campaign.life import PORTION, Life, Place

ONE, TWO = "Runs/000001_Import", "Runs/000002_Align"
EXTRA = f"{ONE}/extra"
pytestmark = pytest.mark.usefixtures("small_portions")

LOAD = 40
"""After so many checkpoints under load everything must have come."""

Act = Callable[[Path], object]


def nothing(_: Path) -> None:
    """Let a batch pass."""


def execute(work: Path, run: str, statement: str, *names: str) -> None:
    (work / run).mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(work / run / "set.sqlite")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS item (path TEXT PRIMARY KEY)")
        database.executemany(statement, [(name,) for name in names])


def rows(folder: Path, run: str) -> set[str]:
    """Return what the run's database in ``folder`` names; nothing where it is not there."""
    database = folder / run / "set.sqlite"
    if not database.exists():
        return set()
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as opened:
            return {path for (path,) in opened.execute("SELECT path FROM item")}
    except sqlite3.OperationalError:
        if database.exists():
            raise
        return set()  # it went just now


def without_files(
    folder: Path, *runs: str, is_there: Callable[[Path], bool] = Path.exists
) -> set[str]:
    """Return what rows of ``runs`` name in ``folder`` and is not there.

    A database goes beside the batches, and then what it named: perhaps between two of our looks.
    So what is missing counts where a database names it still.
    """

    def named() -> set[str]:
        return set().union(*(rows(folder, run) for run in runs))

    missing = {name for name in named() if not is_there(folder / name)}
    return missing & named() if missing else missing


def put(work: Path, *names: str) -> None:
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"data")


def write(work: Path, run: str, *names: str) -> None:
    """Write files, then the rows that name them."""
    put(work, *names)
    execute(work, run, "INSERT INTO item VALUES (?)", *names)


def remove(work: Path, run: str, *names: str) -> None:
    """Remove rows, then the files that they named."""
    execute(work, run, "DELETE FROM item WHERE path = ?", *names)
    for name in names:
        (work / name).unlink()


def rename(work: Path, run: str, old: str, new: str) -> None:
    execute(work, run, "DELETE FROM item WHERE path = ?", old)
    (work / old).rename(work / new)
    execute(work, run, "INSERT INTO item VALUES (?)", new)


def act_and_look(
    place: Place, acts: Sequence[Act], look: Callable[[], None], *, at_rest: bool = False
) -> None:
    """Let one act happen at each checkpoint and at rest; look at each checkpoint and at the end."""
    left = list(acts)

    def act(_: object = None) -> None:
        if left:
            left.pop(0)(place.work)

    def committed() -> None:
        look()
        if not at_rest:
            act()

    life = Life(place, [act] * len(acts))
    life.told_commit = committed
    life.live()
    assert life.end is Exit.CLEAN, life.error
    assert not left
    look()


def live(place: Place, acts: Sequence[Act], *, at_rest: bool = False) -> set[str]:
    """Let one act happen at each checkpoint and at rest; returns the rows without files."""
    wrong: set[str] = set()

    def look() -> None:
        wrong.update(without_files(place.store, ONE, TWO, is_there=Path.is_file))

    act_and_look(place, acts, look, at_rest=at_rest)
    return wrong


class Copies:
    """Copies of databases; those whose paths hold ``busy`` are locked for so many tries."""

    def __init__(self) -> None:
        self.busy: str | None = None
        self.patience = 1000
        self.tries = 0
        self._take = snapshot._take_one

    def take(self, source: bytes, target: bytes) -> Taken:
        """Stand in for ``snapshot._take_one``."""
        self.tries += 1
        assert self.tries < 1000, "copied for ever"
        if self.busy is None or self.busy not in os.fsdecode(source):
            return self._take(source, target)
        self.patience -= 1
        if not self.patience:
            self.busy = None
        return Taken(False, reason="database is locked")


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    found = Copies()
    monkeypatch.setattr(snapshot, "_take_one", found.take)
    return found


FIRST = [f"{EXTRA}/first_{n}" for n in range(8)]


def test_a_file_that_goes_just_before_the_cut_is_named_by_no_row(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Cuts.take
    gone: list[str] = []

    def take(
        cuts: Cuts,
        first: Due,
        awaited: set[RelPath],
        pins: Pins,
        *,
        as_is: bool,
        waiting: Mapping[RelPath, Frozen] | None = None,
        **more: Any,
    ) -> Cut:
        if waiting and not gone:
            gone.append(FIRST[-1])
            remove(place.work, ONE, FIRST[-1])
        return original(cuts, first, awaited, pins, as_is=as_is, waiting=waiting, **more)

    monkeypatch.setattr(Cuts, "take", take)
    assert live(place, [lambda work: write(work, ONE, *FIRST), nothing]) == set()
    assert gone


def test_a_commit_just_after_the_snapshot_comes_with_the_next_batch(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told with the second look, which is of this cut; the snapshot does not have it."""
    take = snapshot._take_one
    left: list[str] = []
    seen: list[set[str]] = []

    def taken(source: bytes, target: bytes) -> Taken:
        copied = take(source, target)
        if left:
            execute(place.work, ONE, "INSERT INTO item VALUES (?)", left.pop())
        return copied

    def begin(work: Path) -> None:
        put(work, f"{EXTRA}/late")
        write(work, ONE, f"{EXTRA}/first")

    def turn(work: Path) -> None:
        left.append(f"{EXTRA}/late")
        write(work, ONE, f"{EXTRA}/second")

    def look(_: Path) -> None:
        seen.append(rows(place.store, ONE))

    monkeypatch.setattr(snapshot, "_take_one", taken)
    act_and_look(place, [begin, nothing, turn, look], lambda: None, at_rest=True)
    assert not left
    assert seen == [{f"{EXTRA}/{name}" for name in ("first", "second", "late")}]


def test_a_file_that_becomes_a_directory_is_named_by_no_row(place: Place) -> None:
    def become(work: Path) -> None:
        remove(work, ONE, FIRST[-1])
        (work / FIRST[-1]).mkdir()

    assert live(place, [lambda work: write(work, ONE, *FIRST), become]) == set()


def test_a_file_that_becomes_a_database_comes_before_the_row_that_names_it(place: Place) -> None:
    def become(work: Path) -> None:
        (work / FIRST[-1]).unlink()
        with closing(sqlite3.connect(work / FIRST[-1])) as database, database:
            database.execute("CREATE TABLE item (path TEXT)")

    assert live(place, [lambda work: write(work, ONE, *FIRST), become]) == set()


def test_a_removal_waits_for_a_database_that_is_busy_while_others_wait(
    place: Place, copies: Copies
) -> None:
    old = f"{TWO}/extra/old"

    def lock(work: Path) -> None:
        remove(work, TWO, old)
        put(work, f"{ONE}/other")
        copies.busy = TWO

    def unlock(_: Path) -> None:
        copies.busy = None

    before: list[Act] = [lambda work: write(work, TWO, old), nothing, nothing, lock]
    after: list[Act] = [lambda work: write(work, ONE, *FIRST), *[nothing] * 3, unlock]
    assert live(place, before + after) == set()
    assert not (place.store / old).exists()


def test_a_removal_waits_for_a_database_that_waits_for_a_rename(place: Place) -> None:
    items = [f"{TWO}/extra/item_{n}" for n in range(4)]

    def change(work: Path) -> None:
        put(work, f"{ONE}/other")
        remove(work, TWO, items[0])
        rename(work, TWO, items[1], f"{TWO}/extra/renamed_1")

    def again(work: Path) -> None:
        rename(work, TWO, items[2], f"{TWO}/extra/renamed_2")
        write(work, ONE, *FIRST)

    begin: list[Act] = [lambda work: write(work, TWO, *items), *[nothing] * 4]
    assert live(place, [*begin, change, again, *[nothing] * 3]) == set()


def test_a_busy_database_costs_onedata_nothing_while_removals_wait_for_it(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes: list[Push] = []
    original = Push.carry_out

    def carry_out(push: Push, *arguments: object) -> object:
        pushes.append(push)
        return original(push, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Push, "carry_out", carry_out)

    def lock(work: Path) -> None:
        remove(work, ONE, FIRST[0])
        copies.busy, copies.patience = f"{ONE}/", 100

    assert live(place, [lambda work: write(work, ONE, *FIRST[:2]), lock], at_rest=True) == set()
    assert not copies.patience
    assert len(pushes) < 10


def test_a_busy_database_does_not_hold_back_the_others_of_its_run(
    place: Place, copies: Copies
) -> None:
    came: list[bool] = []

    def another(work: Path) -> None:
        write(work, ONE, FIRST[0])
        copies.busy = f"{ONE}/set.sqlite"
        with closing(sqlite3.connect(work / ONE / "another.sqlite")) as database, database:
            database.execute("CREATE TABLE item (path TEXT)")

    def look(_: Path) -> None:
        came.append((place.store / ONE / "another.sqlite").exists())
        copies.busy = None

    live(place, [lambda work: write(work, ONE, FIRST[1]), nothing, another, look])
    assert came == [True]


def test_files_that_live_for_seconds_do_not_starve_databases(place: Place) -> None:
    known: list[int] = []

    def load(work: Path) -> None:
        number = len(known)
        for passing in (work / EXTRA).glob("passing*"):
            passing.unlink()
        write(work, ONE, *(f"{EXTRA}/item_{number}_{n}" for n in range(PORTION)))
        put(work, *(f"{EXTRA}/passing_{number}_{n}" for n in range(PORTION + 1)))
        known.append(len(rows(place.store, ONE)))

    assert live(place, [lambda work: write(work, ONE, f"{EXTRA}/first"), *[load] * LOAD]) == set()
    assert known[-1] > 1, known


def test_steady_data_starve_no_removal(place: Place) -> None:
    stands: list[bool] = []
    old = f"{EXTRA}/old"

    def load(work: Path) -> None:
        put(work, *(f"{EXTRA}/item_{len(stands)}_{n}" for n in range(PORTION + 1)))
        stands.append((place.store / old).exists())

    begin: list[Act] = [lambda work: put(work, old), nothing, lambda work: (work / old).unlink()]
    live(place, begin + [load] * LOAD)
    assert not stands[-1]


def test_steady_data_starve_no_marker(place: Place) -> None:
    came: list[bool] = []
    marker = f"{ONE}/DONE/1"

    def load(work: Path) -> None:
        write(work, ONE, *(f"{EXTRA}/item_{len(came)}_{n}" for n in range(PORTION)))
        came.append((place.store / marker).exists())
        if len(came) == 2:
            (work / marker).parent.mkdir()
            (work / marker).touch()

    assert live(place, [lambda work: write(work, ONE, *FIRST), *[load] * LOAD]) == set()
    assert came[-1]


def test_each_batch_brings_some_of_what_databases_wait_for(place: Place) -> None:
    known: list[int] = []

    def load(work: Path) -> None:
        put(work, *(f"{TWO}/other_{n}/item_{len(known)}" for n in range(3 * PORTION)))
        known.append(len(rows(place.store, ONE)))

    live(place, [lambda work: write(work, ONE, *FIRST), *[load] * LOAD])
    assert known.index(len(FIRST)) <= len(FIRST) // (PORTION // 2) + 2


def test_a_burst_of_any_size_delays_nobody(place: Place) -> None:
    many = 6000
    came: list[tuple[int, bool]] = []

    def begin(work: Path) -> None:
        put(work, *(f"{TWO}/item_{n}" for n in range(many)), f"{EXTRA}/other")

    def look(_: Path) -> None:
        burst = sum(1 for _ in (place.store / TWO).glob("item_*"))
        came.append((burst, (place.store / f"{EXTRA}/other").exists()))

    live(place, [begin, look])
    assert came[0][1]
    assert 0 < came[0][0] < many, "the rest of the burst comes later"


def test_a_database_with_a_log_is_not_copied_for_ever(place: Place, copies: Copies) -> None:
    kept: list[sqlite3.Connection] = []

    def open_it(work: Path) -> None:
        (work / ONE).mkdir(parents=True)
        database = sqlite3.connect(work / ONE / "set.sqlite", isolation_level=None)
        kept.append(database)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE item (path TEXT PRIMARY KEY)")

    def read_it(work: Path) -> None:
        os.utime(work / ONE / "set.sqlite-shm")

    live(place, [open_it, read_it], at_rest=True)
    assert 0 < copies.tries < 20
    kept.pop().close()


class Hasty(Place):
    """A node where a large file travels in rounds of one piece each."""

    def settings(self) -> Settings:
        return replace(super().settings(), push=PushSettings(round_seconds=1e-9))


@pytest.mark.parametrize("target", ["new", "old"])
def test_a_large_file_whose_rename_is_not_known_stays_until_it_is_whole_again(
    tmp_path: Path, target: str
) -> None:
    (tmp_path / "store").mkdir()
    place = Hasty(tmp_path / "node", tmp_path / "store")
    content = os.urandom(100_000)
    lacks: list[str] = []

    def begin(_: Life) -> None:
        (place.work / "stack").write_bytes(content)
        (place.work / "old").write_bytes(bytes(50_000))

    def turn(life: Life) -> None:
        assert (place.store / "stack").read_bytes() == content
        (place.work / "stack").rename(place.work / target)
        os.utime(place.work / target, (1, 1))
        life.told_commit = look

    def look() -> None:
        # Nor in an aside, which goes when the checkpoint stands.
        found = [place.store / name for name in ("stack", target)]
        whole = any(path.exists() and path.read_bytes() == content for path in found)
        lacks.extend([] if whole else life.sent[-1:])

    life = Life(place, [begin, turn])
    assert life.live().end is Exit.CLEAN, life.error
    assert not lacks
    assert not (place.store / "stack").exists()


def test_a_directory_that_somebody_put_in_a_files_place_stays_when_ours_goes(place: Place) -> None:
    def turn(work: Path) -> None:
        theirs = place.store / EXTRA / "item"
        theirs.unlink()
        theirs.mkdir()
        (theirs / "precious").touch()
        shutil.rmtree(work / EXTRA)

    begin: Act = lambda work: put(work, f"{EXTRA}/item", f"{EXTRA}/other")  # noqa: E731
    live(place, [begin, turn], at_rest=True)
    assert (place.store / EXTRA / "item" / "precious").exists()


def test_a_small_file_that_grows_while_it_is_pushed_does_not_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_PACE", 1e9)
    item = f"{EXTRA}/item"
    came: list[bytes] = []
    copy = FolderReplica._write_copy

    def grows(
        replica: FolderReplica, origin: int, status: os.stat_result, path: RelPath, pour: Pour
    ) -> None:
        copy(replica, origin, status, path, pour)
        if path == os.fsencode(item) and not came:
            came.append((place.store / item).read_bytes())
            with (place.work / item).open("ab") as file:
                file.write(b" and more")

    monkeypatch.setattr(FolderReplica, "_write_copy", grows)

    def look(work: Path) -> None:
        came.append((place.store / item).read_bytes())
        put(work, f"{EXTRA}/last")

    others = [f"{EXTRA}/other_{n}" for n in range(4)]
    acts: list[Act] = [partial(lambda name, work: put(work, name), name) for name in others]
    assert live(place, [lambda work: put(work, item), *acts, look]) == set()
    assert came == [b"data", b"data and more"]


def test_a_batch_compares_no_file_with_all_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred thousand that come at once these would be billions of comparisons."""
    names = [f"{number}.mrc" for number in range(20)]

    def compared(*_: object) -> bool:
        raise AssertionError("two files were compared")

    def fill(_: Life) -> None:
        for name in names:
            (place.work / name).write_bytes(b"1")

    monkeypatch.setattr(push._Ready, "__eq__", compared)
    life = Life(place, [fill])
    assert life.live().end is Exit.CLEAN, life.error
    assert all((place.store / name).read_bytes() == b"1" for name in names)


# -- who waits for whose data ---------------------------------------------------------------------

THREE = "Runs/000003_Extract"
MANY = [f"{EXTRA}/many_{n}" for n in range(12)]


def seen_while_it_comes(place: Place, begin: Act) -> list[tuple[set[str], set[str], set[str], int]]:
    """Return, of each checkpoint, the rows of the runs and how many of MANY are there."""
    seen: list[tuple[set[str], set[str], set[str], int]] = []

    def look() -> None:
        come = sum((place.store / name).exists() for name in MANY)
        of = [rows(place.store, run) for run in (ONE, TWO, THREE)]
        seen.append((of[0], of[1], of[2], come))

    act_and_look(place, [begin, nothing], look)
    return seen


def test_a_database_does_not_wait_for_a_run_that_it_does_not_mention(place: Place) -> None:
    own = f"{TWO}/extra/own"

    def begin(work: Path) -> None:
        write(work, ONE, *MANY)
        write(work, TWO, own)

    seen = seen_while_it_comes(place, begin)
    assert any(two and not one and come < len(MANY) for one, two, _, come in seen)
    assert all(come == len(MANY) for one, _, _, come in seen if one)
    assert seen[-1][0] == set(MANY)


@pytest.mark.parametrize("names", [MANY[-1], EXTRA + "/many_"])
def test_a_database_waits_for_what_it_mentions(place: Place, names: str) -> None:
    """For a file, or for all whose names begin so."""
    seen: list[bool] = []

    def begin(work: Path) -> None:
        put(work, *MANY)
        execute(work, TWO, "INSERT INTO item VALUES (?)", names)

    def look() -> None:
        seen.append(all((place.store / name).exists() for name in MANY if name.startswith(names)))
        assert seen[-1] or not rows(place.store, TWO)

    act_and_look(place, [begin, nothing], look)
    assert not all(seen)
    assert rows(place.store, TWO) == {names}


def test_a_database_waits_with_the_one_that_it_mentions(place: Place) -> None:
    """Rows of the third run say what rows of the second one are; these name data that are late."""

    def begin(work: Path) -> None:
        put(work, *MANY)
        execute(work, TWO, "INSERT INTO item VALUES (?)", MANY[-1])
        execute(work, THREE, "INSERT INTO item VALUES (?)", f"{TWO}/set.sqlite")

    seen = seen_while_it_comes(place, begin)
    assert any(come < len(MANY) for _, _, _, come in seen)
    assert all(two for _, two, three, _ in seen if three)
    assert seen[-1][2] == {f"{TWO}/set.sqlite"}


@pytest.mark.parametrize("is_older", [False, True])
def test_a_database_waits_for_what_its_links_lead_to(place: Place, is_older: bool) -> None:
    link = f"{TWO}/extra/link"

    def make_link(work: Path) -> None:
        (work / link).parent.mkdir(parents=True)
        (work / link).symlink_to(f"../../../{MANY[-1]}")

    def begin(work: Path) -> None:
        put(work, *MANY)
        if not is_older:
            make_link(work)
        execute(work, TWO, "INSERT INTO item VALUES (?)", link)

    seen: list[tuple[set[str], int]] = []

    def look() -> None:
        seen.append((rows(place.store, TWO), sum((place.store / name).exists() for name in MANY)))

    acts: list[Act] = [make_link, nothing] if is_older else []
    act_and_look(place, [*acts, begin, nothing], look)
    assert any(0 < come < len(MANY) for _, come in seen)
    assert all(come == len(MANY) for two, come in seen if two)
    assert seen[-1][0] == {link}


@pytest.mark.parametrize("target", [MANY[-1], EXTRA], ids=["file", "directory"])
def test_a_database_waits_for_what_the_link_that_it_names_leads_to(
    place: Place, target: str
) -> None:
    """The link lies in the run of what is late."""
    link = f"{ONE}/link"
    named = link if target != EXTRA else f"{link}/{Path(MANY[-1]).name}"
    seen: list[tuple[set[str], bool]] = []

    def begin(work: Path) -> None:
        put(work, *MANY)
        (work / link).symlink_to(Path(target).relative_to(ONE))
        execute(work, TWO, "INSERT INTO item VALUES (?)", named)

    def look() -> None:
        seen.append((rows(place.store, TWO), (place.store / MANY[-1]).exists()))

    act_and_look(place, [begin, nothing], look)
    assert any(not has_come for _, has_come in seen)
    assert all(has_come for two, has_come in seen if two)
    assert seen[-1][0] == {named}


def test_outside_of_runs_any_row_may_name_what_is_late(place: Place) -> None:
    outside = [f"Movies/{n}" for n in range(12)]
    seen: list[tuple[bool, int]] = []

    def begin(work: Path) -> None:
        put(work, *outside)
        write(work, TWO, f"{TWO}/extra/own")

    def look() -> None:
        come = sum((place.store / name).exists() for name in outside)
        seen.append((bool(rows(place.store, TWO)), come))

    act_and_look(place, [begin, nothing], look)
    assert any(0 < come < len(outside) for _, come in seen)
    assert all(come == len(outside) for two, come in seen if two)


def rotated(work: Path, number: int = 3) -> None:
    """Rename ``number`` logs in a chain, and begin a new one."""
    for n in reversed(range(number)):
        (work / f"Logs/log_{n}").rename(work / f"Logs/log_{n + 1}")
    put(work, "Logs/log_0")
    (work / "Logs/log_0").write_text(str(number))


def rotating(place: Place) -> list[tuple[int, int, int]]:
    """Let a log be rotated at each checkpoint while MANY come, after some files of the second run.

    Returns of each checkpoint how many of MANY are there, and how many rows of both runs.
    """
    seen: list[tuple[int, int, int]] = []
    own = [f"{TWO}/extra/own_{n}" for n in range(8)]
    turns: list[int] = []

    def begin(work: Path) -> None:
        put(work, *own, *(f"Logs/log_{n}" for n in range(3)))

    def goes_on(work: Path) -> None:
        turns.append(3 + len(turns))
        rotated(work, turns[-1])
        execute(work, TWO, "INSERT INTO item VALUES (?)", own[len(turns) - 1])

    def look() -> None:
        come = sum((place.store / name).exists() for name in MANY)
        known = [len(rows(place.store, run)) for run in (ONE, TWO)]
        seen.append((come, known[0], known[1]))

    burst: Act = lambda work: write(work, ONE, *MANY)  # noqa: E731
    acts = [begin, *[nothing] * 8, burst, *[goes_on] * len(own), *[nothing] * 8]
    act_and_look(place, acts, look)
    assert seen[-1] == (len(MANY), len(MANY), len(own))
    assert len(os.listdir(place.store / "Logs")) == 3 + len(own)
    return seen


def test_a_rotated_log_holds_back_no_database(place: Place) -> None:
    seen = [known for known in rotating(place) if 0 < known[0] < len(MANY)]
    assert len({two for *_, two in seen}) > 2, seen
    assert not any(one for _, one, _ in seen), seen


def test_nothing_waits_for_late_data_that_no_row_names(place: Place) -> None:
    logs = [f"Logs/late_{n}" for n in range(12)]
    seen: list[tuple[set[str], int]] = []

    def begin(work: Path) -> None:
        put(work, *logs)
        write(work, TWO, f"{TWO}/extra/own")

    def look() -> None:
        come = sum((place.store / name).exists() for name in logs)
        seen.append((rows(place.store, TWO), come))

    act_and_look(place, [begin, nothing], look)
    assert any(found and come < len(logs) for found, come in seen), seen
    assert seen[-1] == ({f"{TWO}/extra/own"}, len(logs))


def test_a_directory_is_renamed_when_what_it_carries_along_has_come(place: Place) -> None:
    """No database waits for it here; what is late comes under its old name all the same."""
    renamed: list[set[str]] = []

    def renames(work: Path) -> None:
        put(work, *MANY)
        (work / EXTRA).rename(work / ONE / "renamed")

    def look() -> None:
        if (place.store / ONE / "renamed").exists():
            renamed.append(set(os.listdir(place.store / ONE / "renamed")))

    begin: list[Act] = [lambda work: put(work, MANY[0]), nothing, nothing]
    act_and_look(place, [*begin, renames, nothing, nothing], look)
    assert renamed[0] == {name.rpartition("/")[2] for name in MANY}


def test_steady_data_starve_no_marker_where_no_database_waits(place: Place) -> None:
    marker = f"{EXTRA}/DONE/first"
    there: list[bool] = []

    def load(work: Path) -> None:
        put(work, *(f"{EXTRA}/item_{len(there)}_{n}" for n in range(PORTION + 1)))
        there.append((place.store / marker).exists())

    begin: list[Act] = [lambda work: put(work, *FIRST), lambda work: put(work, marker)]
    assert live(place, [*begin, *[load] * LOAD]) == set()
    assert there[-1]


def test_no_marker_comes_that_was_taken_back_with_its_data(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were seen, and go while they are taken hold of: the marker first, as it came last."""
    marker, data = f"{EXTRA}/DONE/1", f"{EXTRA}/1"
    wrong: list[bool] = []
    held: list[RelPath] = []
    add, open_one = Pins.add, Pins._open

    def added(pins: Pins, paths: Iterable[RelPath]) -> set[RelPath]:
        # A set has no order: this is the worst one.
        worst = sorted(paths, reverse=True, key=_is_done) if isinstance(paths, Set) else paths
        return add(pins, worst)

    def opened(pins: Pins, path: RelPath) -> int:
        fd = open_one(pins, path)
        if path in (os.fsencode(marker), os.fsencode(data)):
            held.append(path)
            for name in (marker, data):
                (place.work / name).unlink(missing_ok=True)
        return fd

    def look() -> None:
        wrong.append((place.store / marker).exists() and not (place.store / data).exists())

    monkeypatch.setattr(Pins, "add", added)
    monkeypatch.setattr(Pins, "_open", opened)
    first = partial(put, place.work, f"{EXTRA}/DONE/first")
    acts = [lambda _: first(), nothing, lambda work: put(work, data, marker), nothing, nothing]
    act_and_look(place, acts, look)
    assert held
    assert not any(wrong)


def test_a_name_that_comes_again_while_its_row_is_copied_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told of before the cut, and gone: that says nothing of the file that came then."""
    again = f"{EXTRA}/again"
    take, take_cut = snapshot._take_one, Cuts.take
    marks: list[Marks] = []
    came: list[str] = []
    wrong: set[str] = set()

    def taken(source: bytes, target: bytes) -> Taken:
        if came != ["first"] or os.fsencode(ONE) not in source:
            return take(source, target)
        came.append("copied")
        write(place.work, ONE, again)
        result = take(source, target)
        remove(place.work, ONE, again)
        marks[0].touched({os.fsencode(again): True})
        marks[0].deleted(os.fsencode(again))
        return result

    def cut(cuts: Cuts, *arguments: Any, **more: Any) -> Cut:
        marks.append(cuts.marks)
        return take_cut(cuts, *arguments, **more)

    def come_and_go(work: Path) -> None:
        put(work, again)
        (work / again).unlink()
        marks[0].touched({os.fsencode(again): True})
        write(work, ONE, f"{EXTRA}/other")
        came.append("first")

    monkeypatch.setattr(snapshot, "_take_one", taken)
    monkeypatch.setattr(Cuts, "take", cut)
    acts = [lambda work: write(work, ONE, f"{EXTRA}/a"), nothing, come_and_go, nothing, nothing]
    act_and_look(place, acts, lambda: wrong.update(without_files(place.store, ONE)))
    assert came == ["first", "copied"]
    assert not wrong


def _is_done(path: RelPath) -> bool:
    return b"/DONE/" in path
