"""What was pushed is remembered until it is known to have arrived."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.chain import Gone, Renamed, Set
from onesync.core.model import DAMAGED_NS, Entry, Kind, RelPath, Stamp, is_doubted, lost_stamp
from onesync.errors import NotArrived, OnesyncError
from onesync.index import Index
from onesync.replica.door import Listed
from onesync.unverified import Unverified
from tests.memory import MemoryReplica
from tests.test_index import FORMAT_2

ROUND = 40.0


class Telling(MemoryReplica):
    """A replica that tells of each file whether it arrived; every file does, but ``late`` ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tells = True
        self.late: set[RelPath] = set()
        self.asked = 0
        self.read_back: list[RelPath] = []
        self.unreadable: set[RelPath] = set()
        self.unreachable = False
        self.reading: Callable[[], None] = lambda: None

    def look(self, path: RelPath) -> Listed | None:
        if self.unreachable:
            raise OSError(errno.ETIMEDOUT, "no provider")
        return super().look(path)

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        self.asked += len(paths)
        return tuple(path not in self.late for path in paths) if self.tells else None

    def digest(self, path: RelPath) -> tuple[str, int]:
        self.read_back.append(path)
        self.reading()
        if path in self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        return super().digest(path)


def left_of(_: RelPath, size: int) -> set[str]:
    """What so many bytes of ``content`` may be where the rest was lost."""
    return {blake3(b"content"[:size]).hexdigest(), blake3(bytes(size)).hexdigest()}


class Bench:
    """An index, a replica and a clock that the test turns."""

    def __init__(self, place: Path, pool: ThreadPoolExecutor) -> None:
        self.now = 100.0
        self.index = Index(place)
        self.replica = Telling()
        self.pool = pool
        self.unverified = self.again()

    def again(self) -> Unverified:
        """Another life of the daemon on the same index."""
        return Unverified(self.replica, self.index, self.pool, lambda: self.now)

    def push(self, *paths: RelPath, is_read: bool = False, stored: bytes = b"content") -> None:
        for path in paths:
            self.replica.write_new(path, stored)
        entry = Entry(Kind.FILE, 7, digest=blake3(b"content").hexdigest())
        changes = [Set(path, entry) for path in paths]
        stamps = dict.fromkeys(paths, lost_stamp(Kind.FILE))
        self.index.commit(changes, stamps, pushed=dict.fromkeys(paths, is_read))
        self.unverified.pushed(paths)

    def left(self) -> list[tuple[RelPath, bool]]:
        return self.index.unverified(100)

    def is_doubted(self, path: RelPath) -> bool:
        known = self.index.known(path)
        assert known is not None
        return is_doubted(known.stamp)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(4) as pool:
        yield Bench(tmp_path / "index.sqlite", pool)


def test_nothing_pushed_is_nothing_to_do(bench: Bench) -> None:
    assert bench.unverified.next_due() is None
    assert bench.unverified.look() == set()
    assert (bench.replica.asked, bench.replica.read_back) == (0, [])


def test_what_arrived_is_forgotten_after_a_while_and_not_read(bench: Bench) -> None:
    bench.push(b"a", b"b")
    assert bench.unverified.next_due() == 3
    assert bench.unverified.look() == set()
    assert [path for path, _ in bench.left()] == [b"a", b"b"], "asked too early it means nothing"
    bench.now += 3
    assert bench.unverified.look() == set()
    assert bench.left() == []
    assert (bench.replica.asked, bench.replica.read_back) == (2, [])
    assert bench.unverified.next_due() is None


def test_what_does_not_arrive_in_time_is_read_back_and_sent_anew(bench: Bench) -> None:
    bench.push(b"lost", stored=bytes(7))
    bench.push(b"slow")
    bench.replica.late = {b"lost", b"slow"}
    bench.now += 3
    assert bench.unverified.look() == set()
    assert [path for path, _ in bench.left()] == [b"lost", b"slow"]
    bench.now += ROUND
    assert bench.unverified.look() == set()
    bench.now += ROUND
    assert bench.unverified.look() == {b"lost"}
    assert bench.is_doubted(b"lost")
    assert not bench.is_doubted(b"slow")
    assert bench.left() == []


