"""What batches leave behind goes beside the next ones: nothing is lost, or waits without need."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from onesync import tidying
from onesync.core.model import RESERVED_PREFIX, RelPath
from onesync.errors import Exit
from onesync.leftovers import Leftovers
from onesync.replica.folder import FolderReplica
from onesync.settings import BatchSettings, Settings
from onesync.tidying import Tidying
from tests.campaign.life import Life, Place, Step
from tests.campaign.story import leftovers

WAIT = 30.0


class Quick(Place):
    """A node whose batches take what changed at once."""

    def settings(self) -> Settings:
        quick = BatchSettings(settle_seconds=0, min_interval_seconds=1.0)
        return replace(super().settings(), batch=quick)


@pytest.fixture
def place(tmp_path: Path) -> Quick:
    return Quick.make(tmp_path)


def nothing(_: Life) -> None:
    """Let a batch pass."""


def put(place: Place, *names: str) -> None:
    for name in names:
        path = place.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def write(place: Place, text: str, *names: str) -> None:
    for name in names:
        (place.work / name).write_text(text)


def asides(place: Place) -> list[str]:
    """Return what went aside and is still there."""
    prefix = os.fsdecode(RESERVED_PREFIX)
    return [name for name in leftovers(place.store) if os.path.basename(name).startswith(prefix)]


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


class Slow:
    """Nothing of a directory that went aside is removed before ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.has_begun = threading.Event()

    @contextmanager
    def installed(self) -> Iterator[None]:
        real = FolderReplica.remove_ours

        def remove_ours(replica: FolderReplica, *arguments: Any) -> Any:
            self.has_begun.set()
            assert self.go.wait(WAIT)
            return real(replica, *arguments)

        with mock.patch.object(FolderReplica, "remove_ours", remove_ours):
            yield


def removing_big(place: Place, slow: Slow, *then: Step) -> list[Step]:
    """Files in a directory, which is removed; ``then`` begins when it only is to be tidied."""

    def make(_: Life) -> None:
        put(place, "big/1", "big/2", "x", "y", "d/1")

    def goes(_: Life) -> None:
        assert slow.has_begun.wait(WAIT)
        assert not (place.store / "big").exists()

    return [make, nothing, lambda _: shutil.rmtree(place.work / "big"), nothing, goes, *then]


def test_nobody_waits_for_a_large_directory_that_goes(place: Quick) -> None:
    """Later batches remove and replace, and one of them removes a directory, too."""
    slow, seen = Slow(), []

    def more(_: Life) -> None:
        (place.work / "x").unlink()
        put(place, "new")
        (place.work / "y").write_text("another")

    def look(_: Life) -> None:
        assert until(lambda: not (place.store / "x").exists())
        seen.append((place.store / "new").read_text())
        seen.append((place.store / "y").read_text())
        (place.work / "y").unlink()

    def last(_: Life) -> None:
        assert until(lambda: not (place.store / "y").exists())
        assert asides(place), "the large directory went meanwhile"
        slow.go.set()

    with slow.installed():
        life = Life(place, removing_big(place, slow, more, nothing, look, nothing, last)).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert life.done == 10
    assert seen == ["new", "another"]
    assert sorted(os.listdir(place.store / "d")) == ["1"]
    assert leftovers(place.store) == []


def test_who_needs_the_name_waits(place: Quick) -> None:
    """The directory that holds what goes is renamed: its intent names it where it was."""
    slow, order = Slow(), []
    real = FolderReplica.rename

    def rename(replica: FolderReplica, source: RelPath, target: RelPath, **options: Any) -> None:
        if source == b"d":
            order.append("renamed")
        real(replica, source, target, **options)

    def make(_: Life) -> None:
        put(place, "d/big/1", "d/kept")

    def let_go() -> None:
        order.append("may go")
        slow.go.set()

    def renames(_: Life) -> None:
        assert slow.has_begun.wait(WAIT)
        (place.work / "d").rename(place.work / "e")
        threading.Timer(0.5, let_go).start()

    steps = [make, nothing, lambda _: shutil.rmtree(place.work / "d/big"), nothing, renames]
    with slow.installed(), mock.patch.object(FolderReplica, "rename", rename):
        life = Life(place, [*steps, nothing, nothing]).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert order == ["may go", "renamed"]
    assert (place.store / "e" / "kept").read_text() == "d/kept"
    assert leftovers(place.store) == []


