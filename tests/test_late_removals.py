"""Files that are removed go when the checkpoint stands; nothing else goes, and none comes back."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from blake3 import blake3

from onesync.core.blocks import Blocks
from onesync.core.chain import Gone, Position
from onesync.core.model import STATUS_FOLDER, Entry, RelPath
from onesync.errors import Exit
from onesync.intent import INTENTS, Intent
from onesync.leftovers import Leftovers
from onesync.manifest import Manifest
from onesync.outcome import Outcome
from onesync.push import Push
from onesync.recovery import settle
from onesync.replica.door import Compared
from onesync.replica.folder import FolderReplica
from onesync.settings import BatchSettings, PushSettings, Settings
from tests.campaign.life import Life, Place, Step
from tests.memory import MemoryReplica, with_status_folder


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def replica() -> MemoryReplica:
    return with_status_folder()


class Quick(Place):
    """A node whose batches take what changed at once, and whose large files travel slowly."""

    def settings(self) -> Settings:
        found = super().settings()
        quick = BatchSettings(settle_seconds=0, min_interval_seconds=1.0)
        slow = PushSettings(round_seconds=1e-9, workers=2)
        return replace(found, batch=quick, push=slow)


@pytest.fixture
def place(tmp_path: Path) -> Quick:
    return Quick.make(tmp_path)


def idle(life: Life) -> None:
    """A step in which nothing happens, but that what is tidied beside has ended."""
    batches = life.engine._batches
    if batches is not None:
        wait(batches.tidying.going, 10)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def lives(place: Place, steps: list[Step], **options: object) -> Life:
    return Life(place, steps, **options)  # type: ignore[arg-type]


@contextmanager
def unlinking(path: bytes, act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` before a late removal of ``path``."""
    real = FolderReplica.unlink

    def unlink(self: FolderReplica, name: RelPath) -> None:
        if name == path:
            act()
        real(self, name)

    with mock.patch.object(FolderReplica, "unlink", unlink):
        yield


@pytest.fixture(autouse=True)
def _reading_is_fast() -> Iterator[None]:
    """What is only read here ends in its round; the copy does not."""
    real = FolderReplica.compare

    def compare(
        self: FolderReplica, source: bytes, length: int, blocks: Blocks, *_: object
    ) -> Compared:
        return real(self, source, length, blocks)

    with mock.patch.object(FolderReplica, "compare", compare):
        yield


@contextmanager
def pushing(seen: Callable[[Push], None]) -> Iterator[None]:
    pushes: dict[Leftovers, Push] = {}
    carry_out, tidy = Push.carry_out, Leftovers.tidy

    def carried_out(self: Push, *arguments: Any) -> Outcome:
        pushes[self.leftovers] = self
        return carry_out(self, *arguments)

    def tidied(self: Leftovers) -> bool:
        seen(pushes[self])
        return tidy(self)

    with (
        mock.patch.object(Push, "carry_out", carried_out),
        mock.patch.object(Leftovers, "tidy", tidied),
    ):
        yield


# -- two intents ---------------------------------------------------------------------------------