def test_a_mount_that_cannot_tell_is_asked_once_and_then_believed_after_a_look(
    bench: Bench,
) -> None:
    bench.replica.tells = False
    bench.push(b"a")
    bench.now += 3
    assert bench.unverified.look() == set()
    asked = bench.replica.asked
    bench.push(b"b")
    bench.now += ROUND
    assert bench.unverified.look() == set()
    assert bench.left() == []
    assert (asked, bench.replica.asked) == (1, 1)


def test_what_was_only_believed_is_read_back_once_when_it_must_be_certain(bench: Bench) -> None:
    """Before the working copy goes: the client may have lost its bytes without a word."""
    bench.replica.tells = False
    bench.push(b"good", b"gone", b"renamed", b"anew")
    bench.push(b"lost", stored=bytes(7))
    bench.now += 3
    assert bench.unverified.look() == set()
    assert bench.replica.read_back == []
    bench.index.commit([Gone(b"gone"), Renamed(b"renamed", b"moved")], {})
    bench.replica.rename(b"renamed", b"moved")
    bench.replica.remove(b"anew")
    bench.push(b"anew", is_read=True)
    bench.now += ROUND
    assert bench.unverified.look() == set(), "what is pushed anew is believed no more"
    bench.replica.read_back.clear()
    unverified = bench.again()
    assert unverified.next_due() is None, "another life has nothing to suspect"
    told: list[tuple[int, int]] = []
    assert unverified.read_believed(lambda *count: told.append(count)) == {b"lost"}
    assert sorted(bench.replica.read_back) == [b"good", b"lost", b"moved"]
    assert bench.is_doubted(b"lost")
    assert told == [(3, 3)]
    assert unverified.read_believed(lambda *count: told.append(count)) == set()
    assert len(bench.replica.read_back) == 3, "once is enough"


def test_what_onedata_has_told_of_is_not_read_back(bench: Bench) -> None:
    bench.push(b"a")
    bench.now += 3
    assert bench.unverified.look() == set()
    assert bench.unverified.read_believed(lambda *_: None) == set()
    assert bench.replica.read_back == []


def test_what_onedata_lost_since_is_found_by_name_where_cleaning_would_remove_it(
    bench: Bench,
) -> None:
    bench.replica.make_directory(b"d")
    bench.push(b"good", b"gone", b"held", b"short", b"d/a")
    bench.index.commit([Set(b"d", Entry(Kind.DIRECTORY))], {b"d": lost_stamp(Kind.DIRECTORY)})
    bench.index.lose_stamps([b"good", b"gone", b"held", b"short", b"d/a"])
    for path in (b"gone", b"held", b"d"):
        bench.replica.remove(path)
    bench.replica.truncate(b"short", 3)
    told: list[tuple[int, int]] = []
    lost = bench.unverified.find_lost(
        lambda p: p != b"held", left_of, lambda *count: told.append(count)
    )
    assert lost == {b"gone", b"short", b"d/a"}
    assert told == [(6, 6)]
    assert bench.unverified.doubt(lost) == lost | {b"d"}, "its directory has to be made first"
    assert all(map(bench.is_doubted, lost | {b"d"}))
    assert bench.unverified.find_lost(lambda p: p != b"held", left_of, lambda *_: None) == set()


@pytest.mark.parametrize("found", [b"", b"con", bytes(5)])
def test_what_is_left_of_a_file_is_sent_anew(bench: Bench, found: bytes) -> None:
    bench.push(b"a")
    bench.index.lose_stamps([b"a"])
    bench.replica.remove(b"a")
    bench.replica.write_new(b"a", found)
    assert bench.unverified.find_lost(lambda _: True, left_of, lambda *_: None) == {b"a"}


@pytest.mark.parametrize("found", [b"content, and more", bytes(20), b"new", bytes(3) + b"t"])
def test_what_others_put_there_is_neither_sent_over_nor_cleaned(bench: Bench, found: bytes) -> None:
    bench.push(b"a")
    bench.index.lose_stamps([b"a"])
    bench.replica.remove(b"a")
    bench.replica.write_new(b"a", found)
    with pytest.raises(OnesyncError, match="a is something else in OneData"):
        bench.unverified.find_lost(lambda _: True, left_of, lambda *_: None)
    assert not bench.is_doubted(b"a")
    assert bench.unverified.find_lost(lambda _: False, left_of, lambda *_: None) == set()


