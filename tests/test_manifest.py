"""The manifest on the replica: whatever is torn, late or hidden, a reader finds the head."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import pytest

from onesync import manifest as manifests
from onesync.core.chain import Change, Head, Noted, Position, Set, base_name
from onesync.core.claims import EPOCHS, Beat, End, beat_name, encode_record, epoch_name
from onesync.core.model import STATUS_FOLDER, Entry, Kind, Problem, join
from onesync.errors import NotArrived, Suspended
from onesync.manifest import MANIFEST, Manifest, read_head
from onesync.replica.door import Copied, Listed, Replica
from onesync.replica.folder import FolderReplica
from onesync.stored_tree import stored_trees
from tests.apart import grown_kib
from tests.memory import MemoryReplica
from tests.node import Node
from tests.test_lock import FakeClock

T = TypeVar("T")


class Dies(Exception):
    """The node loses power."""


class Mortal(MemoryReplica):
    """Dies at the call that changes something and has this number, before or after it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.after = False
        self.hidden: tuple[bytes, ...] = ()

    def copy(self) -> Mortal:
        other = type(self)()
        other._tree = dict(self._tree)
        return other

    def write_new(self, path: bytes, content: bytes) -> None:
        self._step(lambda: MemoryReplica.write_new(self, path, content))

    def put(self, source: bytes, temporary: bytes, seconds: float | None = None) -> Copied:
        return self._step(lambda: MemoryReplica.put(self, source, temporary, seconds))

    def remove(self, path: bytes) -> bool:
        return self._step(lambda: MemoryReplica.remove(self, path))

    def list(self, path: bytes, known: Mapping[bytes, Kind] = MappingProxyType({})) -> list[Listed]:
        found = super().list(path)
        return [i for i in found if not join(path, i.name).startswith(self.hidden or (b"\0",))]

    def _step(self, call: Callable[[], T]) -> T:
        if self.left == 0 and not self.after:
            raise Dies
        answer = call()
        if self.left == 0:
            raise Dies
        self.left = None if self.left is None else self.left - 1
        return answer


@pytest.fixture
def replica() -> Mortal:
    made = Mortal()
    for path in (STATUS_FOLDER, MANIFEST, EPOCHS):
        made.make_directory(path)
    return made


def manifest_of(replica: Replica, epoch: int, head: Head | None = None) -> Manifest:
    return Manifest(replica, FakeClock(), "folder", head, epoch, "w", (b"/work",))


def change(number: int) -> Change:
    return Set(b"file-%d" % number, Entry(Kind.FILE, number, 1, 0o644, "cd" * 32))


def found(replica: Replica) -> Head:
    head = read_head(replica, "folder")
    assert head is not None
    return head


def tear(replica: Mortal, name: str, length: int) -> None:
    path = join(MANIFEST, name.encode())
    content = replica.read(path)[:length]
    replica.remove(path)
    replica.write_new(path, content)


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_torn_base_is_passed_over_and_mended_by_the_next_one(
    replica: Mortal, length: int
) -> None:
    manifest = manifest_of(replica, 1)
    manifest.write([change(1)], "base")
    manifest.write([change(2)], "incremental")
    whole = found(replica).tree
    torn = manifest.write([change(1), change(2)], "base")
    tear(replica, torn.name, length)
    head = found(replica)
    assert (head.tree, len(head.ignored)) == (whole, 1)
    mended = manifest_of(replica, 2, head)
    mended.write([Set(path, entry) for path, entry in head.tree.items()], "base")
    assert (found(replica).tree, found(replica).ignored) == (whole, [])