def test_the_next_node_ends_what_several_dead_batches_left(place: Quick) -> None:
    slow = Slow()

    def more(_: Life) -> None:
        shutil.rmtree(place.work / "d")

    def dies(life: Life) -> None:
        assert len(asides(place)) == 2, "only one of them was to be tidied"
        try:
            life.calls.die()
        finally:
            slow.go.set()

    with slow.installed():
        life = Life(place, removing_big(place, slow, more, nothing, nothing, dies)).live()
    assert life.died
    again = Life(place, []).live()
    assert (again.end, again.error) == (Exit.CLEAN, "")
    assert leftovers(place.store) == []
    assert not {"big", "d"} & set(os.listdir(place.store))


def test_no_data_go_while_a_marker_of_an_earlier_batch_could_not(place: Quick) -> None:
    """The marker's removal fails once; the data of a later batch go after it all the same."""
    marker, data = "Runs/000001_X/extra/DONE/1", "Runs/000001_X/extra/1.mrc"
    order: list[str] = []
    meets, may_fail, left = threading.Event(), threading.Event(), [1]
    real = FolderReplica.unlink

    def unlink(replica: FolderReplica, path: RelPath) -> None:
        if path == os.fsencode(marker) and left:
            left.pop()
            meets.set()
            assert may_fail.wait(WAIT)
            raise OSError(errno.EAGAIN, "again")
        real(replica, path)
        order.append(os.fsdecode(path))

    def later(_: Life) -> None:
        assert meets.wait(WAIT)
        (place.work / data).unlink()

    def fails(_: Life) -> None:
        assert (place.store / data).exists()
        may_fail.set()

    steps: list[Step] = [
        lambda _: put(place, data),
        lambda _: put(place, marker),
        nothing,
        lambda _: (place.work / marker).unlink(),
        nothing,
        later,
        nothing,
        fails,
        nothing,
        nothing,
    ]
    with mock.patch.object(FolderReplica, "unlink", unlink):
        life = Life(place, steps).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert not left
    assert not (place.store / marker).exists()
    assert order == [marker, data]


def test_one_too_many_waits_until_any_has_ended(
    place: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying, "_MOST", 2)
    slow, seen, going = Slow(), [], []

    begin = Tidying.begin

    def begun(self: Tidying, left: Leftovers) -> None:
        begin(self, left)
        going.append(len(self.going))

    def remove(name: str) -> Step:
        return lambda _: (place.work / name).unlink()

    def look(_: Life) -> None:
        assert until(lambda: not (place.store / "d/1").exists())
        seen.extend(sorted(os.listdir(place.store)))
        slow.go.set()

    then = [remove("x"), nothing, remove("y"), nothing, remove("d/1"), nothing, look]
    with slow.installed(), mock.patch.object(Tidying, "begin", begun):
        life = Life(place, removing_big(place, slow, *then)).live()
    assert (life.end, life.error) == (Exit.CLEAN, "")
    assert max(going) == 2
    assert "d" in seen
    assert not {"x", "y"} & set(seen)
    assert leftovers(place.store) == []


@pytest.mark.parametrize("slow", ["one", "two"])
def test_a_name_that_is_still_to_be_unlinked_holds_up_its_own_file_alone(
    place: Quick, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Two files go, and are made anew while one of them cannot be unlinked yet."""
    go, meets, gone = threading.Event(), threading.Event(), threading.Event()
    real = FolderReplica.unlink
    both = ("one", "two")
    other = both[slow == "one"]
    seen: list[str] = []

    def unlink(replica: FolderReplica, path: RelPath) -> None:
        if path == slow.encode():
            meets.set()
            assert go.wait(WAIT)
        real(replica, path)

    monkeypatch.setattr(FolderReplica, "unlink", unlink)

    def goes(_: Life) -> None:
        for name in both:
            (place.work / name).unlink()

    def anew(_: Life) -> None:
        assert meets.wait(WAIT)
        assert until(lambda: not (place.store / other).exists())
        gone.set()
        write(place, "new", *both)

    def look() -> None:
        if gone.is_set() and (place.store / other).exists() and not go.is_set():
            seen.extend((place.store / name).read_text() for name in (slow, other))
            go.set()

    life = Life(
        place,
        [lambda _: write(place, "old", *both), nothing, goes, nothing, anew, nothing, nothing],
    )
    life.told_commit = look
    life.live()
    assert life.error == ""
    assert seen == ["old", "new"]
    assert {(place.store / name).read_text() for name in both} == {"new"}