def test_what_took_the_place_of_a_file_is_told_when_all_others_were_sent_anew(
    bench: Bench,
) -> None:
    bench.push(b"a", b"b")
    bench.index.lose_stamps([b"a", b"b"])
    for path in (b"a", b"b"):
        bench.replica.remove(path)
    bench.replica.make_directory(b"a")
    assert bench.unverified.find_lost(lambda _: True, left_of, lambda *_: None) == {b"b"}
    bench.replica.write_new(b"b", b"content")
    with pytest.raises(OnesyncError, match="a is something else in OneData"):
        bench.unverified.find_lost(lambda _: True, left_of, lambda *_: None)
    assert bench.unverified.find_lost(lambda path: path != b"a", left_of, lambda *_: None) == set()


def test_databases_are_read_back(bench: Bench) -> None:
    bench.push(b"good", is_read=True)
    bench.push(b"bad", is_read=True, stored=b"zeros..")
    bench.now += 3
    assert bench.unverified.look() == {b"bad"}
    assert sorted(bench.replica.read_back) == [b"bad", b"good"]


def test_after_a_connection_error_everything_is_read_back_at_once(bench: Bench) -> None:
    bench.push(b"good")
    bench.push(b"lost", stored=bytes(7))
    bench.unverified.suspect()
    assert bench.unverified.next_due() == 0
    assert bench.unverified.look() == {b"lost"}
    assert not bench.unverified.suspected
    assert bench.replica.asked == 0


def believed(bench: Bench) -> None:
    """Let what was pushed be believed."""
    bench.now += 3
    assert bench.unverified.look() == set()
    assert bench.left() == []
    assert bench.replica.read_back == []


def test_after_a_connection_error_what_was_only_believed_is_read_back_beside_the_batches(
    bench: Bench,
) -> None:
    bench.replica.tells = False
    bench.push(b"good")
    bench.push(b"lost", stored=bytes(7))
    believed(bench)
    bench.unverified.suspect()
    assert not bench.unverified.suspected, "nobody waits for it before something is pushed"
    assert bench.unverified.next_due() == 0
    assert bench.unverified.look() == {b"lost"}
    assert bench.is_doubted(b"lost")
    assert bench.unverified.next_due() is None
    bench.unverified.suspect()
    assert bench.unverified.next_due() is None
    assert sorted(bench.replica.read_back) == [b"good", b"lost"], "once is enough"


def test_what_was_believed_is_read_after_what_holds_up_the_batches(bench: Bench) -> None:
    bench.replica.tells = False
    bench.push(b"believed")
    believed(bench)
    bench.push(b"young")
    bench.unverified.suspect()
    assert bench.unverified.suspected
    assert bench.unverified.look() == set()
    assert bench.replica.read_back == [b"young"]
    assert bench.unverified.next_due() == 0
    assert bench.unverified.look() == set()
    assert bench.replica.read_back == [b"young", b"believed"]


def test_only_what_this_deployment_pushed_is_read_back_after_a_connection_error(
    bench: Bench,
) -> None:
    bench.replica.tells = False
    bench.push(b"earlier")
    believed(bench)
    with bench.index.refilled():  # the next stage-in
        pass
    bench.push(b"pushed")
    bench.index.believe([b"made anew"], lately=False)  # after a lost index
    believed(bench)
    bench.unverified.suspect()
    assert bench.unverified.look() == set()
    assert bench.replica.read_back == [b"pushed"]
    assert bench.index.believed() == [b"earlier", b"made anew"], "that is read before cleaning"


def test_such_a_suspicion_survives_a_restart_a_rename_and_another_push(bench: Bench) -> None:
    bench.replica.tells = False
    bench.push(b"renamed", b"grown", b"gone")
    believed(bench)
    bench.unverified.suspect()
    bench.index.commit([Renamed(b"renamed", b"moved"), Gone(b"gone")], {})
    bench.replica.rename(b"renamed", b"moved")
    entry = Entry(Kind.FILE, 8, digest="x")
    stamps = {b"grown": lost_stamp(Kind.FILE)}
    bench.index.commit([Set(b"grown", entry)], stamps, pushed={b"grown": False})
    assert bench.left() == [(b"grown", True)], "it is built on what may be lost"
    later = bench.again()
    assert later.suspected
    assert later.look() == {b"grown"}
    assert later.look() == set()
    assert bench.replica.read_back == [b"grown", b"moved"]
    assert bench.again().next_due() is None


