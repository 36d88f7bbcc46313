"""What the profiles 18.02 and 21.02 do with data, times and attributes."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin.mounted import Mounted
from tests.standin.test_faults import errno_of

pytestmark = pytest.mark.fuse

PROGRESS = "org.onedata.replication_progress"


@pytest.fixture
def profiled(tmp_path: Path) -> Iterator[Mounted]:
    """A stand-in of the generation 21.02."""
    with Mounted(tmp_path / "onedata", profile="21.02") as mount:
        yield mount


@pytest.fixture
def fd(profiled: Mounted) -> Iterator[int]:
    """The new file ``file``, open for reading and writing."""
    opened = os.open(profiled.path / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    yield opened
    os.close(opened)


def stored(mount: Mounted) -> bytes:
    """Return what the storage has of ``file``."""
    return (mount.backing / "file").read_bytes()


def test_data_reach_the_storage_by_size_and_by_call(profiled: Mounted, fd: int) -> None:
    profiled.buffer(5)
    os.write(fd, b"four")
    assert stored(profiled) == b""
    assert os.stat(profiled.path / "file").st_size == 4
    os.write(fd, b"more")
    assert stored(profiled) == b"four"
    os.fsync(fd)
    assert stored(profiled) == b"fourmore"
    os.write(fd, b"!")
    with open(profiled.path / "file", "rb") as other:
        assert other.read() == b"fourmore"  # as another handle sees it
    os.close(os.dup(fd))
    assert stored(profiled) == b"fourmore!"


def test_an_error_of_the_buffer_is_told_by_fsync_once(profiled: Mounted, fd: int) -> None:
    profiled.fail("store", errno.EIO)
    os.write(fd, b"lost")
    assert errno_of(os.fsync, fd) == errno.EIO
    assert errno_of(os.fsync, fd) == 0
    assert stored(profiled) == b""


def test_an_error_of_the_buffer_is_told_by_close(profiled: Mounted, fd: int) -> None:
    profiled.fail("store", errno.EIO)
    os.write(fd, b"lost")
    assert errno_of(os.close, os.dup(fd)) == errno.EIO
    assert errno_of(os.fsync, fd) == 0


def test_an_error_of_the_buffer_is_told_by_the_next_write_over_its_size(
    profiled: Mounted, fd: int
) -> None:
    profiled.buffer(5)
    profiled.fail("store", errno.EIO)
    for data, number in ((b"lost", 0), (b"four", 0), (b"fail", errno.EIO), (b"more", 0)):
        assert errno_of(os.write, fd, data) == number
    os.fsync(fd)
    assert stored(profiled) == b"\0\0\0\0fourmore"


def test_buffers_may_be_dropped(profiled: Mounted, fd: int) -> None:
    profiled.drop_at("store")
    os.write(fd, b"lost")
    assert errno_of(os.fsync, fd) == 0
    assert stored(profiled) == b""


def test_a_lost_connection_drops_the_buffers_and_all_calls_succeed(
    profiled: Mounted, fd: int
) -> None:
    os.write(fd, b"kept")
    os.fsync(fd)
    os.write(fd, b"lost")
    profiled.lose_connection(keep_sizes=True)
    os.fsync(fd)
    os.close(os.dup(fd))
    assert stored(profiled) == b"kept"
    assert (profiled.path / "file").stat().st_size == 8
    assert os.getxattr(profiled.path / "file", PROGRESS) == b"50%"
    os.pwrite(fd, b"lost", 4)
    os.fsync(fd)
    assert os.getxattr(profiled.path / "file", PROGRESS) == b"100%"
    assert stored(profiled) == b"keptlost"


def test_a_file_that_is_opened_anew_is_truncated_again(profiled: Mounted) -> None:
    (profiled.backing / "file").write_bytes(b"before")
    fd = os.open(profiled.path / "file", os.O_WRONLY | os.O_TRUNC)
    assert stored(profiled) == b""
    os.write(fd, b"first")
    os.fsync(fd)
    profiled.lose_connection()
    os.write(fd, b"then")
    os.close(fd)
    assert stored(profiled) == b"\0\0\0\0\0then"


def test_the_provider_knows_what_is_stored(profiled: Mounted, fd: int) -> None:
    path = profiled.path / "file"
    assert os.getxattr(path, PROGRESS) == b"0%"
    os.write(fd, b"data")
    assert os.getxattr(path, PROGRESS) == b"0%"
    os.fsync(fd)
    assert os.getxattr(path, PROGRESS) == b"100%"
    profiled.late(3600)
    os.write(fd, b"more")
    os.fsync(fd)
    assert os.getxattr(path, PROGRESS) == b"50%"
    assert set(os.listxattr(path)) == {"org.onedata.guid", "org.onedata.space_id", PROGRESS}
    assert errno_of(os.getxattr, path, "user.mine") == errno.ENODATA


def test_an_older_time_is_not_taken(profiled: Mounted, fd: int) -> None:
    path = profiled.path / "file"
    before = path.stat().st_mtime
    os.utime(path, (1, 1))
    assert path.stat().st_mtime == before
    os.utime(path, (1, before + 100))
    assert path.stat().st_mtime == before + 100


def test_owners_are_ignored_and_odd_names_refused(profiled: Mounted, fd: int) -> None:
    path = profiled.path / "file"
    os.chown(path, 4242, 4242)
    assert path.stat().st_uid != 4242
    assert errno_of(os.mkdir, os.fsencode(profiled.path) + b"/\xff") == errno.EAGAIN
    (profiled.path / ".__onedata__x").mkdir()
    assert os.listdir(profiled.path) == ["file"]


def test_2018_hangs_without_its_provider(tmp_path: Path) -> None:
    with Mounted(tmp_path / "onedata", profile="18.02") as mount:
        done = threading.Event()

        def look() -> None:
            os.listdir(mount.path)
            done.set()

        mount.lose_connection()
        threading.Thread(target=look).start()
        assert not done.wait(0.2)
        mount.release()
        assert done.wait(10)


def test_2018_refuses_owners_sets_times_late_and_tells_no_space(tmp_path: Path) -> None:
    with Mounted(tmp_path / "onedata", profile="18.02") as mount:
        path = mount.path / "file"
        with open(path, "wb") as file:
            file.write(b"x")
            file.flush()
            os.utime(path, (1, 1))
            assert path.stat().st_mtime == 1
        while path.stat().st_mtime == 1:
            time.sleep(0.01)
        assert errno_of(os.chown, path, 4242, 4242) == errno.EOPNOTSUPP
        assert os.statvfs(mount.path).f_blocks == 0
        assert path.stat().st_blocks == 0
        assert "org.onedata.uuid" in os.listxattr(path)


def test_2018_lets_old_data_come_back_after_a_truncation(tmp_path: Path) -> None:
    with Mounted(tmp_path / "onedata", profile="18.02") as mount:
        fd = os.open(mount.path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"old")
        os.ftruncate(fd, 0)
        os.close(fd)
        assert stored(mount) == b"old"


def test_the_plain_profile_buffers_nothing_and_has_no_attributes(mounted: Mounted) -> None:
    with open(mounted.path / "file", "wb", buffering=0) as file:
        file.write(b"x")
        assert stored(mounted) == b"x"
    assert errno_of(os.getxattr, mounted.path / "file", PROGRESS) == errno.EOPNOTSUPP
    mounted.remount("21.02")
    assert os.getxattr(mounted.path / "file", PROGRESS) == b"100%"