def test_what_a_newer_batch_published_is_not_removed_by_an_older_intent(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    """Batch 3 removed x, batch 4 created it anew with the same bytes and died: x is there."""
    content = b"the same"
    told = (b"extra/x", len(content), blake3(content).hexdigest())
    older = Intent(Position(1, 3), gone=[told], new=[(b"big", b".onesync~E1~1")])
    newer = Intent(Position(1, 4), create=[told], new=[(b"extra/x", b"extra/.onesync~E1~2")])
    replica.write_new(b"extra/x", content)
    replica.write_new(b".onesync~E1~1", b"so far")
    for intent in (older, newer):
        replica.write_new(intent.path, intent.encode())
    published: dict[RelPath, Entry] = {}
    settle(
        replica,
        Position(1, 3),
        lambda _: None,
        pool,
        published.update,
        {b".onesync~E1~1": older.path},
    )
    assert list(published) == [b"extra/x"]
    assert replica.look(b"extra/x") is not None, "told as published, then removed"


def _begin_travel(place: Quick, x: Path) -> list[Step]:
    """Steps after which one batch removed x and began a travel."""
    big = place.work / "big"

    def make(_: Life) -> None:
        big.write_bytes(os.urandom(8192))
        x.write_bytes(b"same")

    def remove(life: Life) -> None:
        x.unlink()
        (place.work / "other").write_bytes(b"other")
        life.told_commit = lambda: _rewrite(life)

    def _rewrite(life: Life) -> None:
        # Between the batch that saw the removal and the one that carries it out.
        life.told_commit = lambda: None
        big.write_bytes(os.urandom(8192))
        life.watcher.tell()

    return [lambda _: None, make, idle, remove]


def test_a_file_that_came_back_while_a_copy_travels_survives_a_failed_batch(
    place: Quick,
) -> None:
    x = place.work / "x"
    steps = _begin_travel(place, x)
    pushes: list[Push] = []
    real = Manifest.write
    fails: list[int] = []

    def written(self: Manifest, changes: object, why: str) -> object:
        if fails and any(path == b"x" for path, _, _ in pushes_now[-1].intent.create):
            fails.pop()
            raise OSError(errno.EAGAIN, "again")
        return real(self, changes, why)  # type: ignore[arg-type]

    pushes_now: list[Push] = []
    init = Push.__init__

    def made(self: Push, *arguments: object, **named: object) -> None:
        init(self, *arguments, **named)  # type: ignore[arg-type]
        pushes_now.append(self)

    began: list[Push] = []

    def tidied(push: Push) -> None:
        pushes.append(push)
        if push.leftovers.begins_travel() and push.removal.gone and not began:
            began.append(push)
            fails.append(1)

    life = lives(place, steps)

    def comes_back() -> None:
        if began and not x.exists() and "back" not in state:
            batches = life.engine._batches
            assert batches is not None
            wait(batches.tidying.going, 10)
            assert not (place.store / "x").exists()
            state.add("back")
            x.write_bytes(b"same")
            life.watcher.tell()

    state: set[str] = set()
    waits = Life._waits

    def waited(self: Life, event: object, seconds: float) -> None:
        comes_back()
        waits(self, event, seconds)  # type: ignore[arg-type]

    with (
        mock.patch.object(Push, "__init__", made),
        mock.patch.object(Manifest, "write", written),
        mock.patch.object(Life, "_waits", waited),
        pushing(tidied),
    ):
        life.live()
    assert began, "no batch removed x and began a travel"
    assert state == {"back"}
    assert not fails
    if life.end is not Exit.CLEAN:
        again = Life(place, []).live()
        assert again.end is Exit.CLEAN, f"nor does a restart help: {again.end!r} {again.error}"
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert (place.store / "x").read_bytes() == b"same"


def test_the_end_of_a_travel_does_not_take_the_intent_of_what_still_goes(place: Quick) -> None:
    x = place.work / "x"
    steps = _begin_travel(place, x)
    began: list[Push] = []
    life = lives(place, [*steps, idle, idle])

    def tidied(push: Push) -> None:
        if push.leftovers.begins_travel() and push.removal.gone and not began:
            began.append(push)
            batches = life.engine._batches
            assert batches is not None
            batches.round_seconds = 1000.0  # the next batch ends the travel

    left = [1]

    def fail() -> None:
        if left[0] and began:
            left[0] -= 1
            raise OSError(errno.EAGAIN, "again")

    with unlinking(b"x", fail), pushing(tidied):
        life.live()
    assert began
    assert not left[0]
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert not x.exists()
    assert not (place.store / "x").exists(), "a deleted file stays: its intent was removed"


# -- a failure that nobody hears of --------------------------------------------------------------


def test_a_removal_that_failed_once_is_tried_again_though_nothing_else_happens(
    place: Quick,
) -> None:
    x = place.work / "x"
    seen: list[tuple[float, bool]] = []
    left = [1]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EAGAIN, "again")

    def look(life: Life) -> None:
        idle(life)
        seen.append((life.clock.now, (place.store / "x").exists()))

    life = lives(
        place,
        [
            lambda _: None,
            lambda _: write(x, b"x"),
            *[idle] * 4,
            lambda _: x.unlink(),
            *[look] * 20,
        ],
    )
    # For small trees every third checkpoint would be a base, which settles first.
    with unlinking(b"x", fail), mock.patch.object(Manifest, "compaction_due", return_value=False):
        life.live()
    assert not left[0]
    waited = seen[-1][0] - seen[0][0]
    assert waited > 3600, seen
    assert not seen[-1][1], f"the checkpoint has it no more, OneData has it {waited:.0f} s later"


