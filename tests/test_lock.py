"""The lock over a real folder, with a clock that only moves when somebody waits."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from onesync.core.claims import LOCK_BYTES, LockTimes, Remembered, parse_lock
from onesync.core.clock import Happening
from onesync.errors import DeployedElsewhere, Halted, LockLost
from onesync.lock import EPOCHS, LOCK, Claimant, Lock
from onesync.replica.folder import FolderReplica

TIMES = LockTimes.from_timeout(10, 0)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def boottime(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return int((1_700_000_000 + self.now) * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, event: Happening, seconds: float) -> bool:
        self.now += seconds
        return event.is_set()


@pytest.fixture
def replica(tmp_path: Path) -> FolderReplica:
    return FolderReplica(os.fsencode(tmp_path))


def lock_of(
    replica: FolderReplica,
    host: str,
    remembered: Remembered | None = None,
    clock: FakeClock | None = None,
) -> Lock:
    claimant = Claimant(host, f"boot-{host}", f"machine-{host}", "me", "/work", "/data", "0")
    return Lock(replica, clock or FakeClock(), TIMES, claimant, remembered)


def test_a_free_folder_is_taken_and_released_without_a_trace_of_the_lock(
    replica: FolderReplica,
) -> None:
    lock = lock_of(replica, "one")
    assert lock.acquire() == 1
    content = replica.read(LOCK)
    assert len(content) == LOCK_BYTES
    assert parse_lock(content)["HOST"] == "one"
    lock.check()
    lock.release("head")
    assert replica.look(LOCK) is None
    assert lock_of(replica, "two").acquire() == 2


def test_a_held_folder_is_refused_with_the_story(replica: FolderReplica) -> None:
    lock_of(replica, "one").acquire()
    with pytest.raises(DeployedElsewhere, match="me on one holds it since"):
        lock_of(replica, "two").acquire()


def test_of_many_contenders_exactly_one_wins(replica: FolderReplica) -> None:
    locks = [lock_of(replica, f"node{n}") for n in range(8)]
    barrier = threading.Barrier(len(locks))
    won: list[int] = []

    def contend(lock: Lock) -> None:
        barrier.wait()
        try:
            won.append(lock.acquire())
        except DeployedElsewhere:
            return

    threads = [threading.Thread(target=contend, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_resuming_takes_a_new_epoch_and_keeps_the_deployment(replica: FolderReplica) -> None:
    first = lock_of(replica, "one")
    first.acquire()
    again = lock_of(replica, "one", first.state())
    assert again.acquire() == 2
    assert again.state().deployment_id == first.state().deployment_id
    with pytest.raises(LockLost):
        first.check()
    with pytest.raises(LockLost):
        first.release(None)
    again.check()


def test_a_clone_of_the_disk_image_that_comes_second_loses(replica: FolderReplica) -> None:
    first = lock_of(replica, "one")
    first.acquire()
    image = first.state()
    lock_of(replica, "one", image).acquire()
    with pytest.raises(DeployedElsewhere):
        lock_of(replica, "clone", image).acquire()


def test_a_deleted_lock_is_lost_and_frees_the_folder(replica: FolderReplica) -> None:
    lock = lock_of(replica, "one")
    lock.acquire()
    replica.remove(LOCK)
    with pytest.raises(LockLost, match="removed"):
        lock.check()
    assert lock_of(replica, "two").acquire() == 2


def test_an_overwritten_lock_is_lost(replica: FolderReplica) -> None:
    lock = lock_of(replica, "one")
    lock.acquire()
    replica.overwrite(LOCK, b"HOST: stranger".ljust(LOCK_BYTES))
    with pytest.raises(LockLost, match="stranger"):
        lock.check()


def test_writing_is_suspended_when_no_beat_was_confirmed(replica: FolderReplica) -> None:
    clock = FakeClock()
    lock = lock_of(replica, "one", clock=clock)
    lock.acquire()
    clock.sleep(TIMES.suspend - 1)
    assert lock.may_write()
    clock.sleep(1)
    assert not lock.may_write()
    lock.beat()
    assert lock.may_write()


def test_old_scripts_locks_are_honoured(replica: FolderReplica) -> None:
    lock_of(replica, "one").acquire()
    replica.remove(LOCK)
    replica.remove(EPOCHS)
    replica.write_new(LOCK, b"HOST: old\nMOUNT: /m\nDIR: /d\nUSER: u\nDATE: today\n")
    with pytest.raises(DeployedElsewhere, match="HOST old"):
        lock_of(replica, "two").acquire()
    replica.remove(LOCK)
    replica.make_directory(b"scipion-docker")
    replica.write_new(b"scipion-docker/project.lock", b"1700000000")
    with pytest.raises(DeployedElsewhere, match="1700000000"):
        lock_of(replica, "two").acquire()


def test_a_second_provider_halts(replica: FolderReplica) -> None:
    lock_of(replica, "one").acquire()
    lock_of(replica, "one")
    replica.remove(LOCK)
    replica.make_directory(EPOCHS + b"/000002@ab12")
    with pytest.raises(Halted, match="second OneData provider"):
        lock_of(replica, "two").acquire()


def test_unlock_ends_a_dead_claim_and_names_what_it_removes(replica: FolderReplica) -> None:
    lock_of(replica, "dead").acquire()
    other = lock_of(replica, "two")
    assert other.unlock(1) == ["the claim of epoch 1", "the lock file"]
    assert other.acquire() == 2


def test_unlock_of_a_live_claim_is_refused(replica: FolderReplica) -> None:
    alive = lock_of(replica, "one")
    alive.acquire()

    class Beating(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            alive.beat()

    with pytest.raises(DeployedElsewhere, match="alive"):
        lock_of(replica, "two", clock=Beating()).unlock(1)
    alive.check()


def test_times_that_break_the_order_are_refused() -> None:
    with pytest.raises(ValueError, match="rise"):
        LockTimes(10, 20, 10, 80, 0, 100).validate()


class Dies(Exception):
    """The node loses power."""


def test_a_claim_that_died_before_its_record_is_taken_up_again(replica: FolderReplica) -> None:
    kept: list[Remembered] = []

    def die(_: float) -> None:
        raise Dies

    claimant = Claimant("one", "boot-one", "machine-one", "me", "/work", "/data", "0")
    first = Lock(replica, FakeClock(), TIMES, claimant, None, kept.append)
    first._end = lambda *_: None  # type: ignore[method-assign]  # dead: withdraws nothing
    with pytest.raises(Dies):
        first.acquire(pause=die)
    assert replica.look(EPOCHS + b"/000001") is not None
    with pytest.raises(DeployedElsewhere, match="no readable record"):
        lock_of(replica, "two").acquire()
    assert lock_of(replica, "one", kept[-1]).acquire() == 2


def test_a_deployment_of_many_beats_is_known_again(replica: FolderReplica) -> None:
    kept: list[Remembered] = []
    claimant = Claimant("one", "boot-one", "machine-one", "me", "/work", "/data", "0")
    first = Lock(replica, FakeClock(), TIMES, claimant, None, kept.append)
    first.acquire()
    for _ in range(20):
        first.beat()
    assert lock_of(replica, "one", kept[-1]).acquire() == 2


def test_a_claim_that_another_node_won_at_the_same_moment_is_not_ours(
    replica: FolderReplica,
) -> None:
    kept: list[Remembered] = []
    claimant = Claimant("one", "boot-one", "machine-one", "me", "/work", "/data", "0")
    first = Lock(replica, FakeClock(), TIMES, claimant, None, kept.append)
    first.acquire()
    mine = kept[-1]
    again = Lock(replica, FakeClock(), TIMES, claimant, mine, kept.append)
    make = replica.make_directory

    def overtaken(path: bytes) -> None:
        if path == EPOCHS + b"/000002":
            make(path)
        make(path)

    replica.make_directory = overtaken  # type: ignore[method-assign]
    with pytest.raises(DeployedElsewhere, match="at the same moment"):
        again.acquire()
    assert kept[-1] == mine, "the epoch tried for in vain is not remembered"
