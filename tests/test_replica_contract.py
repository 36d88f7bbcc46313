"""One contract for every replica: in memory, a folder, behind children, on a FUSE mount."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.beneath import open_beneath
from onesync.core.blocks import DIGEST_BYTES, OLD_ALGORITHM, BlockHasher, Blocks
from onesync.core.model import Kind
from onesync.errors import OnesyncError
from onesync.replica import moment, pour
from onesync.replica.children import ChildrenReplica
from onesync.replica.door import Compared, Copied, Listed, Replica
from onesync.replica.folder import FolderReplica
from onesync.replica.names import EscapedNames
from onesync.replica.pour import CHUNK
from tests.memory import MemoryReplica
from tests.standin.mounted import Mounted
from tests.workload.names import ODD_NAMES

ON_FUSE = [
    pytest.param("folder on fuse", marks=pytest.mark.fuse),
    pytest.param("children on fuse", marks=pytest.mark.fuse),
]


@pytest.fixture
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the replica's files are, as a folder of this machine."""
    if request.node.callspec.params["replica"].endswith("fuse"):
        mounted: Mounted = request.getfixturevalue("mounted")
        return mounted.backing / "project"
    root = tmp_path / "replica"
    root.mkdir()
    return root


@pytest.fixture(params=["memory", "folder", "escaped", "children", *ON_FUSE])
def replica(request: pytest.FixtureRequest, backing: Path) -> Iterator[Replica]:
    kind: str = request.param
    root = backing
    if kind.endswith("fuse"):
        root = request.getfixturevalue("mounted").path / "project"
    if kind == "memory":
        yield MemoryReplica()
    elif kind.startswith("folder"):
        folder = FolderReplica(os.fsencode(root))
        yield folder
        folder.forget()
    elif kind == "escaped":
        escaped = EscapedNames(FolderReplica(os.fsencode(root)))
        yield escaped
        escaped.forget()
    else:
        children = ChildrenReplica(os.fsencode(root), processes=2, threads=4, patience=20)
        yield children
        children.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"particles" * 1000)
    return path


def test_put_reports_digest_size_and_a_steady_source(replica: Replica, source: Path) -> None:
    copied = replica.put(os.fsencode(source), b"new")
    assert copied.digest == blake3(source.read_bytes()).hexdigest()
    assert (copied.size, copied.steady) == (9000, True)
    assert copied.before is not None
    assert copied.before.inode == source.stat().st_ino
    assert replica.look(b"new") == Listed(b"new", Kind.FILE, 9000)


def test_put_never_overwrites(replica: Replica, source: Path) -> None:
    replica.write_new(b"taken", b"precious")
    with pytest.raises(FileExistsError):
        replica.put(os.fsencode(source), b"taken")
    assert replica.read(b"taken") == b"precious"


def test_put_refuses_what_is_not_a_regular_file(replica: Replica, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InterruptedError):
        replica.put(os.fsencode(tmp_path / "pipe"), b"new")
    assert replica.look(b"new") is None