# -- what comes back -----------------------------------------------------------------------------


def test_a_file_that_no_checkpoint_had_goes_too(place: Quick) -> None:
    """A batch published it and died; the one that removed it died before its unlink."""
    x = place.work / "x"
    real = Manifest.write
    life = lives(place, [lambda _: None, lambda _: write(x, os.urandom(3000))])

    def dies(self: Manifest, changes: object, why: str) -> object:
        if (place.store / "x").exists():
            life.calls.die()
        return real(self, changes, why)  # type: ignore[arg-type]

    with mock.patch.object(Manifest, "write", dies):
        life.live()
    assert life.died
    assert (place.store / "x").exists()
    x.unlink()
    second = lives(place, [lambda _: None, lambda _: write(place.work / "y", b"y")])

    def dies_late(push: Push) -> None:
        if any(change == Gone(b"x") for change in push.outcome.changes):
            second.calls.die()

    with pushing(dies_late):
        second.live()
    assert second.died, second.error
    third = lives(place, []).live()
    assert third.end is Exit.CLEAN, third.error
    assert not (place.store / "x").exists(), "deleted, and the next node gets it back"


# -- somebody else's -----------------------------------------------------------------------------


def test_somebody_elses_large_file_of_the_same_size_is_kept(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    """All micrographs of a session have one size."""
    ours, theirs = bytes(2 << 20), b"\1" * (2 << 20)
    intent = Intent(Position(1, 3))
    intent.gone.append((b"extra/x.mrc", len(ours), blake3(ours).hexdigest()))
    replica.write_new(intent.path, intent.encode())
    replica.write_new(b"extra/x.mrc", theirs)
    settle(replica, Position(1, 3), lambda _: None, pool)
    assert replica.look(b"extra/x.mrc") is not None


# -- what blocks, what is left -------------------------------------------------------------------


class Unreadable(MemoryReplica):
    """OneData lost the bytes of one file: reading it fails for ever."""

    def digest(self, path: RelPath) -> tuple[str, int]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def test_a_deleted_file_that_cannot_be_read_does_not_hold_up_every_node(
    pool: ThreadPoolExecutor,
) -> None:
    """It was deleted; that nobody can read it any more must not keep the folder from being used."""
    replica = Unreadable()
    for path in (STATUS_FOLDER, INTENTS):
        replica.make_directory(path)
    intent = Intent(Position(1, 3))
    intent.gone.append((b"x", 4, blake3(b"same").hexdigest()))
    replica.write_new(intent.path, intent.encode())
    replica.write_new(b"x", b"same")
    settle(replica, Position(1, 3), lambda _: None, pool)
    assert replica.list(INTENTS) == []


def test_snapshots_go_though_an_earlier_removal_failed(place: Quick) -> None:
    """A batch that succeeded raises at its end what came in the way of an earlier removal."""
    x, y, database = place.work / "x", place.work / "y", place.work / "run.db"

    def insert() -> None:
        with sqlite3.connect(database) as connection:
            connection.execute("create table if not exists t (a)")
            connection.execute("insert into t values (1)")
        connection.close()

    def make(_: Life) -> None:
        x.write_bytes(b"x")
        y.write_bytes(b"y")
        insert()

    def remove(life: Life) -> None:
        idle(life)
        y.unlink()
        (place.work / "z").write_bytes(b"z")
        life.told_commit = lambda: again(life)

    def again(life: Life) -> None:
        life.told_commit = lambda: None
        insert()
        life.watcher.tell()

    left = [1]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EAGAIN, "again")

    life = lives(
        place, [lambda _: None, make, *[idle] * 3, lambda _: x.unlink(), idle, remove, *[idle] * 3]
    )
    with unlinking(b"x", fail), mock.patch.object(Manifest, "compaction_due", return_value=False):
        life.live()
    assert not left[0]
    assert life.end is Exit.CLEAN
    assert os.listdir(place.state / "spool") == []


