"""The number of calls at once: it follows what the mount takes, and what pays there."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import pytest

from onesync.core import allowance
from onesync.errors import LocalError, MountHung
from onesync.replica import children
from onesync.replica.children import ChildrenReplica
from onesync.replica.flights import aloft
from onesync.replica.turns import Turns
from tests.standin.mounted import Mounted
from tests.standin.passthrough import Passthrough

MOST = 32
DIRECTORIES = 40


def rounds(turns: Turns, number: int, takes: int, error: Exception) -> list[int]:
    """Let as many calls as may go at once, ``number`` times; beyond ``takes`` they are refused."""
    limits = []
    for _ in range(number):
        limits.append(turns.limit)
        going = [turns.turn("append") for _ in range(turns.limit)]
        for turn in going:
            turn.__enter__()
        for place, turn in enumerate(going):
            if place < takes:
                turn.__exit__(None, None, None)
            else:
                assert not turn.__exit__(type(error), error, None)
    return limits


@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "busy"), MountHung("hangs")])
def test_the_number_follows_what_the_mount_takes(error: Exception) -> None:
    turns = Turns(MOST)
    limits = rounds(turns, 60, 10, error)[20:]
    assert max(limits) <= 11
    assert sum(limits) / len(limits) > 6
    assert rounds(turns, MOST, MOST, error)[-1] >= MOST - 1


@pytest.mark.parametrize(
    "number", [errno.EBUSY, errno.ENFILE, errno.EMFILE, errno.ETIMEDOUT, errno.ENOMEM, errno.EIO]
)
def test_a_mount_that_refuses_all_gets_a_few_still(number: int) -> None:
    assert rounds(Turns(MOST), 10, 0, OSError(number, "gone"))[-1] == 4
    assert rounds(Turns(2), 10, 0, OSError(number, "gone"))[-1] == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such name"),
        OSError(errno.ENOSPC, "full"),
        LocalError(errno.EAGAIN, "this machine's"),
        ValueError("a bug"),
    ],
)
def test_other_errors_are_no_refusals(error: Exception) -> None:
    assert rounds(Turns(MOST), 5, 0, error) == [MOST] * 5


@pytest.mark.parametrize("directory", [None, b"directory"])
def test_whoever_is_too_much_waits_for_a_turn(directory: bytes | None) -> None:
    turns = Turns(1)
    entered = threading.Event()

    def enter() -> None:
        with turns.turn("put", directory):
            entered.set()

    first = turns.turn("put", directory)
    first.__enter__()
    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    first.__exit__(None, None, None)
    assert entered.wait(10)
    thread.join()


def test_everybody_comes_to_his_turn() -> None:
    """Many wait, of both kinds, and refusals change the number meanwhile."""
    turns = Turns(5)
    never, end = os.pipe()
    os.set_blocking(never, False)  # it answers EAGAIN
    always = os.open("/dev/zero", os.O_RDONLY)

    def take(number: int) -> int:
        directory = b"%d" % number if number % 3 else None
        with suppress(BlockingIOError), turns.turn("put", directory):
            time.sleep(0.0005)  # the others come meanwhile
            os.read(never if number % 7 == 0 else always, 1)
        return number

    with ThreadPoolExecutor(MOST) as pool:
        assert list(pool.map(take, range(2000), timeout=60)) == list(range(2000))
    for fd in (never, end, always):
        os.close(fd)


class Burst:
    """Small files that go to a mount by 32 workers."""

    def __init__(self, home: Path, top: Path) -> None:
        self.replica = ChildrenReplica(os.fsencode(top), 2, MOST // 2, patience=20)
        self._source = os.fsencode(home / "source")
        (home / "source").write_bytes(bytes(4096))
        self._numbers = count()
        self._pool = ThreadPoolExecutor(MOST)
        for number in range(DIRECTORIES):
            self.replica.make_directory(b"%d" % number)

    def send(self, files: int) -> tuple[float, list[int]]:
        """Send so many; returns how many came in a second, and how many might go, at each."""
        began = time.monotonic()
        limits = list(self._pool.map(self._put, range(files)))
        return files / (time.monotonic() - began), limits

    def _put(self, _: int) -> int:
        number = next(self._numbers)
        self.replica.put(self._source, b"%d/%d" % (number % DIRECTORIES, number))
        return self.replica.allowed

    def close(self) -> None:
        self._pool.shutdown()
        self.replica.close()


@pytest.fixture
def burst(tmp_path: Path) -> Iterator[Callable[[Path], Burst]]:
    made = []

    def make(top: Path) -> Burst:
        made.append(Burst(tmp_path, top))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.fuse
@pytest.mark.session
def test_a_mount_that_does_one_call_after_the_other_gets_few_and_does_no_less(
    tmp_path: Path, burst: Callable[[Path], Burst], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "_FIRST_FEWER", 1)  # or it takes ten times as many files
    with Passthrough(tmp_path / "crowded") as mount:
        files = burst(mount.path)
        mount.one_by_one(0.001)
        before, limits = files.send(150)
        assert set(limits) == {MOST}
        files.send(600)
        # A trial that a busy machine disturbed is repeated, later.
        later = map(files.send, 10 * [150])
        assert any(median(few) <= 8 and after >= 0.9 * before for after, few in later)
        mount.one_by_one(0)
        mount.latency(0.005)
        assert any(files.send(200)[1][-1] >= MOST // 2 for _ in range(10)), "they pay again"
        files.close()


@pytest.mark.fuse
def test_a_mount_that_refuses_for_a_while_gets_fewer_for_a_while(
    mounted: Mounted, burst: Callable[[Path], Burst]
) -> None:
    files = burst(mounted.path / "project")
    for _ in range(3):
        mounted.fail("create", errno.EAGAIN, times=2 * MOST)
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                files.send(MOST)
        mounted.clear()
        assert files.replica.allowed <= MOST // 2
        files.send(MOST)
    files.send(MOST * MOST // 2)
    assert files.replica.allowed == MOST


@pytest.mark.fuse
def test_who_waits_for_a_turn_on_a_hung_mount_is_sent_away(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of them would hang in turn: a batch would end after as many times the patience."""
    replica = ChildrenReplica(os.fsencode(mounted.path / "project"), 1, 2, patience=1)
    begun: list[object] = []
    real = ChildrenReplica._begun

    def count_begun(self: ChildrenReplica) -> Any:
        begun.append(None)
        return real(self)

    monkeypatch.setattr(ChildrenReplica, "_begun", count_begun)
    mounted.hang_at("getattr", pattern="file")
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(replica.look, b"file%d" % number) for number in range(20)]
        assert all(isinstance(call.exception(), MountHung) for call in calls)
    assert len(begun) <= 2, "a child hangs for all of them, or one more that just missed it"
    mounted.release()
    assert replica.look(b"file1") is None
    replica.close()


