"""A batch that creates small files under their own names, and what becomes of it when it dies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3

from onesync.core.chain import Position
from onesync.core.model import Entry, Kind, Problem, RelPath, join, parent_of
from onesync.errors import Halted
from onesync.intent import FORMAT, INTENTS, Intent
from onesync.recovery import TORN, remove_torn, settle
from onesync.replica.door import Listed
from tests.memory import MemoryReplica, with_status_folder

PLACE = Position(3, 7)
WHOLE = b"all of it"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def replica() -> MemoryReplica:
    return with_status_folder()


def nothing(_: RelPath) -> Entry | None:
    return None


def write_intent(replica: MemoryReplica, *paths: RelPath, promise: bool = False) -> Intent:
    intent = Intent(PLACE)
    for path in paths:
        intent.new.append((path, join(parent_of(path), b".onesync~1")))
        intent.create.append((path, len(WHOLE), blake3(WHOLE).hexdigest()))
    intent.promise.extend(paths if promise else ())
    replica.write_new(intent.path, intent.encode())
    return intent


def kept(replica: MemoryReplica) -> list[bytes]:
    """What the status folder keeps of files that were taken back."""
    try:
        return [replica.read(TORN + b"/" + item.name) for item in replica.list(TORN)]
    except FileNotFoundError:
        return []


def settled(replica: MemoryReplica, pool: ThreadPoolExecutor, head: Position | None) -> set[bytes]:
    """Settle, and return what was told as published."""
    told: dict[RelPath, Entry] = {}
    settle(replica, head, nothing, pool, told.update)
    assert replica.list(INTENTS) == []
    return set(told)


def test_a_whole_file_stays(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", WHOLE)
    assert settled(replica, pool, None) == {b"extra/a"}
    assert replica.read(b"extra/a") == WHOLE


@pytest.mark.parametrize("torn", [WHOLE[:4], bytes(len(WHOLE)), b"all of IT"])
def test_a_torn_file_is_taken_back_and_kept(
    replica: MemoryReplica, pool: ThreadPoolExecutor, torn: bytes
) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", torn)
    assert settled(replica, pool, None) == set()
    assert replica.look(b"extra/a") is None
    assert kept(replica) == [torn]


def test_an_empty_one_only_goes(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", b"")
    settled(replica, pool, None)
    assert replica.look(b"extra/a") is None
    assert kept(replica) == []


def test_what_is_longer_than_anything_we_wrote_is_somebody_elses(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", WHOLE + b" and more")
    settled(replica, pool, None)
    assert replica.read(b"extra/a") == WHOLE + b" and more"


def test_what_a_note_tells_of_is_not_touched(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    intent = write_intent(replica, b"extra/a", promise=True)
    replica.write_new(b"extra/a", b"theirs")
    replica.write_new(intent.note_of(12), b"extra/a")
    assert settled(replica, pool, None) == set()
    assert replica.read(b"extra/a") == b"theirs"


def test_each_created_file_is_looked_at_once(
    replica: MemoryReplica, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may have been about to create thousands: each look is a call."""
    paths = [b"extra/%d" % number for number in range(40)]
    write_intent(replica, *paths)
    for path in paths[::2]:
        replica.write_new(path, WHOLE)
    looked: Counter[RelPath] = Counter()
    look = MemoryReplica.look

    def counted(one: MemoryReplica, path: RelPath) -> Listed | None:
        looked[path] += 1
        return look(one, path)

    monkeypatch.setattr(MemoryReplica, "look", counted)
    assert settled(replica, pool, None) == set(paths[::2])
    assert {looked[path] for path in paths} == {1}


