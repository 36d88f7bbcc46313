"""The lock, with a clock that only moves when somebody waits."""

from __future__ import annotations

import copy
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from blake3 import blake3

from onesync.core.claims import (
    EPOCHS,
    LOCK_BYTES,
    Free,
    Held,
    LockTimes,
    Ours,
    Remembered,
    decode_remembered,
    encode_remembered,
    parse_lock,
)
from onesync.core.clock import Happening
from onesync.errors import DeployedElsewhere, Halted, LockLost, OnesyncError, Suspended
from onesync.lock import LOCK, Claimant, Lock
from onesync.replica.children import ChildrenReplica
from onesync.replica.door import Replica
from onesync.replica.folder import FolderReplica
from onesync.replica.leased import leased
from tests.memory import MemoryReplica

TIMES = LockTimes.from_timeout(10, 0)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.jump = 0

    def boottime(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return int((1_700_000_000 + self.now + self.jump) * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, event: Happening, seconds: float) -> bool:
        self.now += seconds
        return event.is_set()


@pytest.fixture
def replica() -> Replica:
    return MemoryReplica()


def lock_of(
    replica: Replica,
    host: str,
    remembered: Remembered | None = None,
    clock: FakeClock | None = None,
    times: LockTimes = TIMES,
) -> Lock:
    claimant = Claimant(host, f"boot-{host}", f"machine-{host}", "me", "/work", "/data", "0")
    return Lock(replica, clock or FakeClock(), times, claimant, remembered)


def test_a_free_folder_is_taken_and_released_without_a_trace_of_the_lock(
    replica: Replica,
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


def test_a_held_folder_is_refused_with_the_story(replica: Replica) -> None:
    lock_of(replica, "one").acquire()
    with pytest.raises(DeployedElsewhere, match="me on one holds it since"):
        lock_of(replica, "two").acquire()


def test_of_many_contenders_exactly_one_wins(tmp_path: Path) -> None:
    replica = FolderReplica(os.fsencode(tmp_path))
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


def test_resuming_takes_a_new_epoch_and_keeps_the_deployment(replica: Replica) -> None:
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


def test_a_clone_of_the_disk_image_that_comes_second_loses(replica: Replica) -> None:
    first = lock_of(replica, "one")
    first.acquire()
    image = first.state()
    lock_of(replica, "one", image).acquire()
    with pytest.raises(DeployedElsewhere):
        lock_of(replica, "clone", image).acquire()


def test_a_deleted_lock_is_lost_and_frees_the_folder(replica: Replica) -> None:
    lock = lock_of(replica, "one")
    lock.acquire()
    replica.remove(LOCK)
    with pytest.raises(LockLost, match="removed"):
        lock.check()
    assert lock_of(replica, "two").acquire() == 2


@pytest.mark.parametrize("left", [b"", bytes(LOCK_BYTES)], ids=["empty", "zeros"])
def test_a_lock_whose_bytes_onedata_lost_is_written_anew(replica: Replica, left: bytes) -> None:
    lock = lock_of(replica, "one")
    lock.acquire()
    replica.remove(LOCK)
    replica.write_new(LOCK, left)
    lock.beat()
    assert parse_lock(replica.read(LOCK))["HOST"] == "one"
    with pytest.raises(DeployedElsewhere):
        lock_of(replica, "two").acquire()


def test_an_overwritten_lock_is_lost(replica: Replica) -> None:
    lock = lock_of(replica, "one")
    lock.acquire()
    replica.overwrite(LOCK, b"HOST: stranger".ljust(LOCK_BYTES))
    with pytest.raises(LockLost, match="stranger"):
        lock.check()


def test_writing_is_suspended_when_no_beat_was_confirmed(replica: Replica) -> None:
    clock = FakeClock()
    lock = lock_of(replica, "one", clock=clock)
    lock.acquire()
    clock.sleep(TIMES.suspend - 1)
    assert lock.may_write()
    clock.sleep(1)
    assert not lock.may_write()
    lock.beat()
    assert lock.may_write()


def test_old_scripts_locks_are_honoured(replica: Replica) -> None:
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


def test_a_second_provider_halts(replica: Replica) -> None:
    lock_of(replica, "one").acquire()
    lock_of(replica, "one")
    replica.remove(LOCK)
    replica.make_directory(EPOCHS + b"/000002@ab12")
    with pytest.raises(Halted, match="second OneData provider"):
        lock_of(replica, "two").acquire()


def test_unlock_ends_a_dead_claim_and_names_what_it_removes(replica: Replica) -> None:
    lock_of(replica, "dead").acquire()
    other = lock_of(replica, "two")
    assert other.unlock(1) == ["the claim of epoch 1", "the lock file"]
    assert other.acquire() == 3, "the next epoch fenced the dead one, in case it wakes up"


def test_unlock_of_a_live_claim_is_refused(replica: Replica) -> None:
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


def test_a_claim_that_died_before_its_record_is_taken_up_again(replica: Replica) -> None:
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


class Mortal:
    """A door that dies at the call ``left``, before or after it took effect, and stays dead."""

    def __init__(self, replica: Replica, left: int, after: bool) -> None:
        self._replica = replica
        self.left = left
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., object]:
        def made(*arguments: object) -> object:
            self.left -= 1
            if self.left < 0 and not (self._after and self.left == -1):
                raise Dies
            answer = getattr(self._replica, name)(*arguments)
            if self.left < 0:
                raise Dies
            return answer

        return made


def lived(
    replica: Replica, kept: list[Remembered], left: int, after: bool, looks: int = 1
) -> Lock | None:
    """Start the node once more, with so many ``looks`` at once; None where it died."""
    claimant = Claimant("one", "boot-one", "machine-one", "me", "/work", "/data", "0")
    door = cast(Replica, Mortal(replica, left, after))
    with ThreadPoolExecutor(looks) as pool:
        workers = pool if looks > 1 else None
        lock = Lock(door, FakeClock(), TIMES, claimant, kept[-1], kept.append, workers)
        try:
            lock.acquire()
        except Dies:
            return None
        lock._workers = None
    return lock


@pytest.mark.parametrize("looks", [1, 6], ids=["one by one", "side by side"])
@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_call_of_two_starts_in_a_row_needs_no_person(
    after: bool, looks: int
) -> None:
    deaths = 0
    for first in range(99):
        replica = MemoryReplica()
        owner, _ = claimed(replica)
        kept = [owner.state()]
        if lived(replica, kept, first, after, looks) is not None:
            break
        for second in range(first % 3, 99, 3):
            world, memory = MemoryReplica(), list(kept)
            world._tree = dict(replica._tree)
            died = lived(world, memory, second, after, looks) is None
            deaths += died
            heir = lived(world, memory, 9999, after)
            assert heir is not None
            assert heir.state().deployment_id == owner.state().deployment_id, (first, second)
            heir.release(None)
            ends = [world.look(place(n + 1, b"end.json")) for n in range(heir.state().epoch)]
            assert all(ends), (first, second, ends)
            if not died:
                break
    assert deaths > 150


def test_a_deployment_of_many_beats_is_known_again(replica: Replica) -> None:
    kept: list[Remembered] = []
    claimant = Claimant("one", "boot-one", "machine-one", "me", "/work", "/data", "0")
    first = Lock(replica, FakeClock(), TIMES, claimant, None, kept.append)
    first.acquire()
    for _ in range(20):
        first.beat()
    assert lock_of(replica, "one", kept[-1]).acquire() == 2


def test_a_claim_that_another_node_won_at_the_same_moment_is_not_ours(
    replica: Replica,
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


def claimed(replica: Replica, host: str = "one") -> tuple[Lock, FakeClock]:
    clock = FakeClock()
    lock = lock_of(replica, host, clock=clock)
    lock.acquire()
    return lock, clock


def place(epoch: int, name: bytes = b"") -> bytes:
    return EPOCHS + b"/%06d" % epoch + (b"/" + name if name else b"")


def put(replica: Replica, path: bytes, content: bytes) -> None:
    replica.remove(path)
    replica.write_new(path, content)


def test_a_claim_that_gave_way_is_ended(replica: Replica) -> None:
    def meanwhile(_: float) -> None:
        replica.make_directory(place(2))

    with pytest.raises(DeployedElsewhere, match="newer than ours"):
        lock_of(replica, "one").acquire(pause=meanwhile)
    assert replica.look(place(1, b"end.json")) is not None
    put(replica, place(2, b"end.json"), b"")
    assert lock_of(replica, "two").acquire() == 3


def test_a_torn_record_of_ours_keeps_the_deployment(replica: Replica) -> None:
    first, _ = claimed(replica)
    put(replica, place(1, b"record.json"), b'{"format": 1, "depl')
    with pytest.raises(DeployedElsewhere, match="onesync unlock --epoch 1"):
        lock_of(replica, "two").acquire()
    again = lock_of(replica, "one", first.state())
    assert again.acquire() == 2
    assert again.state().deployment_id == first.state().deployment_id


def test_a_torn_record_whose_lock_a_person_deleted_frees_the_folder(replica: Replica) -> None:
    claimed(replica)
    put(replica, place(1, b"record.json"), b"")
    replica.remove(LOCK)
    assert lock_of(replica, "two").acquire() == 2


def test_a_record_of_a_newer_format_halts(replica: Replica) -> None:
    claimed(replica)
    newer = replica.read(place(1, b"record.json")).replace(b'"format": 1', b'"format": 2')
    put(replica, place(1, b"record.json"), newer)
    replica.remove(LOCK)
    with pytest.raises(Halted, match="newer onesync holds"):
        lock_of(replica, "two").acquire()
    assert replica.look(place(2)) is None


@pytest.mark.parametrize("end", [b"", b"{", b'{"format": 9}', b'{"format": 1, "how": "unlocked"}'])
def test_a_claim_that_ended_is_ended_whatever_its_end_says(replica: Replica, end: bytes) -> None:
    """The node died before it removed the lock file."""
    claimed(replica)
    put(replica, place(1, b"end.json"), end)
    assert lock_of(replica, "two").acquire() == 2


def test_a_first_format_claim_is_read(replica: Replica) -> None:
    for path in (b".deployment_status_do_not_delete", EPOCHS, place(4)):
        replica.make_directory(path)
    record = (
        b'{"format": 1, "deployment_id": "d", "epoch": 4, "host": "old", "boot_id": "b",'
        b' "machine_id": "m", "user": "ada", "working_dir": "/w", "replica_dir": "/r", "started":'
        b' "2026-01-01T00:00:00+00:00", "version": "0.1.0", "parent": null, "checkpoint": null}\n'
    )
    beat = b'{"format": 1, "how": "beat", "time": "2026-01-01T00:01:00+00:00", "checkpoint": "E"}\n'
    replica.write_new(place(4, b"record.json"), record)
    replica.write_new(place(4, b"beat-000009"), beat)
    replica.write_new(LOCK, b"HOST: old\nDEPLOYMENT: d\nEPOCH: 4\n".ljust(LOCK_BYTES))
    with pytest.raises(DeployedElsewhere, match="ada on old holds it"):
        lock_of(replica, "two").acquire()
    again = lock_of(replica, "one", Remembered("d", 4, 9))
    assert again.acquire() == 5
    assert again.state().deployment_id == "d"


@pytest.mark.parametrize("twin", [b"lock@ab12", b"epochs@ab12", b"epochs/000001@ab12"])
@pytest.mark.parametrize("life", [False, True])
def test_a_twin_stops_both(replica: Replica, twin: bytes, life: bool) -> None:
    """At the claim, and also when a partition heals during a life."""
    lock, _ = claimed(replica)
    if not life:
        lock.release(None)
    replica.make_directory(b".deployment_status_do_not_delete/" + twin)
    with pytest.raises(LockLost if life else Halted, match="second OneData provider"):
        lock.beat() if life else lock_of(replica, "two").acquire()


def test_a_second_status_folder_stops_both(replica: Replica) -> None:
    lock, _ = claimed(replica)
    replica.make_directory(b".deployment_status_do_not_delete@ab12")
    with pytest.raises(LockLost, match="second OneData provider"):
        lock.beat()


def test_the_late_text_of_a_fenced_owner_in_the_lock_file_fences_nobody_else(
    replica: Replica,
) -> None:
    claimed(replica, "one")
    late = replica.read(LOCK)
    replica.remove(LOCK)
    owner, _ = claimed(replica, "two")
    replica.overwrite(LOCK, late)
    owner.beat()
    assert parse_lock(replica.read(LOCK))["HOST"] == "two"


def test_an_old_scripts_lock_over_ours_is_left_alone(replica: Replica) -> None:
    """Someone deployed with an old script while our node was down."""
    first, _ = claimed(replica)
    theirs = b"HOST: stranger\nDIR: /x\n".ljust(LOCK_BYTES)
    replica.overwrite(LOCK, theirs)
    with pytest.raises(DeployedElsewhere, match="stranger"):
        lock_of(replica, "one", first.state()).acquire()
    assert lock_of(replica, "three").unlock(1) == ["the claim of epoch 1"]
    assert replica.read(LOCK) == theirs


class Faulty:
    """A door whose calls can be made to fail before or after they took effect."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.calls: list[str] = []
        self.overwritten: list[object] = []
        self.swallow: str | None = None
        self.fail_after: str | None = None

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self._replica, name)

        def made(*arguments: object) -> object:
            self.calls.append(name)
            self.overwritten += arguments[:1] if name == "overwrite" else ()
            if name == self.swallow:
                return None
            answer = call(*arguments)
            if name == self.fail_after:
                raise OSError(errno.ETIMEDOUT, "no answer", name)
            return answer

        return made


def faulty_owner(replica: Replica) -> tuple[Lock, Faulty, FakeClock]:
    door, clock = Faulty(replica), FakeClock()
    lock = lock_of(cast(Replica, door), "one", clock=clock)
    lock.acquire()
    door.calls.clear()
    return lock, door, clock


def test_a_beat_costs_few_calls(replica: Replica) -> None:
    lock, door, _ = faulty_owner(replica)
    for _ in range(12):
        lock.beat()
    door.calls.clear()
    lock.beat()
    assert len(door.calls) == 9, door.calls


def test_beats_that_succeed_and_never_left_do_not_count(replica: Replica) -> None:
    lock, door, clock = faulty_owner(replica)
    door.swallow = "write_new"
    for _ in range(4):
        clock.sleep(TIMES.beat)
        with pytest.raises(OSError, match="not there"):
            lock.beat()
    assert lock.state().beat == 1
    assert not lock.may_write()
    door.swallow = None
    lock.beat()
    assert lock.may_write()


def test_our_own_beat_of_unknown_result_is_ours(replica: Replica) -> None:
    lock, door, clock = faulty_owner(replica)
    door.fail_after = "write_new"
    with pytest.raises(OSError, match="no answer"):
        lock.beat()
    sent = clock.now
    door.fail_after = None
    clock.sleep(TIMES.beat)
    lock.beat()
    assert lock.state().beat == 2
    assert place(1, b"beat-000002") in door.overwritten, "it is flushed first"
    assert lock.age() == clock.now - sent, "it counts from when it was sent"
    lock.beat()
    assert lock.age() == 0


@pytest.mark.parametrize("left", [b"", b"\0" * 20, b"\0" * 90])
def test_a_beat_of_which_part_is_left_is_passed_over(replica: Replica, left: bytes) -> None:
    """A storage that loses what was not flushed leaves zeros, or a name alone."""
    lock, door, clock = faulty_owner(replica)
    door.fail_after = "write_new"
    with pytest.raises(OSError, match="no answer"):
        lock.beat()
    door.fail_after = None
    path = place(1, b"beat-000002")
    put(replica, path, left + replica.read(path)[len(left) :] if left else b"")
    clock.sleep(TIMES.beat)
    lock.beat()
    assert (lock.state().beat, lock.age()) == (3, 0)


def test_a_beat_with_others_bytes_is_somebody_elses(replica: Replica) -> None:
    lock, door, _ = faulty_owner(replica)
    door.fail_after = "write_new"
    with pytest.raises(OSError, match="no answer"):
        lock.beat()
    door.fail_after = None
    path = place(1, b"beat-000002")
    put(replica, path, replica.read(path) + b" ")
    with pytest.raises(LockLost, match="written by somebody else"):
        lock.beat()


def test_a_beat_of_a_live_copy_of_this_machine_is_seen(replica: Replica) -> None:
    lock, _ = claimed(replica)
    copied = copy.copy(lock)
    copied.beat()
    with pytest.raises(LockLost, match="written by somebody else"):
        lock.beat()


def test_a_release_of_unknown_result_is_done_again(replica: Replica) -> None:
    lock, door, _ = faulty_owner(replica)
    door.fail_after = "remove"
    with pytest.raises(OSError, match="no answer"):
        lock.release("head")
    door.fail_after = None
    lock.beat()
    lock.release("head")
    assert lock_of(replica, "two").acquire() == 2


def test_what_an_earlier_life_left_is_removed(replica: Replica) -> None:
    """It ended its claim and died before it removed the lock file."""
    lock, _ = claimed(replica)
    put(replica, place(1, b"end.json"), b"{}")
    lock_of(replica, "one", lock.state()).release_earlier("head")
    assert replica.look(LOCK) is None


def _lose_bytes_of_lock(replica: MemoryReplica, owner: Lock) -> None:
    """Let the lock file be what a storage may have of it for a while; its owner mends it."""
    replica.overwrite(LOCK, bytes(LOCK_BYTES))
    owner.check()


def test_a_lock_that_names_nobody_is_the_next_ones_where_the_claim_has_ended() -> None:
    replica = MemoryReplica()
    first = lock_of(replica, "one")
    first.acquire()
    left = first.state()  # the node dies while it cleans
    lock_of(replica, "two").unlock(1)
    two = lock_of(replica, "two")
    two.acquire()
    _lose_bytes_of_lock(replica, two)
    lock_of(replica, "one", left).release_earlier("head")
    assert replica.look(LOCK) is not None
    two.check()


def test_so_it_is_where_a_release_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = MemoryReplica()
    one = lock_of(replica, "one")
    one.acquire()
    write_new = replica.write_new

    def written_but(path: bytes, content: bytes) -> None:
        write_new(path, content)
        raise OSError(errno.EIO, "nobody knows what came of it")

    with monkeypatch.context() as failing:
        failing.setattr(replica, "write_new", written_but)
        with pytest.raises(OSError, match="nobody knows"):
            one.release("head")
    two = lock_of(replica, "two")
    two.acquire()
    _lose_bytes_of_lock(replica, two)
    one.release("head")
    assert replica.look(LOCK) is not None
    two.check()


@pytest.mark.parametrize("is_ended", [False, True])
def test_what_another_deployment_holds_is_not_released_as_an_earlier_lifes(
    replica: Replica, is_ended: bool
) -> None:
    """The same epoch of another folder."""
    lock, _ = claimed(replica)
    theirs = replica.read(LOCK)
    if is_ended:
        put(replica, place(1, b"end.json"), b"{}")
    mine = lock_of(replica, "one", Remembered("another", 1, 1))
    if is_ended:
        mine.release_earlier("head")
    else:
        with pytest.raises(Halted, match="another folder stands at"):
            mine.release_earlier("head")
        lock.check()
    assert replica.read(LOCK) == theirs


def test_the_folder_is_remembered_with_the_claim(replica: Replica) -> None:
    kept: list[Remembered] = []
    claimant = Claimant("one", "boot", "machine", "me", "/work", "/data", "0")
    lock = Lock(replica, FakeClock(), TIMES, claimant, None, kept.append)
    lock.acquire()
    lock.folder_id = "f1"
    lock.beat()
    assert [told.folder_id for told in kept] == [None, None, "f1"]
    assert decode_remembered(encode_remembered(kept[-1])) == kept[-1]
    earlier = '{"format": 1, "deployment_id": "d", "epoch": 1, "beat": 2}'
    assert decode_remembered(earlier) == Remembered("d", 1, 2, None)


def test_the_wall_clock_decides_nothing(replica: Replica) -> None:
    lock, clock = claimed(replica)
    for jump in (-(10**9), 10**9):
        clock.jump = jump
        clock.sleep(TIMES.beat)
        lock.beat()
        assert (lock.may_write(), lock.age()) == (True, 0)
    with pytest.raises(DeployedElsewhere):
        lock_of(replica, "two").acquire()


def test_an_owner_that_was_unlocked_learns_it_though_the_lock_file_stayed(
    replica: Replica,
) -> None:
    lock, clock = claimed(replica)
    content = replica.read(LOCK)
    lock_of(replica, "two").unlock(1)
    replica.write_new(LOCK, content)
    clock.sleep(TIMES.dead)
    with pytest.raises(LockLost, match="unlock"):
        lock.beat()
    assert not lock.may_write()


def test_an_owner_that_wakes_up_during_unlock_is_not_unlocked_unseen(
    replica: Replica,
) -> None:
    """It beats between the last look of the watch and the end: one of both sees the other."""
    lock, _ = claimed(replica)
    other = lock_of(replica, "two")
    lives = other._lives

    def late(epoch: int, newest: int, seconds: float) -> bool:
        alive = lives(epoch, newest, seconds)
        lock.beat()
        return alive

    other._lives = late  # type: ignore[method-assign]
    with pytest.raises(DeployedElsewhere, match="came to life"):
        other.unlock(1)
    with pytest.raises(LockLost, match="epoch 2"):
        lock.beat()
    assert lock_of(replica, "one", lock.state()).acquire() == 3


def clone_of(lock: Lock, replica: Replica, clock: FakeClock) -> Lock:
    """What a copy of the owner's disk image, or his node after a reboot, starts with."""
    claimant = Claimant("one", "another boot", "machine-one", "me", "/work", "/data", "0")
    return Lock(replica, clock, TIMES, claimant, lock.state())


def test_a_clone_waits_for_as_long_as_the_mute_original_may_write(replica: Replica) -> None:
    lock, clock = claimed(replica)
    clone = clone_of(lock, replica, clock)
    assert clone.acquire() == 2
    assert not lock.may_write()


def test_a_clone_of_a_moment_ago_sees_that_the_deployment_went_on(replica: Replica) -> None:
    lock, _ = claimed(replica)
    image = lock.state()
    lock.beat()
    with pytest.raises(DeployedElsewhere, match="gone on without this node"):
        lock_of(replica, "one", image).acquire()


def test_a_listing_that_hides_the_newest_claim_deceives_nobody(replica: Replica) -> None:
    claimed(replica)
    refused_behind(Stale(replica), replica)


def refused_behind(door: Stale, replica: Replica) -> None:
    lock = lock_of(replica, "two")
    lock._replica = door  # type: ignore[assignment]
    with pytest.raises(DeployedElsewhere, match="me on one holds it"):
        lock.acquire()


class Stale:
    """A door whose listing of the claims hides all but one."""

    def __init__(self, replica: Replica, shown: bytes = b"") -> None:
        self._replica = replica
        self.shown = shown

    def __getattr__(self, name: str) -> object:
        return getattr(self._replica, name)

    def names(self, path: bytes) -> Set[bytes]:
        found = self._replica.names(path)
        return found if path != EPOCHS else found & {self.shown}


def test_a_listing_of_twenty_calls_ago_hides_no_sign_of_life(replica: Replica) -> None:
    owner, _ = claimed(replica)
    door = Frozen(replica, replica.names(place(1)))
    for _ in range(10):
        owner.beat()

    class Beating(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            owner.beat()

    other = lock_of(replica, "two", clock=Beating())
    other._replica = door  # type: ignore[assignment]
    with pytest.raises(DeployedElsewhere, match="alive"):
        other.unlock(1)


class Frozen:
    """A door that lists the first claim as it once was."""

    def __init__(self, replica: Replica, listed: Set[bytes]) -> None:
        self._replica = replica
        self._listed = listed

    def __getattr__(self, name: str) -> object:
        return getattr(self._replica, name)

    def names(self, path: bytes) -> Set[bytes]:
        return self._listed if path == place(1) else self._replica.names(path)


def test_an_unlock_leaves_the_lock_of_a_successor_alone(replica: Replica) -> None:
    """It was claimed meanwhile, and a cache shows the lock file as it was before."""
    owner, _ = claimed(replica)
    before = replica.read(LOCK)
    other = lock_of(replica, "two")
    other._lives = lambda *_: lock_of(replica, "one", owner.state()).acquire() == 0  # type: ignore[method-assign]
    other._replica = Cached(replica, before)  # type: ignore[assignment]
    other.unlock(1)
    assert parse_lock(replica.read(LOCK))["EPOCH"] == "2"


class Cached:
    """A door that shows the lock file as it once was."""

    def __init__(self, replica: Replica, content: bytes) -> None:
        self._replica = replica
        self._content = content

    def __getattr__(self, name: str) -> object:
        return getattr(self._replica, name)

    def read(self, path: bytes) -> bytes:
        return self._content if path == LOCK else self._replica.read(path)


def test_ten_minutes_without_a_provider_suspend_and_end_by_themselves(
    replica: Replica,
) -> None:
    lock, door, clock = faulty_owner(replica)
    door.fail_after = "look"
    for _ in range(30):
        clock.sleep(TIMES.beat)
        with pytest.raises(OSError, match="no answer"):
            lock.beat()
    assert not lock.may_write()
    door.fail_after = None
    lock.beat()
    assert lock.may_write()


def test_the_old_claims_end_is_not_asked_for_twice(replica: Replica) -> None:
    """What lies below a claim that ended is not read: starts do not get slower with the years."""
    for _ in range(5):
        lock, _ = claimed(replica)
        lock.release(None)
    lock, door, _ = faulty_owner(replica)
    lock._claims()
    assert door.calls.count("read") <= 4


def test_an_original_that_beats_after_the_watch_of_its_clone_is_seen(replica: Replica) -> None:
    """The clone slept between its last look and its claim: what it watched counts, not that."""
    lock, clock = claimed(replica)
    clone = clone_of(lock, replica, clock)
    judge = clone._judge
    looks = iter(range(9))

    def late() -> Free | Ours | Held:
        verdict = judge()
        if next(looks) == 1:
            lock.beat()
        return verdict

    clone._judge = late  # type: ignore[method-assign]
    with pytest.raises(DeployedElsewhere, match="came to life again"):
        clone.acquire()


def test_a_listing_that_hides_the_owner_below_a_withdrawn_claim_deceives_nobody(
    replica: Replica,
) -> None:
    owner, _ = claimed(replica)
    replica.make_directory(place(2))
    put(replica, place(2, b"end.json"), b'{"format": 1, "how": "withdrawn"}')
    refused_behind(Stale(replica, shown=b"000002"), replica)
    assert owner.may_write()


def test_epochs_that_somebody_removed_hold_nothing(replica: Replica) -> None:
    for _ in range(3):
        lock, _ = claimed(replica)
        lock.release(None)
    replica.remove(place(3, b"end.json"))
    put(replica, place(3, b"end.json"), b'{"format": 1, "how": "withdrawn"}')
    replica.remove(place(2))
    assert lock_of(replica, "two").acquire() == 4


# -- nodes that are configured with other times ---------------------------------------------------

SLOW = LockTimes.from_timeout(300)
DEFAULT = LockTimes.from_timeout(120)
"""What onesync is configured with where nobody says anything, and was when beats told no times."""


class Meanwhile(FakeClock):
    """A clock beside which ``lock`` beats when it is time, where it is not ``mute``."""

    def __init__(self, lock: Lock, mute: bool = False) -> None:
        super().__init__()
        self._lock = lock
        self._mute = mute

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        owners = self._lock._clock
        assert isinstance(owners, FakeClock)
        owners.now = self.now
        if not self._mute and self._lock.age() >= self._lock.times.beat:
            self._lock.beat()


def owner_with(times: LockTimes, replica: Replica, beats: int = 0) -> Lock:
    owner = lock_of(replica, "one", times=times)
    owner.acquire(pause=lambda _: None)
    for _ in range(beats):
        owner.beat()
    return owner


def without_times(replica: Replica, epoch: int, beat: int) -> None:
    """Leave of a beat what an earlier onesync would have written."""
    path = place(epoch, b"beat-%06d" % beat)
    kept = ("format", "time", "checkpoint", "token")
    found = json.loads(replica.read(path))
    put(replica, path, json.dumps({name: found[name] for name in kept}).encode())


def test_a_healthy_owner_that_beats_more_slowly_than_we_is_not_unlocked(replica: Replica) -> None:
    owner = owner_with(SLOW, replica)
    clock = Meanwhile(owner)
    with pytest.raises(DeployedElsewhere, match="alive"):
        lock_of(replica, "two", clock=clock).unlock(1)
    assert owner.may_write()
    assert clock.now - 1000 >= SLOW.beat > TIMES.dead


@pytest.mark.parametrize("ours", [TIMES, LockTimes.from_timeout(500)], ids=["shorter", "longer"])
def test_unlock_watches_for_the_longer_of_both_dead_times(
    replica: Replica, ours: LockTimes
) -> None:
    owner = owner_with(SLOW, replica)
    clock = Meanwhile(owner, mute=True)
    lock_of(replica, "two", clock=clock, times=ours).unlock(1)
    assert clock.now - 1000 == max(ours.dead, SLOW.dead)
    assert not owner.may_write()


def test_a_clone_with_shorter_times_waits_for_as_long_as_the_original_may_write(
    replica: Replica,
) -> None:
    """Also the same node after a reboot, whose configuration was changed meanwhile."""
    owner = owner_with(SLOW, replica)
    clone = clone_of(owner, replica, Meanwhile(owner, mute=True))
    assert clone.acquire() == 2
    assert not owner.may_write()
    assert owner.age() >= 1.25 * SLOW.suspend, "its clock may be slower than ours"


@pytest.mark.parametrize("act", ["unlock", "resume"])
def test_an_owner_that_tells_no_times_has_the_default_ones_at_least(
    replica: Replica, act: str
) -> None:
    owner = owner_with(DEFAULT, replica, beats=2)
    for beat in (1, 2, 3):
        without_times(replica, 1, beat)
    clock = Meanwhile(owner, mute=True)
    if act == "unlock":
        lock_of(replica, "two", clock=clock).unlock(1)
        assert clock.now - 1000 == DEFAULT.dead
    else:
        clone_of(owner, replica, clock).acquire()
    assert not owner.may_write()


def test_times_are_told_by_an_earlier_beat_where_the_newest_is_torn(replica: Replica) -> None:
    owner = owner_with(SLOW, replica, beats=2)
    put(replica, place(1, b"beat-000003"), b"\0" * 20)
    clock = Meanwhile(owner, mute=True)
    lock_of(replica, "two", clock=clock).unlock(1)
    assert clock.now - 1000 == SLOW.dead


@pytest.mark.parametrize(
    "told",
    [float("nan"), float("inf"), 10**400, -1, 0, True, "1", None, []],
    ids=["nan", "inf", "huge", "negative", "none", "true", "text", "null", "list"],
)
@pytest.mark.parametrize("name", ["suspend", "dead"])
def test_times_that_nobody_can_have_are_none(replica: Replica, name: str, told: object) -> None:
    owner = owner_with(SLOW, replica)
    path = place(1, b"beat-000001")
    put(replica, path, json.dumps({**json.loads(replica.read(path)), name: told}).encode())
    clock = Meanwhile(owner, mute=True)
    lock_of(replica, "two", clock=clock).unlock(1)
    assert clock.now - 1000 == DEFAULT.dead


def test_a_claim_that_never_beat_is_watched_by_our_times(replica: Replica) -> None:
    """Its owner was never permitted to write, and is fenced by the next epoch before it is."""
    owner_with(SLOW, replica)
    replica.remove(place(1, b"beat-000001"))
    clock = FakeClock()
    lock_of(replica, "two", clock=clock).unlock(1)
    assert clock.now - 1000 == TIMES.dead


# -- calls that are under way, or wait, when the lock is lost --------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[ChildrenReplica]:
    """A replica that makes one call at once, and sends slowly."""
    (tmp_path / "store").mkdir()
    replica = ChildrenReplica(
        os.fsencode(tmp_path / "store"), 1, 1, patience=60, bytes_per_second=1 << 20
    )
    yield replica
    replica.close()


@pytest.mark.parametrize("reason", [LockLost, Suspended])
def test_nothing_is_written_any_more_when_the_lock_is_lost(
    slow: ChildrenReplica, tmp_path: Path, reason: type[OnesyncError]
) -> None:
    """Neither does a copy go on that takes long, nor begins a call that waited for its turn."""
    whole = 64 << 20
    source, final = tmp_path / "source", tmp_path / "store" / "final"
    with source.open("wb") as file:
        file.truncate(whole)
        file.write(os.urandom(1 << 20) * 64)
    final.touch()
    lost: list[type[OnesyncError]] = []
    asked: list[str] = []

    def may_write() -> None:
        asked.append(threading.current_thread().name)
        if lost:
            raise lost[0]("nothing may be written")

    door = leased(slow, may_write)
    empty = blake3(b"").hexdigest()
    with (
        ThreadPoolExecutor(1, "copies") as copies,
        ThreadPoolExecutor(1, "waits") as waits,
    ):
        copy = copies.submit(door.append, os.fsencode(source), b"final", 0, empty)
        while not final.stat().st_size:
            assert not copy.done()
            time.sleep(0.01)
        waiting = waits.submit(door.write_new, b"new", b"x")
        while "waits_0" not in asked:
            time.sleep(0.01)
        lost.append(reason)
        for future in (copy, waiting):
            with pytest.raises(reason):
                future.result(30)
    assert not (tmp_path / "store" / "new").exists()
    assert final.stat().st_size < whole / 2
    lost.clear()
    door.write_new(b"later", b"x")  # a suspended owner goes on
    assert (tmp_path / "store" / "later").read_bytes() == b"x"