@pytest.mark.fuse
def test_the_look_that_finds_a_hanging_mount_waits_for_nobody(
    tmp_path: Path, mounted: Mounted
) -> None:
    """Every turn is taken by a call that hangs, and the look is answered all the same."""
    replica = ChildrenReplica(os.fsencode(mounted.path / "project"), 1, 2, patience=10)
    (tmp_path / "source").write_bytes(b"x")
    mounted.hang_at("create")
    with ThreadPoolExecutor(2) as pool:
        puts = [
            pool.submit(replica.put, os.fsencode(tmp_path / "source"), name)
            for name in (b"a", b"b")
        ]
        while len(replica.under_way()) < 2:
            time.sleep(0.01)
        assert replica.identify().is_fuse
        assert not any(put.done() for put in puts)
        mounted.release()
        for put in puts:
            put.result()
    replica.close()


def test_large_files_are_few_at_once_and_hold_back_no_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The more share a narrow line, the longer none of them advances, and seems to hang."""
    monkeypatch.setattr(children, "_MOST_LARGE", 2)
    begun: SimpleQueue[str] = SimpleQueue()
    end = threading.Event()

    def timed(_: ChildrenReplica, child: object, mount: object, method: str, given: object) -> None:
        begun.put(method)
        assert end.wait(20)

    monkeypatch.setattr(ChildrenReplica, "_timed", timed)
    replica = ChildrenReplica(os.fsencode(tmp_path), 2, 4, patience=20)

    def fetch_large() -> None:
        with aloft(b"large", 5 << 20, is_fetched=True):
            replica.fetch(b"large", b"/nowhere", 0o644, None)

    with ThreadPoolExecutor(6) as pool:
        calls: list[Future[Any]] = [pool.submit(fetch_large) for _ in range(4)]
        assert [begun.get(timeout=20) for _ in range(2)] == ["fetch"] * 2
        small = pool.submit(replica.unlink, b"small")
        assert begun.get(timeout=20) == "unlink"
        end.set()
        for call in calls:
            call.result(20)
        small.result(20)
    assert [begun.get(timeout=20) for _ in range(2)] == ["fetch"] * 2
    replica.close()


@pytest.mark.fuse
def test_a_source_that_became_a_link_into_a_hung_mount_holds_up_nobody(
    mounted: Mounted, tmp_path: Path
) -> None:
    """The parent never touches the mount, through no link either."""
    replica = ChildrenReplica(os.fsencode(mounted.path / "project"), 1, 2, patience=20)
    link = tmp_path / "source"
    link.symlink_to(mounted.path / "project" / "file")
    told: SimpleQueue[Exception] = SimpleQueue()

    def put() -> None:
        try:
            replica.put(os.fsencode(link), b"new", 5.0)
        except OSError as error:
            told.put(error)

    mounted.hang()
    try:
        threading.Thread(target=put, daemon=True).start()
        error = told.get(timeout=15)
    finally:
        mounted.release()
        replica.close()
    assert isinstance(error, LocalError)
    assert error.errno == errno.ELOOP