def test_put_does_not_read_through_a_link(replica: Replica, source: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(source)
    with pytest.raises(OSError, match="symbolic links"):
        replica.put(os.fsencode(tmp_path / "alias"), b"new")


def test_fetch_restores_content_mode_and_time(replica: Replica, tmp_path: Path) -> None:
    replica.write_new(b"kept", b"content")
    target = tmp_path / "restored"
    copied = replica.fetch(b"kept", os.fsencode(target), 0o640, 1_234_567_890_123_456_789)
    assert copied.digest == blake3(b"content").hexdigest()
    assert target.read_bytes() == b"content"
    assert target.stat().st_mode & 0o7777 == 0o640
    assert target.stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_fetch_never_overwrites_a_local_file(replica: Replica, tmp_path: Path) -> None:
    replica.write_new(b"kept", b"content")
    (tmp_path / "mine").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        replica.fetch(b"kept", os.fsencode(tmp_path / "mine"), 0o600, None)
    assert (tmp_path / "mine").read_bytes() == b"precious"


def test_rename_moves_a_directory_and_refuses_a_taken_name(replica: Replica) -> None:
    replica.make_directory(b"a")
    replica.write_new(b"a/file", b"1")
    replica.write_new(b"taken", b"2")
    with pytest.raises(FileExistsError):
        replica.rename(b"a", b"taken")
    replica.rename(b"a", b"b")
    assert replica.read(b"b/file") == b"1"
    replica.make_directory(b"a")
    replica.write_new(b"a/file", b"another")
    assert replica.read(b"b/file") == b"1"
    assert replica.read(b"a/file") == b"another"


def test_remove_takes_a_tree_and_nothing_is_success(replica: Replica) -> None:
    replica.make_directory(b"a")
    replica.make_directory(b"a/b")
    replica.write_new(b"a/b/file", b"1")
    replica.remove(b"a")
    replica.remove(b"a")
    assert replica.look(b"a") is None


def test_of_a_tree_only_what_is_ours_is_removed(replica: Replica) -> None:
    for directory in (b"d", b"d/ours", b"d/empty", b"d/theirs", b"d/ours/was a file"):
        replica.make_directory(directory)
    for path in (b"d/a", b"d/ours/b@c", b"d/ours/theirs", b"d/was a directory", b"d/theirs/x"):
        replica.write_new(path, b"content")
    ours = {
        b"": [b"a", b"gone"],
        b"ours": [b"b@c", b"was a file"],
        b"empty": [],
        b"was a directory": [],
    }
    left = replica.remove_ours(b"d", ours)
    assert sorted(left) == [b"ours/theirs", b"ours/was a file", b"theirs", b"was a directory"]
    assert replica.names(b"d") == {b"ours", b"theirs", b"was a directory"}
    assert replica.names(b"d/ours") == {b"theirs", b"was a file"}
    assert replica.read(b"d/theirs/x") == b"content"
    assert replica.remove_ours(b"d/theirs", {b"": [b"x"]}) == []
    assert replica.look(b"d/theirs") is None
    assert replica.remove_ours(b"d/theirs", {b"": []}) == []
    assert replica.remove_ours(b"d/ours", {}) == [b""], "that was to be a file"
    assert replica.remove_ours(b"d/ours/theirs", {}) == []
    assert replica.names(b"d/ours") == {b"was a file"}


def test_unlink_takes_a_file_and_leaves_a_directory(replica: Replica) -> None:
    replica.make_directory(b"a")
    replica.write_new(b"a/file", b"1")
    assert replica.unlink(b"a/file") is Kind.FILE
    assert replica.look(b"a/file") is None
    replica.write_new(b"a/file", b"2")
    assert replica.unlink(b"a") is Kind.DIRECTORY
    for path in (b"a/nothing", b"a/file/beneath", b"nothing/at all"):
        assert replica.unlink(path) is None
    assert replica.read(b"a/file") == b"2"


def test_listing_gives_kinds_and_sizes(replica: Replica) -> None:
    replica.make_directory(b"d")
    replica.write_new(b"\xff odd\nname", b"123")
    assert sorted(replica.list(b""), key=lambda item: item.name) == [
        Listed(b"d", Kind.DIRECTORY, 0),
        Listed(b"\xff odd\nname", Kind.FILE, 3),
    ]


def test_names_that_are_taken_for_files_are_listed_all_the_same(replica: Replica) -> None:
    replica.make_directory(b"d")
    for name in (b"known", b"other", b"\xff odd\nname"):
        replica.write_new(name, b"123")
    told = replica.list(b"", dict.fromkeys([b"known", b"\xff odd\nname", b"gone"], Kind.FILE))
    assert {item.name: item.kind for item in told} == {
        b"d": Kind.DIRECTORY,
        b"known": Kind.FILE,
        b"other": Kind.FILE,
        b"\xff odd\nname": Kind.FILE,
    }
    assert {item.size for item in told if item.name == b"other"} == {3}


@pytest.mark.parametrize("size", [0, 1, 4096, 65_536, 65_537, 1 << 20, (1 << 20) + 1])
def test_a_file_of_any_size_is_fetched_whole(replica: Replica, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    replica.write_new(b"file", content)
    copied = replica.fetch(b"file", os.fsencode(tmp_path / "here"), 0o640, None)
    assert (tmp_path / "here").read_bytes() == content
    assert (copied.digest, copied.size) == (blake3(content).hexdigest(), size)


def test_any_name_is_kept_and_told_as_it_is(replica: Replica, source: Path) -> None:
    for name in ODD_NAMES:
        replica.make_directory(name)
        replica.put(os.fsencode(source), name + b"/" + name)
    assert sorted(item.name for item in replica.list(b"")) == sorted(ODD_NAMES)
    assert replica.names(b"") == set(ODD_NAMES)
    for name in ODD_NAMES:
        assert replica.list(name) == [Listed(name, Kind.FILE, 9000)]
        assert replica.look(name) == Listed(name, Kind.DIRECTORY, 0)
        replica.rename(name + b"/" + name, b"away")
        replica.rename(b"away", name + b"/" + name, is_file=True)
        with pytest.raises(FileExistsError):
            replica.write_new(name + b"/" + name, b"")
        assert replica.digest(name + b"/" + name)[1] == 9000
        replica.remove(name)
        assert replica.look(name) is None
    assert replica.list(b"") == []


def test_overwrite_keeps_the_name_and_needs_one(replica: Replica) -> None:
    with pytest.raises(FileNotFoundError):
        replica.overwrite(b"lock", b"x")
    replica.write_new(b"lock", b"one")
    with pytest.raises(FileExistsError):
        replica.write_new(b"lock", b"two")
    replica.overwrite(b"lock", b"two")
    assert replica.read(b"lock") == b"two"


@pytest.mark.parametrize("path", [b"../escape", b"/etc/escape", b"door/escape"])
def test_no_call_leaves_the_root(replica: Replica, backing: Path, path: bytes) -> None:
    (backing / "door").symlink_to(backing.parent)
    with pytest.raises(OSError, match=r"link|device|leaves|directory"):
        replica.write_new(path, b"")
    assert not (backing.parent / "escape").exists()


def test_identity_tells_what_it_stands_on(replica: Replica, request: pytest.FixtureRequest) -> None:
    identity = replica.identify()
    assert identity.is_fuse == request.node.callspec.params["replica"].endswith("fuse")
    assert not identity.is_mount_root


def test_a_listing_leaves_out_what_is_neither_file_nor_directory(
    replica: Replica, backing: Path
) -> None:
    replica.write_new(b"file", b"1")
    os.mkfifo(backing / "pipe")
    assert [item.name for item in replica.list(b"")] == [b"file"]


def test_a_listing_tells_a_link_as_one(replica: Replica, backing: Path) -> None:
    if isinstance(replica, MemoryReplica):
        pytest.skip("holds no links")
    (backing / "link").symlink_to("/etc")
    assert replica.list(b"") == [Listed(b"link", Kind.LINK, 0)]
    assert replica.look(b"link") == Listed(b"link", Kind.LINK, 0)


def test_a_look_at_a_directory(replica: Replica) -> None:
    replica.make_directory(b"d")
    assert replica.look(b"d") == Listed(b"d", Kind.DIRECTORY, 0)
    assert replica.look(b"") == Listed(b"", Kind.DIRECTORY, 0)


def test_rename_into_another_directory(replica: Replica) -> None:
    replica.make_directory(b"a")
    replica.make_directory(b"b")
    replica.write_new(b"a/file", b"1")
    replica.rename(b"a/file", b"b/other")
    assert replica.look(b"a/file") is None
    assert replica.read(b"b/other") == b"1"


def test_an_error_without_a_class_of_its_own_carries_its_number(replica: Replica) -> None:
    if isinstance(replica, MemoryReplica):
        pytest.skip("knows no longest name")
    with pytest.raises(OSError, match="too long") as caught:
        replica.write_new(b"x" * 300, b"")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_errors_say_which(replica: Replica) -> None:
    with pytest.raises(FileNotFoundError):
        replica.read(b"missing")
    with pytest.raises(FileNotFoundError):
        replica.list(b"missing")
    with pytest.raises(FileNotFoundError):
        replica.rename(b"missing", b"anywhere")
    replica.write_new(b"file", b"1")
    with pytest.raises(NotADirectoryError) as caught:
        replica.make_directory(b"file/inner")
    assert caught.value.errno == errno.ENOTDIR
    assert replica.look(b"file/inner") is None
    assert replica.look(b"missing/inner") is None


def test_digest_reads_it_all(replica: Replica) -> None:
    content = os.urandom(3_000_000)
    replica.write_new(b"stack", content)
    assert replica.digest(b"stack") == (blake3(content).hexdigest(), len(content))


def test_put_reads_a_file_that_lost_its_name_from_its_descriptor(
    replica: Replica, source: Path
) -> None:
    fd = os.open(source, os.O_RDONLY)
    source.unlink()
    if isinstance(replica, MemoryReplica):
        os.close(fd)
        pytest.skip("opens no descriptor of another process")
    copied = replica.put(b"/proc/%d/fd/%d" % (os.getpid(), fd), b"new")
    os.close(fd)
    assert (copied.size, copied.steady) == (9000, True)


def test_append_writes_only_the_tail(replica: Replica, source: Path) -> None:
    replica.write_new(b"stack", source.read_bytes())
    digest, length = replica.digest(b"stack")
    with source.open("ab") as file:
        file.write(b"more")
    copied = replica.append(os.fsencode(source), b"stack", length, digest)
    assert copied is not None
    assert (copied.size, copied.steady) == (9004, True)
    assert replica.digest(b"stack") == (copied.digest, 9004)
    replica.truncate(b"stack", length)
    assert replica.digest(b"stack") == (digest, length)


def test_append_refuses_another_beginning_and_another_length(
    replica: Replica, source: Path
) -> None:
    replica.write_new(b"stack", source.read_bytes())
    digest, length = replica.digest(b"stack")
    place = os.fsencode(source)
    assert replica.append(place, b"stack", length, blake3(b"other").hexdigest()) is None
    replica.truncate(b"stack", length - 1)
    assert replica.append(place, b"stack", length, digest) is None
    assert replica.digest(b"stack")[1] == length - 1


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack"
    path.write_bytes(os.urandom(2_499_999) + b"\0")
    return path


def changed_inside(path: Path, replica: Replica) -> tuple[Copied, Compared]:
    """Put ``path`` as ``stack``, change it in two places and let it grow."""
    old = replica.put(os.fsencode(path), b"stack")
    assert old.blocks is not None
    change_inside(path)
    return old, replica.compare(os.fsencode(path), old.size, old.blocks)


def change_inside(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(70_000)
        file.write(b"changed")
        file.seek(2_499_999)
        file.write(b"and more" * 10_000)


def patched_numbers(old: Copied, compared: Compared) -> tuple[int, ...]:
    assert old.blocks is not None
    assert compared.copied.blocks is not None
    last = old.size // old.blocks.size
    count = len(compared.copied.blocks.digests) // DIGEST_BYTES
    return (*sorted({*compared.changed, last}), *range(last + 1, count))


def test_a_patch_writes_only_the_blocks_that_changed(replica: Replica, stack: Path) -> None:
    old, compared = changed_inside(stack, replica)
    assert old.blocks is not None
    assert compared.copied.blocks is not None
    assert compared.changed == (70_000 // old.blocks.size, 2_499_999 // old.blocks.size)
    numbers = patched_numbers(old, compared)
    assert replica.write_undo(b"stack", b"undo", old.size, old.blocks, compared.changed)
    end = compared.copied.size
    assert replica.patch(os.fsencode(stack), b"stack", compared.copied.blocks, numbers, end)
    assert replica.digest(b"stack") == (compared.copied.digest, end)
    assert replica.undo(b"stack", b"undo", old.size)
    assert replica.digest(b"stack") == (old.digest, old.size)


def test_an_undo_refuses_a_file_that_is_not_what_was_known(replica: Replica, stack: Path) -> None:
    old, compared = changed_inside(stack, replica)
    assert old.blocks is not None
    replica.overwrite(b"stack", b"x" * 70_100)
    assert not replica.write_undo(b"stack", b"undo", old.size, old.blocks, compared.changed)
    assert replica.look(b"undo") is None


def test_a_patch_refuses_a_source_that_changed_again(replica: Replica, stack: Path) -> None:
    old, compared = changed_inside(stack, replica)
    blocks = compared.copied.blocks
    assert old.blocks is not None
    assert blocks is not None
    assert replica.write_undo(b"stack", b"undo", old.size, old.blocks, compared.changed)
    with stack.open("r+b") as file:
        file.seek(2_499_000)
        file.write(b"again")
    numbers = patched_numbers(old, compared)
    assert not replica.patch(os.fsencode(stack), b"stack", blocks, numbers, compared.copied.size)
    assert replica.undo(b"stack", b"undo", old.size)
    assert replica.digest(b"stack") == (old.digest, old.size)


@pytest.mark.parametrize("kept", [0, 5, 19, 20, 20_000, -1])
def test_a_torn_undo_is_no_undo(tmp_path: Path, stack: Path, kept: int) -> None:
    replica = FolderReplica(os.fsencode(tmp_path / "replica"))
    (tmp_path / "replica").mkdir()
    old, compared = changed_inside(stack, replica)
    assert old.blocks is not None
    assert replica.write_undo(b"stack", b"undo", old.size, old.blocks, compared.changed)
    undo = tmp_path / "replica" / "undo"
    undo.write_bytes(undo.read_bytes()[:kept])
    assert not replica.undo(b"stack", b"undo", old.size)
    assert replica.digest(b"stack") == (old.digest, old.size)


def test_a_last_block_that_only_grew_has_not_changed(replica: Replica, stack: Path) -> None:
    old = replica.put(os.fsencode(stack), b"stack")
    assert old.blocks is not None
    with stack.open("ab") as file:
        file.write(b"more" * 30_000)
    assert replica.compare(os.fsencode(stack), old.size, old.blocks).changed == ()


def test_a_copy_whose_time_is_up_goes_on_later(tmp_path: Path, stack: Path) -> None:
    (tmp_path / "replica").mkdir()
    replica = FolderReplica(os.fsencode(tmp_path / "replica"))
    content = stack.read_bytes()
    first = replica.put(os.fsencode(stack), b"stack", seconds=0)
    assert (first.size, first.steady, first.prefix) == (CHUNK, True, True)
    assert first.digest == blake3(content[:CHUNK]).hexdigest()
    second = replica.append(os.fsencode(stack), b"stack", first.size, first.digest, seconds=0)
    assert second is not None
    assert second.size == 2 * CHUNK
    last = replica.append(os.fsencode(stack), b"stack", second.size, second.digest)
    assert last is not None
    assert (last.digest, last.size) == (blake3(content).hexdigest(), len(content))
    assert last.blocks == replica.put(os.fsencode(stack), b"again").blocks
    assert replica.digest(b"stack") == (last.digest, last.size)


@pytest.fixture(params=["folder", "children"])
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replica]:
    """Those that keep what they have read when their time is up."""
    root = tmp_path / "replica"
    root.mkdir()
    if request.param == "folder":
        yield FolderReplica(os.fsencode(root))
        return
    children = ChildrenReplica(os.fsencode(root), processes=4, threads=1, patience=20)
    for _ in range(4):
        children.look(b"anything")
    yield children
    children.close()


def test_a_comparison_whose_time_is_up_goes_on_later(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old, whole = changed_inside(stack, replica)
    assert old.blocks is not None
    assert whole.changed
    parts = [replica.compare(source, old.size, old.blocks, seconds=0) for _ in range(2)]
    assert [part.copied.size for part in parts] == [CHUNK, 2 * CHUNK]
    assert [part.changed for part in parts] == [(), ()]
    assert all(part.copied.steady for part in parts)
    assert replica.compare(source, old.size, old.blocks, seconds=0) == whole


def test_a_comparison_of_what_changed_meanwhile_begins_anew(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old, _ = changed_inside(stack, replica)
    assert old.blocks is not None
    replica.compare(source, old.size, old.blocks, seconds=0)
    with stack.open("r+b") as file:
        file.write(b"again")
    part = replica.compare(source, old.size, old.blocks, seconds=0).copied
    assert (part.size, part.steady) == (CHUNK, False)
    rest = replica.compare(source, old.size, old.blocks)
    assert rest.copied.digest == blake3(stack.read_bytes()).hexdigest()
    assert rest.copied.steady
    assert 0 in rest.changed


def test_an_append_may_read_its_beginning_in_rounds(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old = replica.put(source, b"stack")
    with stack.open("ab") as file:
        file.write(b"more" * 1000)
    parts = [replica.append(source, b"stack", old.size, old.digest, seconds=0) for _ in range(3)]
    sizes = [part.size for part in parts if part is not None]
    assert sizes == [CHUNK, 2 * CHUNK, old.size + 4000]
    whole = (blake3(stack.read_bytes()).hexdigest(), sizes[-1])
    assert replica.digest(b"stack") == whole


def test_what_is_appended_of_a_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    place = tmp_path / "replica"
    place.mkdir()
    replica = FolderReplica(os.fsencode(place))
    source = tmp_path / "stack"
    with source.open("wb") as file:
        file.write(b"x" * CHUNK)
        file.truncate(40 * CHUNK)
        file.seek(60 * CHUNK)
        file.write(b"y" * 1000)
        file.truncate(80 * CHUNK)
    part: Copied | None = replica.put(os.fsencode(source), b"stack", 0)
    while part is not None and part.size < 80 * CHUNK:
        part = replica.append(os.fsencode(source), b"stack", part.size, part.digest, 0.001)
    assert part is not None
    assert (place / "stack").read_bytes() == source.read_bytes()
    assert (place / "stack").stat().st_blocks * 512 < 4 * CHUNK


def grow(path: Path, content: bytes = b"more" * 1000) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_a_file_that_always_grows_is_compared_to_its_end(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old, _ = changed_inside(stack, replica)
    assert old.blocks is not None
    part = replica.compare(source, old.size, old.blocks, seconds=0)
    for _ in range(2):
        grow(stack)
        part = replica.compare(source, old.size, old.blocks, seconds=0)
    assert (part.copied.steady, part.copied.prefix) == (False, True)
    assert part.changed == (70_000 // old.blocks.size, 2_499_999 // old.blocks.size)
    assert part.copied.digest == blake3(stack.read_bytes()[: part.copied.size]).hexdigest()


def test_what_grew_and_changed_is_compared_as_it_is_now(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old, _ = changed_inside(stack, replica)
    assert old.blocks is not None
    replica.compare(source, old.size, old.blocks, seconds=0)
    grow(stack)
    rewrite(stack)
    whole = replica.compare(source, old.size, old.blocks)
    assert (whole.copied.steady, whole.copied.prefix) == (False, True)
    assert whole.copied.digest == blake3(stack.read_bytes()[: whole.copied.size]).hexdigest()
    assert whole.changed[0] == 0
    rewrite(stack, b"z")
    numbers, blocks = patched_numbers(old, whole), whole.copied.blocks
    assert blocks is not None
    assert replica.patch(source, b"stack", blocks, numbers, whole.copied.size, whole.kept)
    assert replica.digest(b"stack") == (whole.copied.digest, whole.copied.size)


class Scribbler:
    """Writes into a file while it is read, and remembers all that it ever was."""

    def __init__(self, path: Path, seed: int, *, places: list[int]) -> None:
        self.path, self.places = path, places
        self.chance = random.Random(seed)
        self.written = 0
        self.states = [path.read_bytes()]

    def write(self, _: int = 0) -> None:
        content = bytearray(self.states[-1])
        for _ in range(self.chance.randrange(3)):
            self.written += 1
            place = self.chance.choice(self.places)
            content[place : place + 8] = b"%8d" % self.written
            with self.path.open("r+b") as file:
                file.seek(place)
                file.write(content[place : place + 8])
            self.states.append(bytes(content))

    def was(self, copied: Copied) -> bool:
        """Whether the file was, or began with, what was copied."""
        return copied.digest in {blake3(s[: copied.size]).hexdigest() for s in self.states}


@pytest.fixture
def small_stack(tmp_path: Path) -> Path:
    path = tmp_path / "small_stack"
    path.write_bytes(os.urandom(1_200_000))
    return path


@pytest.fixture
def _reads_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file be read in many pieces, between which somebody may write."""
    monkeypatch.setattr(moment, "_CHUNK", 64 << 10)
    monkeypatch.setattr(pour, "CHUNK", 64 << 10)


@pytest.mark.usefixtures("_reads_slowly")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("places", [[0], [0, 8], [0, 1_000_000], [7, 500_000, 1_190_000]])
def test_a_file_that_is_written_in_a_few_places_is_copied_as_it_was_once(
    tmp_path: Path, small_stack: Path, seed: int, places: list[int]
) -> None:
    scribbler = Scribbler(small_stack, seed, places=places)
    replica = FolderReplica(os.fsencode(tmp_path), scribbler.write, scribbler.write)
    copied = replica.put(os.fsencode(small_stack), b"new", seconds=100)
    assert copied.prefix
    assert scribbler.written > 10
    assert copied.size == len(scribbler.states[0])
    assert scribbler.was(copied)
    assert replica.digest(b"new") == (copied.digest, copied.size)


@pytest.mark.usefixtures("_reads_slowly")
@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_is_written_everywhere_is_copied_as_far_as_it_is_certain(
    tmp_path: Path, small_stack: Path, seed: int
) -> None:
    scribbler = Scribbler(small_stack, seed, places=list(range(300_000, 1_190_000, 5_000)))
    replica = FolderReplica(os.fsencode(tmp_path), scribbler.write, scribbler.write)
    copied = replica.put(os.fsencode(small_stack), b"new", seconds=100)
    assert copied.prefix
    assert 280_000 < copied.size < len(scribbler.states[0])
    assert scribbler.was(copied)
    assert replica.digest(b"new") == (copied.digest, copied.size)
    assert not replica.put(os.fsencode(small_stack), b"whole").prefix, "all of it was asked for"
    none = Blocks(16 << 10, b"")
    assert not replica.compare(os.fsencode(small_stack), 0, none).copied.prefix


@pytest.mark.usefixtures("_reads_slowly")
@pytest.mark.parametrize("when", [10, 25])
def test_a_file_that_is_cut_off_while_it_is_copied_is_no_whole_one(
    tmp_path: Path, small_stack: Path, when: int
) -> None:
    calls = [0]

    def shorten(_: int) -> None:
        calls[0] += 1
        if calls[0] == 5:
            rewrite(small_stack)
        if calls[0] == when:
            os.truncate(small_stack, 500_000)

    replica = FolderReplica(os.fsencode(tmp_path), shorten, shorten)
    assert not replica.put(os.fsencode(small_stack), b"new").prefix
    assert calls[0] > when


def test_a_file_that_always_grows_is_appended_to_in_rounds(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    copied: Copied | None = replica.put(source, b"stack")
    assert copied is not None
    size = copied.size
    for _ in range(8):
        grow(stack)
        part = replica.append(source, b"stack", copied.size, copied.digest, seconds=0)
        assert part is not None
        copied = part if part.size > copied.size else copied
    assert copied.size > size
    assert copied.prefix
    assert copied.digest == blake3(stack.read_bytes()[: copied.size]).hexdigest()
    assert replica.digest(b"stack") == (copied.digest, copied.size)


def test_comparisons_with_blocks_of_two_sizes_share_nothing(on_disk: Replica, stack: Path) -> None:
    """Two names of one file may have been sent at two times."""
    replica, source = on_disk, os.fsencode(stack)
    hasher = BlockHasher(1 << 20)
    hasher.update(stack.read_bytes())
    old, whole = changed_inside(stack, replica)
    assert old.blocks is not None
    replica.compare(source, old.size, hasher.blocks(), seconds=0)
    assert replica.compare(source, old.size, old.blocks) == whole


def digested_as_before(path: Path, size: int) -> Blocks:
    """Return blocks as earlier versions digested them, made without our own code."""
    content = path.read_bytes()
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    digests = b"".join(blake3(block).digest(length=DIGEST_BYTES) for block in blocks)
    return Blocks(size, digests, OLD_ALGORITHM)


def test_what_an_earlier_version_digested_is_patched_and_remembered_anew(
    replica: Replica, stack: Path
) -> None:
    source, before = os.fsencode(stack), stack.read_bytes()
    first = replica.put(source, b"stack")
    assert first.blocks is not None
    known = digested_as_before(stack, first.blocks.size)
    change_inside(stack)
    compared = replica.compare(source, first.size, known)
    copied = compared.copied
    assert compared.changed == (70_000 // known.size, 2_499_999 // known.size)
    assert copied.blocks == digested_as_before(stack, known.size)
    assert compared.renewed == replica.put(source, b"whole").blocks
    numbers = patched_numbers(first, compared)
    assert replica.write_undo(b"stack", b"undo", first.size, known, compared.changed)
    assert replica.patch(source, b"stack", copied.blocks, numbers, copied.size)
    assert replica.digest(b"stack") == (copied.digest, copied.size)
    assert replica.undo(b"stack", b"undo", first.size)
    assert replica.digest(b"stack") == (blake3(before).hexdigest(), len(before))


def test_what_was_changed_outside_is_told_by_old_digests_too(replica: Replica, stack: Path) -> None:
    first = replica.put(os.fsencode(stack), b"stack")
    assert first.blocks is not None
    known = digested_as_before(stack, first.blocks.size)
    with stack.open("r+b") as file:
        file.write(b"other")
    replica.put(os.fsencode(stack), b"other")
    assert replica.write_undo(b"stack", b"undo", first.size, known, (0, 1))
    assert not replica.write_undo(b"other", b"undo-2", first.size, known, (0, 1))


def test_comparisons_with_old_and_new_digests_share_nothing(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    old, whole = changed_inside(stack, replica)
    assert old.blocks is not None
    known = digested_as_before(stack, old.blocks.size)
    part = replica.compare(source, old.size, known, seconds=0).copied
    assert 0 < part.size < whole.copied.size
    assert replica.compare(source, old.size, old.blocks) == whole


def test_what_always_grows_is_compared_with_old_digests(on_disk: Replica, stack: Path) -> None:
    replica, source = on_disk, os.fsencode(stack)
    first = replica.put(source, b"stack")
    assert first.blocks is not None
    known = digested_as_before(stack, first.blocks.size)
    part = replica.compare(source, first.size, known, seconds=0)
    for _ in range(2):
        grow(stack)
        part = replica.compare(source, first.size, known, seconds=0)
    assert (part.copied.steady, part.copied.prefix, part.changed) == (False, True, ())
    content = stack.read_bytes()[: part.copied.size]
    assert part.copied.digest == blake3(content).hexdigest()
    assert part.copied.size > first.size
    hasher = BlockHasher(known.size)
    hasher.update(content)
    assert part.renewed == hasher.blocks()


def test_holes_stay_holes_in_both_directions(tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(5_000_000)
        file.seek(2_000_000)
        file.write(b"island")
    replica = FolderReplica(os.fsencode(tmp_path / "replica"))
    put = replica.put(os.fsencode(sparse), b"sparse")
    back = tmp_path / "back"
    replica.fetch(b"sparse", os.fsencode(back), 0o644, None)
    assert back.read_bytes() == sparse.read_bytes()
    assert put.digest == blake3(sparse.read_bytes()).hexdigest()
    for copy in (tmp_path / "replica" / "sparse", back):
        assert copy.stat().st_blocks * 512 < 200_000


def test_a_file_that_grows_is_a_prefix(replica: Replica, tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * 1000)
    growing = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not growing.is_set():
                file.write(b"y" * 10)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        seen = put_until_it_grew_meanwhile(replica, path)
    finally:
        growing.set()
        thread.join()
    content = path.read_bytes()
    for number, copied in enumerate(seen):
        assert copied.prefix
        assert replica.digest(b"%d" % number) == (copied.digest, copied.size)
        assert blake3(content[: copied.size]).hexdigest() == copied.digest


def put_until_it_grew_meanwhile(replica: Replica, path: Path) -> list[Copied]:
    seen = [replica.put(os.fsencode(path), b"0")]
    deadline = time.monotonic() + 60
    while seen[-1].steady:
        assert time.monotonic() < deadline, f"{len(seen)} copies, all of them steady"
        seen.append(replica.put(os.fsencode(path), b"%d" % len(seen)))
    return seen


def test_a_file_rewritten_while_it_is_copied_is_not_steady(tmp_path: Path) -> None:
    path = tmp_path / "rewritten"
    path.write_bytes(b"x" * 3_000_000)
    replica = FolderReplica(os.fsencode(tmp_path), lambda _: rewrite(path))
    copied = replica.put(os.fsencode(path), b"new")
    assert (copied.steady, copied.prefix) == (False, True)
    assert replica.digest(b"new") == replica.digest(b"rewritten") == (copied.digest, copied.size)


def rewrite(path: Path, content: bytes = b"y") -> None:
    with path.open("r+b") as file:
        file.write(content)


def test_what_appears_while_a_tree_is_removed_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    remove_directory = os.rmdir
    appeared: list[bytes] = []

    def late(name: bytes, *, dir_fd: int) -> None:
        if not appeared:
            appeared.append(name)
            (tmp_path / "tree" / "hidden").write_bytes(b"")
        remove_directory(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late)
    FolderReplica(os.fsencode(tmp_path)).remove(b"tree")
    assert appeared == [b"tree"]
    assert os.listdir(tmp_path) == []


def test_a_tree_of_any_depth_is_removed_with_few_descriptors(tmp_path: Path) -> None:
    current = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=current)
        inner = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert FolderReplica(os.fsencode(tmp_path)).remove(b"d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        left = os.listdir(tmp_path)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest could not
    assert left == []


def test_what_two_remove_at_once_is_gone_for_both(replica: Replica) -> None:
    replica.make_directory(b"tree")
    for number in range(100):
        replica.write_new(b"tree/%d" % number, b"1")

    def remove(_: int) -> bool:
        replica.remove(b"tree")
        return replica.look(b"tree") is None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(remove, range(8)))


def test_a_tree_that_is_gone_before_it_is_read_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()

    def too_late(opened: int) -> list[str]:
        monkeypatch.undo()
        (tmp_path / "tree").rmdir()
        # What a mount of FUSE says of a descriptor whose directory somebody else removed.
        raise OSError(errno.ESTALE, "Stale file handle", opened)

    monkeypatch.setattr("onesync.replica.folder.os.listdir", too_late)
    assert FolderReplica(os.fsencode(tmp_path)).remove(b"tree")
    assert os.listdir(tmp_path) == []


def test_a_directory_opened_before_a_rename_is_not_held_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = FolderReplica(os.fsencode(tmp_path))
    replica.make_directory(b"a")

    def slowly(root: int, path: bytes, flags: int) -> int:
        fd = open_beneath(root, path, flags)
        if path == b"a":
            monkeypatch.undo()
            # Meanwhile, in another thread of the same replica.
            replica.rename(b"a", b"b")
            replica.make_directory(b"a")
        return fd

    monkeypatch.setattr("onesync.replica.folder.open_beneath", slowly)
    assert replica.look(b"a/late") is None
    replica.write_new(b"a/file", b"1")
    assert (tmp_path / "a" / "file").exists()


def test_many_threads_get_what_they_put(replica: Replica, tmp_path: Path) -> None:
    for number in range(5):
        replica.make_directory(b"%d" % number)

    def put(number: int) -> bool:
        source = tmp_path / f"source{number}"
        source.write_bytes(b"%d" % number * 1000)
        place = b"%d/%d" % (number % 5, number)
        replica.put(os.fsencode(source), place + b".new")
        replica.rename(place + b".new", place)
        return replica.read(place) == b"%d" % number * 1000

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(put, range(200)))


def test_a_killed_child_fails_its_call_and_the_next_one_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    replica = ChildrenReplica(os.fsencode(tmp_path), processes=1, threads=2, patience=20)
    try:
        assert replica.read(b"file") == b"1"
        os.kill(replica._children[0]._process.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(replica.read, b"file")
            while not replica._children[0].busy():
                threading.Event().wait(0.01)
            os.kill(replica._children[0]._process.pid, signal.SIGKILL)
            with pytest.raises(OnesyncError, match="ended"):
                call.result(20)
        assert replica.read(b"file") == b"1"
    finally:
        replica.close()


@pytest.mark.parametrize("act", ["unlink", "chmod", "link"])
def test_a_source_that_is_only_touched_from_outside_is_steady(
    tmp_path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = tmp_path / "replica", tmp_path / "source"
    store.mkdir()
    source.write_bytes(b"content")
    replica = FolderReplica(os.fsencode(store))
    acts: dict[str, Callable[[], object]] = {
        "unlink": source.unlink,
        "chmod": lambda: source.chmod(0o600),
        "link": lambda: os.link(source, tmp_path / "other"),
    }
    fsync = os.fsync

    def meanwhile(fd: int) -> None:
        fsync(fd)
        acts[act]()

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert replica.put(os.fsencode(source), b"copy").steady


def test_a_source_that_is_written_meanwhile_is_not_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = tmp_path / "replica", tmp_path / "source"
    store.mkdir()
    source.write_bytes(b"content")
    replica = FolderReplica(os.fsencode(store))
    fsync = os.fsync

    def meanwhile(fd: int) -> None:
        fsync(fd)
        source.write_bytes(b"CONTENT")

    monkeypatch.setattr(os, "fsync", meanwhile)
    copied = replica.put(os.fsencode(source), b"copy")
    assert not copied.steady
    assert not copied.prefix


def test_a_rename_where_the_file_system_knows_no_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("onesync.replica.folder.rename_new", refused)
    replica = FolderReplica(os.fsencode(tmp_path))
    replica.write_new(b"a", b"1")
    replica.rename(b"a", b"b")
    replica.write_new(b"a", b"2")
    with pytest.raises(FileExistsError):
        replica.rename(b"a", b"b")
    assert (replica.read(b"a"), replica.read(b"b")) == (b"2", b"1")


def test_a_directory_that_somebody_made_again_is_opened_anew(tmp_path: Path) -> None:
    store, source = tmp_path / "replica", tmp_path / "source"
    (store / "d").mkdir(parents=True)
    source.write_bytes(b"content")
    replica = FolderReplica(os.fsencode(store))
    acts: list[Callable[[], object]] = [
        lambda: replica.put(os.fsencode(source), b"d/put"),
        lambda: replica.make_directory(b"d/made"),
        lambda: replica.look(b"d/there") or pytest.fail("not seen"),
        lambda: replica.rename(b"d/there", b"d/renamed"),
    ]
    for act in acts:
        assert replica.look(b"d/nothing") is None  # the directory is held from here on
        (store / "d").rename(store / "old")
        shutil.rmtree(store / "old")
        (store / "d").mkdir()
        (store / "d/there").touch()
        act()


def test_a_directory_is_opened_from_the_nearest_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []

    def noted(root: int, path: bytes, flags: int) -> int:
        opened.append(path)
        return open_beneath(root, path, flags)

    monkeypatch.setattr("onesync.replica.folder.open_beneath", noted)
    (tmp_path / "a/b/c").mkdir(parents=True)
    replica = FolderReplica(os.fsencode(tmp_path))
    replica.look(b"a/b/there")
    replica.look(b"a/b/c/there")
    assert opened == [b"a", b"b", b"c"]
    opened.clear()
    replica.walk_anew()
    replica.look(b"a/there")
    replica.look(b"a/b/c/there")
    assert opened == [b"a", b"b", b"c"], "the root is held on"


def test_what_is_looked_at_together_is_what_each_look_tells(replica: Replica, source: Path) -> None:
    replica.make_directory(b"d")
    replica.put(os.fsencode(source), b"d/file")
    paths = [b"d/file", b"d", b"d/nothing", b"nowhere/x", b"d/file/x"]
    file, folder = Listed(b"file", Kind.FILE, 9000), Listed(b"d", Kind.DIRECTORY, 0)
    assert list(replica.look_at(paths)) == [file, folder, None, None, None]


def test_unlinking_tells_whether_anything_was_there(replica: Replica) -> None:
    replica.write_new(b"file", b"")
    found = [replica.unlink(path) for path in (b"file", b"file", b"no/file")]
    assert found == [Kind.FILE, None, None]


@pytest.mark.parametrize("begins_anew", [methodcaller("walk_anew"), methodcaller("identify")])
def test_a_directory_that_somebody_moved_is_found_by_its_path(
    replica: Replica, backing: Path, begins_anew: Callable[[Replica], object]
) -> None:
    if isinstance(replica, MemoryReplica):
        pytest.skip("holds no directories")
    replica.make_directory(b"d")
    replica.identify()
    assert replica.look(b"d/nothing") is None  # the directory is held from here on
    (backing / "d").rename(backing.parent / "moved")
    (backing / "d").mkdir()
    begins_anew(replica)
    replica.write_new(b"d/file", b"")
    assert [path.name for path in (backing / "d").iterdir()] == ["file"]


def test_a_link_in_the_place_of_a_directory_is_none(replica: Replica, backing: Path) -> None:
    if isinstance(replica, MemoryReplica):
        pytest.skip("holds no links")
    (backing / "elsewhere").mkdir()
    (backing / "elsewhere" / "file").touch()
    (backing / "d").symlink_to("elsewhere")
    assert replica.look(b"d/file") is None
    with pytest.raises(NotADirectoryError):
        replica.write_new(b"d/new", b"")


def test_a_directory_below_one_that_somebody_made_again_is_found(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    replica = FolderReplica(os.fsencode(tmp_path))
    assert replica.look(b"d/nothing") is None  # the directory is held from here on
    (tmp_path / "d").rmdir()
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/there").touch()
    assert replica.look(b"d/e/there") is not None


@pytest.mark.fuse
@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ECONNABORTED, errno.EPROTO])
def test_an_error_of_the_mount_is_raised_whatever_class_python_has_for_it(
    mounted: Mounted, number: int
) -> None:
    children = ChildrenReplica(os.fsencode(mounted.path / "project"), 1, 1, patience=20)
    mounted.fail("mkdir", number)
    with pytest.raises(OSError, match=r"\w") as caught:
        children.make_directory(b"new")
    children.close()
    assert caught.value.errno == number