def test_asides_come_back_also_out_of_what_comes_back(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    """A file was replaced, and then the directory that holds it went aside."""
    intent = Intent(PLACE)
    intent.replace.append((b"top/d/file", b"top/d/.onesync~1"))
    intent.remove.append((b"top/d", b"top/.onesync~2"))
    replica.write_new(intent.path, intent.encode())
    replica.make_directory(b"top")
    replica.make_directory(b"top/.onesync~2")
    replica.write_new(b"top/.onesync~2/file", b"new")
    replica.write_new(b"top/.onesync~2/.onesync~1", b"old")
    settled(replica, pool, None)
    assert replica.read(b"top/d/file") == b"old"
    assert [item.name for item in replica.list(b"top")] == [b"d"]
    assert kept(replica) == [b"new"]


def test_a_marker_is_taken_back_even_when_it_is_whole(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    write_intent(replica, b"extra/a", promise=True)
    replica.write_new(b"extra/a", WHOLE)
    assert settled(replica, pool, None) == set()
    assert replica.look(b"extra/a") is None
    assert kept(replica) == [WHOLE]


def test_files_of_one_name_are_all_kept(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    replica.make_directory(b"other")
    write_intent(replica, b"extra/a", b"other/a")
    replica.write_new(b"extra/a", b"one")
    replica.write_new(b"other/a", b"two")
    settled(replica, pool, None)
    assert sorted(kept(replica)) == [b"one", b"two"]


def removed_directory(replica: MemoryReplica) -> Intent:
    """A directory of ours went aside, with a file that is not."""
    intent = Intent(PLACE, remove=[(b"extra/d", b"extra/.onesync~1")])
    intent.ours[b"extra/.onesync~1"] = {b"": [b"a"]}
    replica.make_directory(b"extra/.onesync~1")
    replica.write_new(b"extra/.onesync~1/a", WHOLE)
    replica.write_new(b"extra/.onesync~1/theirs", b"precious")
    return intent


def test_what_others_put_into_a_directory_that_was_removed_comes_back(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    intent = removed_directory(replica)
    replica.write_new(intent.path, intent.encode())
    told: list[Problem] = []
    settle(replica, PLACE, nothing, pool, note=told.append)
    assert [problem.path for problem in told] == [b"extra/d/theirs"]
    assert replica.names(b"extra") == {b"d"}
    assert replica.names(b"extra/d") == {b"theirs"}


def test_an_intent_that_does_not_tell_what_was_ours_removes_all(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    fields = json.loads(removed_directory(replica).encode())
    del fields["ours"]
    fields["format"] = 3
    replica.write_new(Intent(PLACE).path, json.dumps(fields).encode())
    settled(replica, pool, PLACE)
    assert replica.names(b"extra") == set()


def test_a_committed_batch_keeps_all(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", WHOLE[:4])
    settled(replica, pool, PLACE)
    assert replica.read(b"extra/a") == WHOLE[:4]


def removes(replica: MemoryReplica, path: RelPath, content: bytes) -> None:
    """Write the intent of a batch that removes a file."""
    intent = Intent(PLACE)
    intent.gone.append((path, len(content), blake3(content).hexdigest()))
    replica.write_new(intent.path, intent.encode())


@pytest.mark.parametrize("head", [None, PLACE], ids=["back", "forward"])
def test_a_file_that_is_removed_goes_with_the_checkpoint(
    replica: MemoryReplica, pool: ThreadPoolExecutor, head: Position | None
) -> None:
    replica.write_new(b"extra/a", WHOLE)
    removes(replica, b"extra/a", WHOLE)
    assert settled(replica, pool, head) == set()
    assert (replica.look(b"extra/a") is None) == (head is not None)


@pytest.mark.parametrize("content", [WHOLE[:-1], WHOLE[::-1]], ids=["longer", "other"])
def test_another_file_is_not_removed(
    replica: MemoryReplica, pool: ThreadPoolExecutor, content: bytes
) -> None:
    """Whoever settles a batch comes late: somebody may have put a file there since."""
    replica.write_new(b"extra/a", content)
    removes(replica, b"extra/a", WHOLE)
    told = settle(replica, PLACE, nothing, pool)
    assert replica.read(b"extra/a") == content
    assert told == ["extra/a was to be deleted in OneData, and is not what it was: it is kept."]
    assert replica.list(INTENTS) == []


def test_what_later_batches_made_is_not_removed(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    replica.write_new(b"extra/a", WHOLE)
    removes(replica, b"extra/a", WHOLE)
    assert settle(replica, Position(3, 9), lambda _: Entry(Kind.FILE, len(WHOLE)), pool) == []
    assert replica.read(b"extra/a") == WHOLE


def test_a_directory_in_a_removed_files_place_stays(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    replica.make_directory(b"extra/a")
    replica.write_new(b"extra/a/theirs", b"1")
    removes(replica, b"extra/a", WHOLE)
    settle(replica, PLACE, nothing, pool)
    assert replica.read(b"extra/a/theirs") == b"1"


def test_notes_without_their_intent_go(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    replica.write_new(Intent(PLACE).note_of(1), b"extra/a")
    settled(replica, pool, None)


def test_a_newer_intent_halts_and_stays(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    intent = write_intent(replica, b"extra/a")
    newer = intent.encode().replace(b'"format": %d' % FORMAT, b'"format": %d' % (FORMAT + 1))
    assert newer != intent.encode()
    replica.overwrite(intent.path, newer)
    replica.write_new(b"extra/a", WHOLE[:4])
    with pytest.raises(Halted, match="newer"):
        settle(replica, None, nothing, pool)
    assert replica.read(intent.path) == newer
    assert replica.read(b"extra/a") == WHOLE[:4]


def test_what_is_kept_goes_with_its_bases(replica: MemoryReplica, pool: ThreadPoolExecutor) -> None:
    write_intent(replica, b"extra/a")
    replica.write_new(b"extra/a", WHOLE[:4])
    settled(replica, pool, None)
    remove_torn(replica, PLACE)
    assert kept(replica) == [WHOLE[:4]]
    remove_torn(replica, Position(4, 1))
    assert kept(replica) == []


class Dies(Exception):
    """The node loses power."""


class Mortal(MemoryReplica):
    """Dies at the ``left``-th call that changes something, before or after it took effect."""

    def __init__(self, tree: dict[RelPath, bytes | None], left: int | None, after: bool) -> None:
        super().__init__()
        self._tree = dict(tree)
        self._left = left
        self._after = after

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name not in ("rename", "remove", "unlink", "undo", "truncate", "make_directory"):
            return found

        def made(*arguments: object, **named: object) -> object:
            self._die(now=not self._after)
            answer = found(*arguments, **named)
            self._die(now=self._after)
            if self._left is not None:
                self._left -= 1
            return answer

        return made

    def _die(self, *, now: bool) -> None:
        if now and self._left == 0:
            raise Dies

    def everything(self) -> dict[RelPath, bytes | None]:
        return dict(self._tree)


def half_done_batch(replica: MemoryReplica) -> None:
    """A batch of every kind of change, each of them begun and some finished."""
    intent = Intent(PLACE)
    for path in (b"runs", b"runs/old", b"gone", b"made"):
        replica.make_directory(path)
    contents: dict[RelPath, bytes] = {
        b"runs/old/a": b"a",
        b"replaced": b"new version",
        b".onesync~replaced": b"old version",
        b".onesync~half": b"old",
        b"patched": b"PATCHED",
        b".onesync~undo": b"patched before",
        b"grown": b"12345 and more",
        b"whole": WHOLE,
        b"torn": WHOLE[:3],
        b"empty": b"",
        b"marker": WHOLE,
        b".onesync~temporary": b"half of it",
        b"newcomer": b"somebody else's",
        b"gone/x": b"x",
        b"left": WHOLE,
        b"made/y": b"y",
    }
    for path, content in contents.items():
        replica.write_new(path, content)
    replica.rename(b"gone", b".onesync~gone")
    intent.rename.append((b"before", b"runs/old"))
    intent.replace += [(b"replaced", b".onesync~replaced"), (b"half", b".onesync~half")]
    intent.remove += [(b"gone", b".onesync~gone"), (b"not yet", b".onesync~not yet")]
    intent.patch.append((b"patched", b".onesync~undo"))
    intent.append.append((b"grown", 5))
    intent.gone.append((b"left", len(WHOLE), blake3(WHOLE).hexdigest()))
    intent.make += [b"made", b"unmade"]
    intent.new += [
        (b"replaced", b".onesync~sent already"),
        (b"half", b".onesync~temporary"),
        (b"made/y", b"made/.onesync~y"),
    ]
    for path in (b"whole", b"torn", b"empty", b"marker", b"absent"):
        intent.new.append((path, b".onesync~" + path))
        intent.create.append((path, len(WHOLE), blake3(WHOLE).hexdigest()))
    intent.promise.append(b"marker")
    replica.write_new(intent.note_of(1), b"newcomer")
    replica.write_new(intent.path, intent.encode())


def of_half_done(path: RelPath) -> Entry | None:
    """What the checkpoint before has."""
    sizes = {b"patched": len(b"patched before"), b"grown": 5}
    return Entry(Kind.FILE, sizes[path]) if path in sizes else None


@pytest.mark.parametrize("head", [None, PLACE], ids=["back", "forward"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_death_at_every_call_of_a_recovery(
    replica: MemoryReplica, head: Position | None, after: bool
) -> None:
    """Whoever settles next comes to the same."""
    half_done_batch(replica)
    before = dict(replica._tree)
    with ThreadPoolExecutor(1) as pool:
        alive = Mortal(before, None, after)
        settle(alive, head, of_half_done, pool)
        wanted = alive.everything()
        deaths = 0
        while True:
            dying = Mortal(before, deaths, after)
            try:
                settle(dying, head, of_half_done, pool)
                break
            except Dies:
                deaths += 1
            heir = Mortal(dying.everything(), None, after)
            settle(heir, head, of_half_done, pool)
            assert heir.everything() == wanted, f"died at call {deaths}"
    assert deaths >= 15
    if head is None:
        assert wanted[b"replaced"] == b"old version"
        assert wanted[b"patched"] == b"patched before"
        assert wanted[b"grown"] == b"12345"
        assert {b"before/a", b"gone/x", b"left", b"half", b"whole", b"newcomer"} <= wanted.keys()
        assert (
            not {b"torn", b"empty", b"marker", b".onesync~temporary", b"runs/old"} & wanted.keys()
        )
