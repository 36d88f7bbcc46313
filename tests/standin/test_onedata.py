"""The stand-in does what OneData does."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse


def test_there_are_no_links(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"x")
    for make in (os.symlink, os.link):
        with pytest.raises(OSError, match=r"not implemented|not permitted"):
            make(mounted.path / "file", mounted.path / "other")


def test_times_are_whole_seconds(mounted: Mounted) -> None:
    path = mounted.path / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    assert path.stat().st_mtime_ns == 1_600_000_000 * 10**9


def test_a_write_error_is_reported_once_and_late(mounted: Mounted) -> None:
    mounted.fail("write", errno.ENOSPC)
    fd = os.open(mounted.path / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"lost")
    with pytest.raises(OSError, match="No space") as caught:
        os.fsync(fd)
    assert caught.value.errno == errno.ENOSPC
    os.fsync(fd)
    os.close(fd)


def test_every_path_component_is_a_call(mounted: Mounted) -> None:
    (mounted.backing / "a" / "b").mkdir(parents=True)
    (mounted.backing / "a" / "b" / "file").write_bytes(b"x")
    mounted.reset()
    os.stat(mounted.path / "a" / "b" / "file")
    first = mounted.counts()["getattr"]
    os.stat(mounted.path / "a" / "b" / "file")
    assert first >= 3
    assert mounted.counts()["getattr"] == 2 * first


def test_a_hang_lasts_until_released(mounted: Mounted) -> None:
    mounted.hang()
    done = threading.Event()

    def look() -> None:
        os.path.exists(mounted.path / "x")
        done.set()

    threading.Thread(target=look, daemon=True).start()
    assert not done.wait(0.3)
    mounted.release()
    assert done.wait(10)


def test_a_dead_client_is_enotconn_and_can_be_mounted_anew(mounted: Mounted) -> None:
    mounted.kill()
    with pytest.raises(OSError, match="not connected") as caught:
        os.listdir(mounted.path)
    assert caught.value.errno == errno.ENOTCONN
    mounted.remount()
    assert os.listdir(mounted.path) == ["project"]
