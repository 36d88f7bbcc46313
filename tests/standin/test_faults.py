"""Every fault that the stand-in can let befall a call."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse


def errno_of(call: Callable[..., Any], *arguments: Any) -> int:
    """Return the errno with which a call fails; 0 for none."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or 0
    return 0


def comes(mounted: Mounted, operation: str) -> None:
    """Wait until the log tells of an operation."""
    deadline = time.monotonic() + 20
    while not any(call.operation == operation for call in mounted.log()):
        assert time.monotonic() < deadline, f"no {operation} came"
        time.sleep(0.01)


@pytest.mark.parametrize("nth", [1, 4])
def test_the_nth_call_of_all_fails(mounted: Mounted, nth: int) -> None:
    mounted.start_log()
    mounted.fail("*", errno.EAGAIN, nth=nth)
    for name in "abcd":
        errno_of(os.mkdir, mounted.path / name)
    failed = [call.error == errno.EAGAIN for call in mounted.log()]
    assert [n for n, one in enumerate(failed, 1) if one] == [nth]


def test_a_fault_keeps_to_its_pattern_and_its_times(mounted: Mounted) -> None:
    for name in ("one", "two"):
        (mounted.path / name).mkdir()
    mounted.fail("rmdir", errno.EACCES, pattern="two$", times=2)
    assert errno_of(os.rmdir, mounted.path / "one") == 0
    found = [errno_of(os.rmdir, mounted.path / "two") for _ in range(3)]
    assert found == [errno.EACCES, errno.EACCES, 0]


def test_chance_is_the_same_for_the_same_seed(mounted: Mounted) -> None:
    def outcomes(seed: int) -> list[int]:
        mounted.fail("mkdir", errno.EAGAIN, times=-1, probability=0.5, seed=seed)
        found = [errno_of(os.mkdir, mounted.path / str(n)) for n in range(30)]
        mounted.clear()
        for path in mounted.backing.glob("[0-9]*"):
            path.rmdir()
        return found

    first = outcomes(1)
    assert {0, errno.EAGAIN} == set(first)
    assert outcomes(1) == first
    assert outcomes(2) != first


def test_an_unknown_result_was_carried_out(mounted: Mounted) -> None:
    number = errno.ETIMEDOUT
    source, target = mounted.path / "source", mounted.path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    for operation in ("rename", "mkdir", "unlink", "create", "write"):
        mounted.fail(operation, number, applied=True)
    assert errno_of(os.rename, source, target) == number
    assert (mounted.backing / "target").read_bytes() == b"new"
    assert errno_of(os.mkdir, mounted.path / "directory") == number
    assert (mounted.backing / "directory").is_dir()
    assert errno_of(os.unlink, target) == number
    assert not (mounted.backing / "target").exists()
    assert errno_of((mounted.path / "file").touch) == number
    assert (mounted.backing / "file").exists()
    assert errno_of((mounted.path / "file").write_bytes, b"whole") == number
    assert (mounted.backing / "file").read_bytes() == b"whole"


def test_a_write_may_fail_at_once(mounted: Mounted) -> None:
    mounted.fail("write", errno.ENOSPC, at_once=True)
    with open(mounted.path / "file", "wb", buffering=0) as file:
        assert errno_of(file.write, b"x") == errno.ENOSPC
        os.fsync(file.fileno())


def test_what_is_dropped_answers_success(mounted: Mounted) -> None:
    path = mounted.path / "file"
    mounted.drop_at("write", nth=2)
    with open(path, "wb", buffering=0) as file:
        for piece in (b"one", b"two", b"six"):
            assert file.write(piece) == 3
        os.fsync(file.fileno())
    assert path.read_bytes() == b"one\0\0\0six"
    mounted.drop_at("unlink")
    path.unlink()
    assert path.exists()
    mounted.drop_at("read")
    assert path.read_bytes() == bytes(9)


def test_only_changes_and_reads_can_be_dropped(mounted: Mounted) -> None:
    with pytest.raises(ValueError, match="getattr cannot be dropped"):
        mounted.drop_at("getattr")


@pytest.mark.parametrize("applied", [False, True])
def test_the_client_dies_of_a_call(mounted: Mounted, applied: bool) -> None:
    mounted.kill_at("mkdir", pattern="fatal", applied=applied)
    (mounted.path / "harmless").mkdir()
    assert errno_of(os.mkdir, mounted.path / "fatal") in (errno.ECONNABORTED, errno.ENOTCONN)
    mounted.died()
    assert errno_of(os.listdir, mounted.path) == errno.ENOTCONN
    mounted.remount()
    assert (mounted.path / "fatal").exists() == applied


def test_others_die_of_a_call_that_fails_by_itself(mounted: Mounted) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        mounted.kill_at("getattr", pattern="nowhere", victims=[victim.pid], applied=True)
        assert errno_of(os.stat, mounted.path / "nowhere") == errno.ENOENT
        assert victim.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("orphans", [False, True])