def test_what_was_believed_is_read_in_portions_that_rest_as_long_as_they_take(
    bench: Bench,
) -> None:
    bench.replica.tells = False
    paths = [b"%03d" % number for number in range(250)]
    bench.push(*paths)
    believed(bench)
    bench.unverified.suspect()
    ended = bench.now + 10
    bench.replica.reading = lambda: setattr(bench, "now", ended)
    assert bench.unverified.look() == set()
    assert len(bench.replica.read_back) == 100
    assert bench.unverified.next_due() == 10
    assert bench.unverified.finish(_pausing(bench)) == set()
    assert sorted(bench.replica.read_back) == paths


def test_what_is_gone_from_onedata_differs(bench: Bench) -> None:
    bench.push(b"a")
    bench.replica.remove(b"a")
    bench.unverified.suspect()
    assert bench.unverified.look() == {b"a"}


def test_a_restart_suspects_what_was_left(bench: Bench) -> None:
    bench.push(b"lost", stored=bytes(7))
    later = bench.again()
    assert later.suspected
    assert later.look() == {b"lost"}
    assert not bench.again().suspected


def test_a_suspicion_survives_a_restart_and_another_push(bench: Bench) -> None:
    bench.push(b"stack")
    bench.unverified.suspect()
    entry = Entry(Kind.FILE, 8, digest="x")
    stamps = {b"stack": lost_stamp(Kind.FILE)}
    bench.index.commit([Set(b"stack", entry)], stamps, pushed={b"stack": False})
    assert bench.left() == [(b"stack", True)]


def test_rows_follow_renames_and_go_with_deletions(bench: Bench) -> None:
    bench.replica.make_directory(b"d")
    bench.push(b"d/a", b"d/b")
    bench.index.commit([Renamed(b"d", b"e"), Gone(b"e/b")], {})
    assert bench.left() == [(b"e/a", False)]


def test_one_file_that_cannot_be_read_does_not_hold_up_the_others_for_ever(bench: Bench) -> None:
    bench.push(b"bad", b"good")
    bench.replica.unreadable = {b"bad"}
    bench.unverified.suspect()
    for _ in range(2):
        with pytest.raises(OSError, match="unreadable"):
            bench.unverified.look()
        assert bench.unverified.suspected
    assert bench.unverified.look() == {b"bad"}
    assert bench.left() == []


def test_suspects_are_read_in_slices_until_none_is_left(bench: Bench) -> None:
    paths = [b"%04d" % number for number in range(1201)]
    bench.push(*paths)
    bench.unverified.suspect()
    rounds = 0
    while bench.unverified.suspected:
        assert bench.unverified.look() == set()
        rounds += 1
    assert rounds == 3
    assert sorted(bench.replica.read_back) == paths
    assert bench.left() == []


def test_finish_waits_for_what_is_young(bench: Bench) -> None:
    bench.push(b"a", b"b")
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        bench.now += seconds

    assert bench.unverified.finish(pause) == set()
    assert sum(pauses) == 3
    assert bench.left() == []


def test_finish_waits_for_nothing_where_nobody_is_asked(bench: Bench) -> None:
    bench.replica.tells = False
    bench.push(b"a", is_read=True, stored=b"zeros..")

    def pause(seconds: float) -> None:
        raise AssertionError(seconds)

    assert bench.unverified.finish(pause) == {b"a"}


def test_an_index_of_an_earlier_onesync_gets_the_table(tmp_path: Path) -> None:
    place = tmp_path / "index.sqlite"
    db = sqlite3.connect(place)
    db.executescript(FORMAT_2)
    db.close()
    index = Index(place)
    assert index.unverified(1) == []
    known = index.known(b"a")
    assert known is not None
    assert known.entry.size == 5
    index.commit([], {}, pushed={b"a": True})
    assert index.unverified(9) == [(b"a", True)]
    index.close()


def _entries(*paths: RelPath) -> dict[RelPath, Entry]:
    entry = Entry(Kind.FILE, 7, digest=blake3(b"content").hexdigest())
    return dict.fromkeys(paths, entry)