@pytest.mark.parametrize("small", [1 << 20, 1], ids=["in memory", "by the spool"])
@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_call_of_a_compaction(
    replica: Mortal, after: bool, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_SMALL", small)
    manifest = manifest_of(replica, 1)
    tree: list[Change] = []
    for number in range(12):
        tree.append(change(number))
        if number % 4 == 0:
            manifest.write(tree, "base")
        else:
            manifest.write([tree[-1]], "incremental")
    deaths = 0
    while True:
        dying = replica.copy()
        dying.left, dying.after = deaths, after
        compacted = manifest_of(dying, 2, found(dying))
        try:
            compacted.write(tree, "base")
            compacted.remove_old()
        except Dies:
            deaths += 1
        else:
            break
        dying.left = None
        assert {Set(p, e) for p, e in found(dying).tree.items()} == set(tree)
        assert found(dying).ignored == []
    assert deaths >= 5


@pytest.mark.parametrize("lost", [False, True])
def test_a_large_checkpoint_is_read_back(
    replica: Mortal, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_SMALL", 1)
    manifest = Manifest(replica, FakeClock(), "folder", None, 1, "w", (), spool=tmp_path)
    if lost:
        digest = replica.digest
        monkeypatch.setattr(replica, "digest", lambda path: (digest(path)[0], 1))
        with pytest.raises(NotArrived):
            manifest.write([change(1)], "base")
        assert manifest.head is None
        return
    manifest.write([change(1)], "base")
    with stored_trees(tmp_path) as make_tree:
        head = read_head(replica, "folder", tmp_path, make_tree)
        assert head is not None
        assert (head.name, head.digest) == manifest.head
        assert head.tree == found(replica).tree
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_reads_back_late_is_waited_for(
    replica: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, read, late = FakeClock(), replica.read, iter((b"", b""))
    manifest = Manifest(replica, clock, "folder", None, 1, "w", ())
    monkeypatch.setattr(replica, "read", lambda path: next(late, read(path)))
    before = clock.now
    manifest.write([change(1)], "base")
    assert 0 < clock.now - before < 1


def test_what_is_no_file_is_met_as_ever(replica: Mortal, tmp_path: Path) -> None:
    """A base is fetched, where others are read: what stands in its way must not change."""
    folder = tmp_path / "folder"
    (folder / os.fsdecode(MANIFEST)).mkdir(parents=True)
    door = FolderReplica(os.fsencode(folder))
    os.mkfifo(folder / os.fsdecode(MANIFEST) / base_name(Position(1, 1)))
    spool = tmp_path / "spool"
    spool.mkdir()
    assert read_head(door, "folder", spool) is read_head(door, "folder") is None


def _changes(number: int) -> Iterator[Change]:
    for one in range(number):
        entry = Entry(Kind.FILE, one, 1, 0o644, os.urandom(32).hex())
        yield Set(b"%05d/%07d" % (one // 100, one), entry)


def test_a_large_base_takes_no_memory(tmp_path: Path) -> None:
    door = FolderReplica(os.fsencode(tmp_path))
    (tmp_path / os.fsdecode(MANIFEST)).mkdir(parents=True)
    spool = tmp_path / "spool"
    spool.mkdir()

    def write() -> None:
        manifest = Manifest(door, FakeClock(), "folder", None, 1, "w", (), spool=spool)
        manifest.write(_changes(80_000), "base")

    def read() -> None:
        with stored_trees(spool) as make_tree:
            head = read_head(door, "folder", spool, make_tree)
            assert head is not None
            assert len(head.tree) == 80_000

    written = grown_kib(write)
    [file] = (tmp_path / os.fsdecode(MANIFEST)).iterdir()
    assert file.stat().st_size > 3_000_000
    assert written < 6_000
    assert grown_kib(read) < 14_000  # what SQLite keeps of it, for the most part


def test_a_listing_that_hides_the_newest_epochs(replica: Mortal) -> None:
    """The claims tell of epochs by their names, and successors are looked up by theirs."""
    head = None
    for epoch in (1, 2, 3):
        replica.make_directory(join(EPOCHS, epoch_name(epoch)))
        manifest = manifest_of(replica, epoch, head)
        manifest.write([change(epoch)], "base" if head is None else "incremental")
        manifest.write([change(epoch + 10)], "incremental")
        head = found(replica)
    assert head is not None
    replica.make_directory(join(EPOCHS, epoch_name(4)))  # ours, which its maker always sees
    replica.hidden = tuple(
        [join(MANIFEST, b"E%06d" % epoch) for epoch in (2, 3)]
        + [join(EPOCHS, epoch_name(epoch)) for epoch in (2, 3)]
    )
    assert (found(replica).position, found(replica).tree) == (head.position, head.tree)
    assert found(replica).ignored == []


@pytest.mark.parametrize("teller", ["beat", "end"])
def test_a_listing_that_hides_what_no_name_leads_to(replica: Mortal, teller: str) -> None:
    """Many positions were left out; but the owner's beat, or its end, names the checkpoint."""
    place = join(EPOCHS, epoch_name(1))
    replica.make_directory(place)
    manifest = manifest_of(replica, 1)
    manifest.write([change(1)], "base")
    for _ in range(9):
        manifest._skip()
    newest = manifest.write([change(2)], "incremental").name
    replica.hidden = (join(MANIFEST, newest.encode()),)
    name, record = (
        (beat_name(4), Beat("now", newest, "token", 8, 10))
        if teller == "beat"
        else (b"end.json", End("undeployed", "now", newest))
    )
    replica.write_new(join(place, name), encode_record(record))
    replica.make_directory(join(EPOCHS, epoch_name(2)))  # ours, which knows of nothing yet
    assert (found(replica).name, found(replica).ignored) == (newest, [])


def test_what_a_beat_told_of_and_is_gone_is_missed_loudly(replica: Mortal) -> None:
    place = join(EPOCHS, epoch_name(1))
    replica.make_directory(place)
    manifest_of(replica, 1).write([change(1)], "base")
    record = Beat("now", "E000001-000009.jsonl.gz", "token", 8, 10)
    replica.write_new(join(place, beat_name(4)), encode_record(record))
    assert found(replica).ignored == [
        "E000001-000009.jsonl.gz: its owner told of it, and it is not there"
    ]


class Late(MemoryReplica):
    """One write is answered with an error and arrives when it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[bytes, bytes]] | None = None

    def write_new(self, path: bytes, content: bytes) -> None:
        if self.held == []:
            self.held.append((path, content))
            raise OSError(110, "no answer")
        super().write_new(path, content)


def test_a_checkpoint_that_arrives_late_never_gets_anothers_name() -> None:
    replica = Late()
    for path in (STATUS_FOLDER, MANIFEST, EPOCHS):
        replica.make_directory(path)
    manifest = manifest_of(replica, 1)
    manifest.write([change(1)], "base")
    replica.held = []
    with pytest.raises(OSError, match="no answer"):
        manifest.write([change(1)], "base")
    [late] = replica.held
    replica.held = None
    assert manifest.unfinished() is None
    manifest.write([change(2)], "incremental")
    replica.write_new(*late)
    head = found(replica)
    assert set(head.tree) == {b"file-1", b"file-2"}
    assert len(head.ignored) == 1
    assert late[0].decode().endswith(base_name(head.position).replace("000003", "000002"))


class Buffered(MemoryReplica):
    """Flushes nothing while it gives no answer: a read shows what a death would lose."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = False
        self.unflushed: set[bytes] = set()

    def write_new(self, path: bytes, content: bytes) -> None:
        super().write_new(path, content)
        if self.silent:
            self.unflushed.add(path)
            raise OSError(errno.ETIMEDOUT, "no answer")

    def overwrite(self, path: bytes, content: bytes) -> None:
        super().overwrite(path, content)
        self.unflushed.discard(path)

    def die(self) -> None:
        for path in self.unflushed:
            self.remove(path)


def test_a_checkpoint_of_unknown_result_is_flushed_before_it_counts() -> None:
    replica = Buffered()
    for path in (STATUS_FOLDER, MANIFEST, EPOCHS):
        replica.make_directory(path)
    manifest = manifest_of(replica, 1)
    manifest.write([change(1)], "base")
    replica.silent = True
    with pytest.raises(OSError, match="no answer"):
        manifest.write([change(2)], "incremental")
    replica.silent = False
    assert manifest.unfinished() is not None
    replica.die()
    assert set(found(replica).tree) == {b"file-1", b"file-2"}


def test_a_checkpoint_counts_only_while_nobody_can_have_taken_over(replica: Mortal) -> None:
    """The owner slept between the call and its answer: as after an error it finds out."""
    asleep = True

    def may_write() -> None:
        if asleep:
            raise Suspended("asleep")

    manifest = Manifest(replica, FakeClock(), "folder", None, 1, "w", (), may_write)
    with pytest.raises(Suspended):
        manifest.write([change(1)], "base")
    assert manifest.head is None
    asleep = False
    unfinished = manifest.unfinished()
    assert unfinished is not None
    assert manifest.head == (unfinished[1].name, unfinished[1].digest)


def test_problems_of_the_manifest_do_no_harm_in_it(replica: Mortal) -> None:
    problem = Problem(MANIFEST, "manifest_damaged", "it was")
    manifest_of(replica, 1).write([change(1), Noted(problem)], "base")
    assert found(replica).problems == {MANIFEST: problem}


def test_a_broken_chain_is_mended_by_the_next_owner(nodes: list[Node]) -> None:
    """A fenced owner's late file is told of once; the base that mends it lies behind it."""
    node = nodes[0]
    node.deploy()
    (node.work / "first").write_bytes(b"1")
    assert node.flush() == 0
    folder = node.store / MANIFEST.decode()
    late = max(folder.iterdir())
    content = late.read_bytes()
    (node.work / "second").write_bytes(b"2")
    assert node.end() == 0, node.log()
    (folder / "E000001-000009.jsonl.gz").write_bytes(content)
    node.deploy()
    assert "manifest_damaged" in {problem["kind"] for problem in node.status()["problems"]}
    assert node.end() == 0, node.log()
    node.deploy()
    assert node.status()["problems"] == []
    assert (node.work / "second").read_bytes() == b"2"
    assert node.end() == 0, node.log()


@pytest.mark.parametrize("loses", ["a checkpoint that was committed", "one of a dead batch"])
def test_what_a_death_tore_is_no_problem_where_the_working_copy_has_it_all(
    nodes: list[Node], loses: str
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "first").write_bytes(b"1")
    assert one.flush() == 0
    (one.work / "second").write_bytes(b"2")
    assert one.flush() == 0
    one.end(signal.SIGKILL)
    folder = one.store / MANIFEST.decode()
    newest = max(folder.iterdir())
    torn = newest.read_bytes()[:-20]
    if loses == "one of a dead batch":
        newest = folder / "E000001-000009.jsonl.gz"
    newest.write_bytes(torn)
    one.deploy()
    assert "The manifest is damaged" in one.log()
    flushed = one.command("flush")
    assert flushed.returncode == 0, flushed.stderr + one.log()
    assert one.status()["problems"] == []
    assert one.end() == 0, one.log()
    two.deploy()
    assert two.status()["problems"] == []
    assert {p.name: p.read_bytes() for p in two.work.iterdir()} == {"first": b"1", "second": b"2"}
    assert two.end() == 0, two.log()