@pytest.mark.parametrize("applied", [False, True])
def test_others_die_of_a_call(mounted: Mounted, applied: bool, orphans: bool) -> None:
    command = ["sh", "-c", "exec 3<&0; cat <&3 & echo started; wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdin is not None
        victim.stdout.readline()
        mounted.kill_at("mkdir", victims=[victim.pid], applied=applied, orphans=orphans)
        assert errno_of(os.mkdir, mounted.path / "fatal") == (0 if applied else errno.EINTR)
        assert (mounted.backing / "fatal").exists() == applied
        assert victim.wait(20) == -signal.SIGKILL
        assert mounted.running()
        with suppress(BrokenPipeError):
            victim.stdin.write(b"alive")
            victim.stdin.close()
        assert victim.stdout.read() == (b"alive" if orphans else b"")


def test_a_crash_inside_a_rename_leaves_no_target(mounted: Mounted) -> None:
    source, target = mounted.path / "source", mounted.path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    mounted.kill_at("replace")
    os.rename(mounted.path / "project", mounted.path / "free")  # replaces nothing
    assert errno_of(os.rename, source, target) in (errno.ECONNABORTED, errno.ENOTCONN)
    mounted.died()
    mounted.remount()
    assert source.read_bytes() == b"new"
    assert not target.exists()


def test_a_rename_may_fail_half_way(mounted: Mounted) -> None:
    source, target = mounted.path / "source", mounted.path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    mounted.fail("replace", errno.EIO)
    assert errno_of(os.rename, source, target) == errno.EIO
    assert sorted(os.listdir(mounted.backing)) == ["project", "source"]


@pytest.mark.parametrize("applied", [False, True])
def test_only_what_matches_hangs(mounted: Mounted, applied: bool) -> None:
    mounted.hang_at("mkdir", pattern="stuck", applied=applied)
    done = threading.Event()

    def make() -> None:
        (mounted.path / "project" / "stuck").mkdir()
        done.set()

    thread = threading.Thread(target=make)
    mounted.start_log()
    thread.start()
    comes(mounted, "mkdir")
    assert os.listdir(mounted.path) == ["project"]  # the kernel keeps all out of "project"
    assert not done.wait(0.2)
    assert (mounted.backing / "project" / "stuck").exists() == applied
    assert next(call for call in mounted.log() if call.operation == "mkdir").error is None
    mounted.release()
    thread.join(10)
    assert done.is_set()
    assert (mounted.backing / "project" / "stuck").is_dir()


def test_a_call_in_flight_is_aborted_when_the_client_dies(mounted: Mounted) -> None:
    mounted.hang_at("mkdir")
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(errno_of(os.mkdir, mounted.path / "stuck"))
    )
    mounted.start_log()
    thread.start()
    comes(mounted, "mkdir")
    mounted.kill()
    thread.join(10)
    assert found == [errno.ECONNABORTED]
    mounted.remount()


def test_a_client_that_lost_its_token_fails_for_good(mounted: Mounted) -> None:
    mounted.fail("*", errno.ECONNABORTED, times=-1)
    looks: tuple[Callable[[Path], Any], ...] = (os.listdir, os.stat, os.mkdir)
    for look in looks:
        assert errno_of(look, mounted.path / "project") == errno.ECONNABORTED
    mounted.clear()
    assert os.listdir(mounted.path) == ["project"]


def test_the_log_tells_every_call(mounted: Mounted) -> None:
    mounted.start_log()
    mounted.fail("fsync", errno.EIO)
    mounted.fail("write", errno.EIO, nth=2)
    path = mounted.path / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"four")
        assert errno_of(os.fsync, file.fileno()) == errno.EIO
        file.write(b"lost")
        assert errno_of(os.fsync, file.fileno()) == errno.EIO
    path.rename(mounted.path / "other")
    os.statvfs(mounted.path)
    directory = os.open(mounted.path, os.O_RDONLY)
    assert errno_of(os.fsync, directory) == 0  # without effect: the kernel asks once, if at all
    os.close(directory)
    mounted.stop_log()
    path.exists()
    told = [call for call in mounted.log() if call.operation not in ("getattr", "release")]
    assert [(call.operation, call.path, call.error) for call in told] == [
        ("create", "/file", 0),
        ("write", "/file", 0),
        ("fsync", "/file", errno.EIO),
        ("write", "/file", errno.EIO),
        ("fsync", "/file", errno.EIO),
        ("flush", "/file", 0),
        ("rename", "/file", 0),
        ("statfs", "/", 0),
        ("fsyncdir", "/", errno.ENOSYS),
    ]
    assert [call.arguments for call in told if call.operation == "write"] == [
        {"size": 4, "offset": 0},
        {"size": 4, "offset": 4},
    ]
    assert [call.later for call in told] == [number == 3 for number in range(len(told))]
    assert told[6].arguments == {"to": "/other"}
    assert [call.number for call in told] == sorted({call.number for call in told})
