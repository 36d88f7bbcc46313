"""What the stand-in tells late, or not at all, and what it does not take."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.standin.mounted import Mounted
from tests.standin.test_faults import errno_of

pytestmark = pytest.mark.fuse


def test_sizes_and_times_are_told_late(mounted: Mounted) -> None:
    old, new = mounted.path / "old", mounted.path / "new"
    old.write_bytes(b"before")
    os.utime(old, (5, 5))
    mounted.late(3600)
    with open(old, "ab", buffering=0) as file:
        for piece in (b" and", b" after"):
            file.write(piece)  # an append knows where its file ends
    new.write_bytes(b"new")
    assert (old.stat().st_size, old.stat().st_mtime) == (6, 5)
    assert new.stat().st_size == 0
    mounted.late(0)
    assert (old.stat().st_size, new.stat().st_size) == (16, 3)


def test_a_change_is_told_when_it_is_old_enough(mounted: Mounted) -> None:
    path = mounted.path / "file"
    mounted.late(0.3)
    path.write_bytes(b"data")
    while path.stat().st_size != 4:
        time.sleep(0.01)


def test_a_second_client_of_the_provider_is_told_late(tmp_path: Path, mounted: Mounted) -> None:
    with Mounted(tmp_path / "second", backing=mounted.backing) as second:
        for mount in (mounted, second):
            mount.late(3600, own=False)
        (mounted.path / "file").write_bytes(b"data")
        assert (mounted.path / "file").stat().st_size == 4
        assert (second.path / "file").stat().st_size == 0


def test_listings_skip_names_that_look_ups_find(mounted: Mounted) -> None:
    (mounted.path / "project" / "file").write_bytes(b"x")
    (mounted.path / "project" / "other").write_bytes(b"x")
    mounted.hide("project/file$")
    assert os.listdir(mounted.path / "project") == ["other"]
    assert (mounted.path / "project" / "file").read_bytes() == b"x"
    mounted.show()
    assert sorted(os.listdir(mounted.path / "project")) == ["file", "other"]


def test_a_stale_listing_shows_what_was(mounted: Mounted) -> None:
    project = mounted.path / "project"
    (project / "goes").mkdir()
    mounted.freeze()
    (project / "goes").rmdir()
    (project / "comes").mkdir()
    assert os.listdir(project) == ["goes"]
    assert not (project / "goes").exists()
    assert os.listdir(project / "comes") == []
    mounted.show()
    assert os.listdir(project) == ["comes"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_beyond_the_quota_nothing_is_stored(mounted: Mounted, number: int) -> None:
    (mounted.path / "there").write_bytes(b"12345")
    for at in ("write", "fsync", "close"):
        mounted.quota(8, number, at=at)
        fd = os.open(mounted.path / "file", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"678")
        found = {
            "write": errno_of(os.write, fd, b"9"),
            "fsync": errno_of(os.fsync, fd),
            "close": errno_of(os.close, fd),
        }
        assert found == {call: number if call == at else 0 for call in found}
        assert (mounted.backing / "file").read_bytes() == b"678"


def test_space_that_is_freed_can_be_used(mounted: Mounted) -> None:
    (mounted.path / "there").write_bytes(b"12345")
    mounted.quota(8)
    (mounted.path / "there").unlink()
    (mounted.path / "file").write_bytes(b"12345678")
    assert errno_of((mounted.path / "file").write_bytes, b"123456789") == errno.ENOSPC
    mounted.quota(None)
    (mounted.path / "file").write_bytes(b"123456789")


def test_a_quota_is_met_when_the_buffer_is_stored(tmp_path: Path) -> None:
    with Mounted(tmp_path / "onedata", profile="21.02") as mount:
        mount.quota(8)
        fd = os.open(mount.path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"too much data")
        assert errno_of(os.fsync, fd) == errno.ENOSPC
        assert errno_of(os.fsync, fd) == 0
        os.close(fd)
        assert (mount.backing / "file").read_bytes() == b""


def test_a_read_only_storage_takes_nothing(mounted: Mounted) -> None:
    path = mounted.path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_WRONLY)
    mounted.read_only()
    found = {
        errno_of(path.write_bytes, b"y"),
        errno_of((mounted.path / "new").touch),
        errno_of(os.mkdir, mounted.path / "directory"),
        errno_of(os.rename, path, mounted.path / "other"),
        errno_of(os.unlink, path),
        errno_of(os.rmdir, mounted.path / "project"),
        errno_of(os.write, fd, b"y"),
    }
    assert found == {errno.EROFS}
    os.truncate(path, 0)  # told as success
    assert path.read_bytes() == b"x"
    mounted.read_only(False)
    os.write(fd, b"y")
    os.close(fd)
    assert path.read_bytes() == b"y"
