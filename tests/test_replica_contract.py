"""One contract for every replica: the folder itself, behind children, and on a FUSE mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.model import Kind
from onesync.replica.children import ChildrenReplica
from onesync.replica.door import Listed, Replica
from onesync.replica.folder import FolderReplica


@pytest.fixture(params=["folder", "children"])
def replica(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replica]:
    root = tmp_path / "replica"
    root.mkdir()
    if request.param == "folder":
        yield FolderReplica(os.fsencode(root))
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


def test_listing_gives_kinds_and_sizes(replica: Replica) -> None:
    replica.make_directory(b"d")
    replica.write_new(b"\xff odd\nname", b"123")
    assert sorted(replica.list(b""), key=lambda item: item.name) == [
        Listed(b"d", Kind.DIRECTORY, 0),
        Listed(b"\xff odd\nname", Kind.FILE, 3),
    ]


def test_overwrite_keeps_the_name_and_needs_one(replica: Replica) -> None:
    with pytest.raises(FileNotFoundError):
        replica.overwrite(b"lock", b"x")
    replica.write_new(b"lock", b"one")
    with pytest.raises(FileExistsError):
        replica.write_new(b"lock", b"two")
    replica.overwrite(b"lock", b"two")
    assert replica.read(b"lock") == b"two"


@pytest.mark.parametrize("path", [b"../escape", b"/etc/escape", b"door/escape"])
def test_no_call_leaves_the_root(replica: Replica, tmp_path: Path, path: bytes) -> None:
    (tmp_path / "replica" / "door").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"link|device|Not a directory"):
        replica.write_new(path, b"")
    assert not (tmp_path / "escape").exists()


def test_identity_tells_a_plain_folder(replica: Replica, tmp_path: Path) -> None:
    identity = replica.identify()
    assert not identity.is_fuse
    assert identity.device == (tmp_path / "replica").stat().st_dev