def _pausing(bench: Bench) -> Callable[[float], None]:
    def pause(seconds: float) -> None:
        bench.now += seconds

    return pause


def test_what_takes_the_place_of_older_bytes_is_waited_for(bench: Bench) -> None:
    bench.replica.write_new(b"a", b"content")
    bench.replica.write_new(b"b", b"content")
    bench.replica.late = {b"b"}
    began = bench.now

    def pause(seconds: float) -> None:
        bench.now += seconds
        if bench.now - began > 10:
            bench.replica.late.clear()

    assert bench.unverified.arrive(_entries(b"a", b"b"), pause)
    assert bench.now - began == 11
    assert bench.replica.read_back == []


def test_a_mount_that_cannot_tell_is_not_waited_for_but_its_provider_is_asked(
    bench: Bench,
) -> None:
    bench.replica.tells = False
    bench.replica.write_new(b"a", b"content")
    began = bench.now
    assert not bench.unverified.arrive(_entries(b"a"), _pausing(bench))
    assert bench.now == began
    bench.replica.unreachable = True
    with pytest.raises(OSError, match="no provider"):
        bench.unverified.arrive(_entries(b"a"), _pausing(bench))


def test_what_does_not_take_the_place_of_older_bytes_in_time_is_read_back(bench: Bench) -> None:
    bench.replica.write_new(b"slow", b"content")
    bench.replica.write_new(b"lost", bytes(7))
    bench.replica.late = {b"slow", b"lost"}
    began = bench.now
    assert not bench.unverified.arrive(_entries(b"slow"), _pausing(bench)), "OneData never said so"
    assert bench.replica.read_back == [b"slow"]
    assert bench.now - began == 60
    assert not bench.unverified.arrive(_entries(b"slow"), _pausing(bench))
    assert bench.now - began == 60, "a file of which it may never say so is waited for once"
    with pytest.raises(NotArrived, match="lost took the place of an older version"):
        bench.unverified.arrive(_entries(b"slow", b"lost"), _pausing(bench))


def test_nothing_arrives_of_an_empty_file_and_nobody_waits_for_it(bench: Bench) -> None:
    bench.replica.write_new(b"empty", b"")
    bench.replica.late = {b"empty"}
    began = bench.now
    empty = {b"empty": Entry(Kind.FILE, 0, digest=blake3(b"").hexdigest())}
    bench.unverified.arrive(empty, _pausing(bench))
    assert bench.now == began


def test_one_that_cannot_be_read_does_not_hold_up_its_batch_for_ever(bench: Bench) -> None:
    bench.replica.write_new(b"a", b"content")
    bench.replica.late = bench.replica.unreadable = {b"a"}
    for _ in range(2):
        with pytest.raises(OSError, match="unreadable"):
            bench.unverified.arrive(_entries(b"a"), _pausing(bench))
    assert not bench.unverified.arrive(_entries(b"a"), _pausing(bench))


def test_what_is_huge_and_only_on_its_way_is_not_read_back_before_its_commit(bench: Bench) -> None:
    bench.replica.write_new(b"stack", b"content")
    bench.replica.late = {b"stack"}
    huge = {b"stack": Entry(Kind.FILE, 100 << 30, digest="ab")}
    assert not bench.unverified.arrive(huge, _pausing(bench))
    assert bench.replica.read_back == []


def test_what_came_damaged_and_what_was_never_had_is_neither_read_back_nor_sent(
    bench: Bench,
) -> None:
    """This node has no good copy of the one, and none of the other."""
    bench.push(b"absent", b"damaged", stored=bytes(7))
    entry = Entry(Kind.FILE, 7, digest=blake3(b"content").hexdigest())
    came = Stamp(Kind.FILE, 1, 7, entry.mtime_ns + DAMAGED_NS, 0, 0o644)
    changes = [Set(b"absent", entry), Set(b"damaged", entry)]
    bench.index.commit(changes, {b"damaged": came})
    bench.index.believe([b"absent", b"damaged"], lately=False)
    assert bench.unverified.read_believed(lambda *_: None) == set()
    assert bench.unverified.doubt({b"absent"}) == {b"absent"}
    for path, stamp in ((b"absent", None), (b"damaged", came)):
        known = bench.index.known(path)
        assert known is not None
        assert known.stamp == stamp
