"""Long copies, whose calls on the mount are made beside the work of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.blocks import BlockHasher, Blocks
from onesync.errors import LocalError
from onesync.replica.pour import CHUNK, Pour, past_cache

_LONG = 9 * CHUNK + 12345


class _Files:
    """A file of random bytes, and an empty one."""

    def __init__(self, home: Path) -> None:
        self.content = os.urandom(_LONG)
        (home / "origin").write_bytes(self.content)
        self.origin = os.open(home / "origin", os.O_RDWR)
        self.target = os.open(home / "target", os.O_RDWR | os.O_CREAT)

    def arrived(self) -> bytes:
        return os.pread(self.target, 2 * _LONG, 0)


@pytest.fixture
def files(tmp_path: Path) -> _Files:
    return _Files(tmp_path)


def _pour(*, outward: bool, told: list[int] | None = None) -> Pour:
    return Pour(BlockHasher(1 << 16), (told if told is not None else []).append, outward=outward)


def _blocks(content: bytes) -> Blocks:
    hasher = BlockHasher(1 << 16)
    hasher.update(content)
    return hasher.blocks()


@pytest.mark.parametrize("outward", [True, False])
def test_a_long_copy_is_whole_and_its_digests_are_those_of_its_bytes(
    files: _Files, outward: bool
) -> None:
    told: list[int] = []
    pour = _pour(outward=outward, told=told)
    pour.run(files.origin, files.target, _LONG if outward else None, length=_LONG)
    assert files.arrived() == files.content
    assert pour.hasher.hexdigest() == blake3(files.content).hexdigest()
    assert pour.blocks() == _blocks(files.content)
    assert (pour.offset, sum(told)) == (_LONG, _LONG)


@pytest.mark.parametrize("expected", [5 * CHUNK, 5 * CHUNK + 7, 20 * CHUNK])
def test_what_is_longer_or_shorter_than_expected_is_copied_to_its_end(
    files: _Files, expected: int
) -> None:
    pour = _pour(outward=False)
    pour.run(files.origin, files.target, None, length=expected)
    assert files.arrived() == files.content
    assert pour.hasher.hexdigest() == blake3(files.content).hexdigest()


def test_a_read_that_gives_less_than_was_asked_for_leaves_no_gap(files: _Files) -> None:
    def stingy(fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, min(size, 300_000), offset)

    pour = _pour(outward=False)
    pour.run(files.origin, files.target, None, read=stingy, length=_LONG)
    assert files.arrived() == files.content


def test_nothing_beyond_the_expected_length_is_read_ahead(files: _Files) -> None:
    asked: list[tuple[int, int]] = []

    def noted(fd: int, size: int, offset: int) -> bytes:
        asked.append((offset, size))
        return os.pread(fd, size, offset)

    _pour(outward=False).run(files.origin, files.target, None, read=noted, length=_LONG)
    assert sorted(asked)[-2:] == [(9 * CHUNK, 12345), (_LONG, CHUNK)]
    assert len(asked) == 11


def test_two_chunks_are_asked_for_at_once(files: _Files) -> None:
    both = threading.Barrier(2, timeout=30)

    def in_pairs(fd: int, size: int, offset: int) -> bytes:
        if offset < 8 * CHUNK:
            both.wait()
        return os.pread(fd, size, offset)

    _pour(outward=False).run(files.origin, files.target, None, read=in_pairs, length=_LONG)
    assert files.arrived() == files.content


def test_what_lies_past_the_cache_is_copied_whole_where_only_sectors_can_be_read(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, refused = os.pread, threading.Semaphore(0)

    def as_a_disk(fd: int, size: int, offset: int) -> bytes:
        if fd == files.origin and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.release()
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", as_a_disk)
    read = past_cache(files.origin)
    _pour(outward=False).run(files.origin, files.target, None, read=read, length=_LONG)
    assert refused.acquire(blocking=False)
    assert files.arrived() == files.content


def test_a_file_system_without_a_way_past_the_cache_is_read_all_the_same(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 0

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    read = past_cache(files.origin)
    _pour(outward=False).run(files.origin, files.target, None, read=read, length=_LONG)
    assert files.arrived() == files.content


def test_an_error_of_the_mount_past_the_cache_stays_what_it_is(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "no")

    read = past_cache(files.origin)
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OSError, match="no"):
        read(files.origin, CHUNK, 0)


def test_an_error_of_the_mount_is_raised_and_nothing_is_left_running(files: _Files) -> None:
    def failing(fd: int, size: int, offset: int) -> bytes:
        if offset >= 4 * CHUNK:
            raise OSError(errno.EIO, "no")
        return os.pread(fd, size, offset)

    before = threading.active_count()
    with pytest.raises(OSError, match="no") as caught:
        _pour(outward=False).run(files.origin, files.target, None, read=failing, length=_LONG)
    assert not isinstance(caught.value, LocalError)
    assert threading.active_count() == before


def test_after_a_failed_write_nothing_more_is_written(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def failing(fd: int, content: memoryview, offset: int) -> int:
        written.append(offset)
        if offset == 3 * CHUNK:
            raise OSError(errno.EDQUOT, "full")
        return pwrite(fd, content, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="full") as caught:
        _pour(outward=True).run(files.origin, files.target, _LONG)
    assert not isinstance(caught.value, LocalError)
    assert written == [number * CHUNK for number in range(4)]


def test_the_last_write_may_fail_too(files: _Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int, content: memoryview, offset: int) -> int:
        if offset == 9 * CHUNK:
            raise OSError(errno.EIO, "not the last one")
        return pwrite(fd, content, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="not the last one"):
        _pour(outward=True).run(files.origin, files.target, _LONG)


def test_a_flush_of_this_machine_that_fails_is_its_own_error(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fdatasync", failing)
    monkeypatch.setattr("onesync.replica.pour._FLUSHED", 4 * CHUNK)
    with pytest.raises(LocalError, match="the disk is broken"):
        _pour(outward=False).run(files.origin, files.target, None, length=_LONG)


def test_when_the_time_is_up_all_that_was_digested_is_there(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    pour = _pour(outward=True)
    pour.begin(0)
    pour.run(files.origin, files.target, _LONG)
    assert (pour.is_late, pour.offset) == (True, CHUNK)
    assert files.arrived() == files.content[:CHUNK]
    pour.begin(None)
    pour.run(files.origin, files.target, _LONG)
    assert files.arrived() == files.content
    assert pour.hasher.hexdigest() == blake3(files.content).hexdigest()


def test_holes_stay_holes(files: _Files, tmp_path: Path) -> None:
    for outward in (True, False):
        os.ftruncate(files.target, 0)
        os.pwrite(files.origin, bytes(3 * CHUNK), 2 * CHUNK)
        os.ftruncate(files.origin, 20 * CHUNK)
        end = 20 * CHUNK if outward else None
        _pour(outward=outward).run(files.origin, files.target, end, sparse=True, length=20 * CHUNK)
        assert os.pread(files.target, 20 * CHUNK, 0) == os.pread(files.origin, 20 * CHUNK, 0)
        assert os.fstat(files.target).st_size == 20 * CHUNK
        assert os.fstat(files.target).st_blocks * 512 < 8 * CHUNK


def test_without_a_thread_to_spare_it_is_copied_all_the_same(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    for outward in (True, False):
        os.ftruncate(files.target, 0)
        pour = _pour(outward=outward)
        pour.run(files.origin, files.target, _LONG if outward else None, length=_LONG)
        assert files.arrived() == files.content
        assert pour.hasher.hexdigest() == blake3(files.content).hexdigest()


def test_of_two_errors_that_of_the_mount_is_told(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be told once only, and what was pushed before is suspected by it."""

    def unreadable(fd: int, size: int, offset: int) -> bytes:
        if offset == 3 * CHUNK:
            raise OSError(errno.EIO, "this disk")
        return os.pread(fd, size, offset)

    def unwritable(fd: int, content: memoryview, offset: int) -> int:
        if offset == 2 * CHUNK:
            raise OSError(errno.ENOTCONN, "the mount")
        return pwrite(fd, content, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", unwritable)
    with pytest.raises(OSError, match="the mount") as caught:
        _pour(outward=True).run(files.origin, files.target, _LONG, read=unreadable)
    assert not isinstance(caught.value, LocalError)


def test_few_files_of_a_process_are_read_ahead(
    files: _Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()

    def noted(fd: int, size: int, offset: int) -> bytes:
        threads.add(threading.get_ident())
        return os.pread(fd, size, offset)

    def copy() -> None:
        os.ftruncate(files.target, 0)
        _pour(outward=False).run(files.origin, files.target, None, read=noted, length=_LONG)
        assert files.arrived() == files.content

    slots = threading.BoundedSemaphore(1)
    monkeypatch.setattr("onesync.replica.pour._read_ahead", slots)
    with slots:
        copy()
        assert threads == {threading.get_ident()}
    copy()
    assert len(threads) > 1
    assert slots.acquire(blocking=False), "the slot was not given back"