# -- what others put into a directory that goes ----------------------------------------------------


def removed_directory(place: Place) -> list[Step]:
    def make(_: Life) -> None:
        (place.work / "d" / "extra").mkdir(parents=True)
        write(place.work / "d" / "a", b"a")
        write(place.work / "d" / "extra" / "b", b"b")

    return [make, idle, lambda _: shutil.rmtree(place.work / "d")]


@contextmanager
def uploading(place: Place, act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` after the look at what a batch removes, while its data travel."""
    real = Push._transfer

    def transferred(self: Push, *arguments: Any) -> Any:
        found = real(self, *arguments)
        if self.intent.remove:
            act()
        return found

    with mock.patch.object(Push, "_transfer", transferred):
        yield


def test_an_upload_into_a_directory_that_is_about_to_go_is_kept_and_told(place: Quick) -> None:
    upload = place.store / "d" / "extra" / "theirs"
    told: list[str] = []

    def look(life: Life) -> None:
        idle(life)
        told.extend(problem.text for problem in life.engine.problems())

    life = lives(place, [*removed_directory(place), idle, look])
    with uploading(place, lambda: write(upload, b"precious")):
        life.live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert upload.read_bytes() == b"precious"
    assert [path.name for path in (place.store / "d").rglob("*")] == ["extra", "theirs"]
    assert told == ["d/extra/theirs was put into OneData by somebody else; it is kept there."]


def test_an_upload_in_the_place_of_a_file_that_goes_is_kept(place: Quick) -> None:
    """Somebody made a directory of the name that a file of ours had."""
    place_of_file = place.store / "d" / "a"

    def upload() -> None:
        place_of_file.unlink()
        place_of_file.mkdir()
        write(place_of_file / "theirs", b"precious")

    with uploading(place, upload):
        life = lives(place, [*removed_directory(place), idle]).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert (place_of_file / "theirs").read_bytes() == b"precious"
    assert not (place.store / "d" / "extra").exists()


def test_an_upload_is_kept_beside_a_directory_that_was_made_anew(place: Quick) -> None:
    upload = place.store / "d" / "theirs"

    def again() -> None:
        write(upload, b"precious")
        # What the batch makes anew when the old one is aside.
        (place.work / "d").mkdir()
        write(place.work / "d" / "a", b"new")

    real = Leftovers.take_out

    def tidied(self: Leftovers, *arguments: Any) -> Any:
        if self._removed:
            (place.store / "d").mkdir()
        return real(self, *arguments)

    with (
        uploading(place, lambda: None if upload.exists() else again()),
        mock.patch.object(Leftovers, "take_out", tidied),
    ):
        life = lives(place, [*removed_directory(place), idle, idle]).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert (place.store / "d~kept~1" / "theirs").read_bytes() == b"precious"
    assert (place.store / "d" / "a").read_bytes() == b"new"


def test_another_node_keeps_an_upload_when_the_batch_died_before_it_tidied(place: Quick) -> None:
    upload = place.store / "d" / "extra" / "theirs"
    life = lives(place, removed_directory(place))

    def dies(push: Push) -> None:
        if push.intent.remove:
            life.calls.die()

    with uploading(place, lambda: write(upload, b"precious")), pushing(dies):
        life.live()
    assert life.died
    assert not upload.exists(), "it is aside with the directory"
    again = lives(place, []).live()
    assert (again.end, again.error) == (Exit.CLEAN, "")
    assert upload.read_bytes() == b"precious"
    assert not (place.store / "d" / "a").exists()
